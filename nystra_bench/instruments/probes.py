"""Looking at a model's attentions while it runs: their queries and keys, layer by layer, in a few windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from nystra_bench.attention.base import Attention, Window
from nystra_bench.attention.exact import ExactAttention
from nystra_bench.attention.landmarks import pooled_landmarks
from nystra_bench.attention.nystra import NystraAttention
from nystra_bench.attention.pinv import razavi_pinv
from nystra_bench.attention.sdpa import FusedAttention
from nystra_bench.errors import UserError
from nystra_bench.instruments import memory
from nystra_bench.models.windows import WindowAttention, named_attention_sites

Look = Callable[[Tensor, Tensor, Window], Any]
"""What is made of the queries and keys (B * nW, H, N, d) of a layer; the queries are scaled already."""

COPIES = 6
"""Matrices of the size of a window's, all heads of it, that are in memory at once while they are compared."""


class Probe(ExactAttention):
    """Exact attention that lets a function look at its first call.

    Attributes:
        found: what the function gave; None before the call.
    """

    def __init__(self, look: Look):
        super().__init__()
        self.look = look
        self.found: Any = None

    def forward(self, q: Tensor, k: Tensor, v: Tensor, window: Window) -> Tensor:
        if self.found is None:
            self.found = self.look(q, k, window)
        return self.attend(q, k, v, window)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, window: Window) -> Tensor:
        """The attention that the model goes on with."""
        return super().forward(q, k, v, window)


class LeanProbe(Probe):
    """The same by fused attention, which holds no matrix, and keeps no bias and no mask after the call."""

    def __init__(self, look: Look):
        super().__init__(look)
        self.fused = FusedAttention()

    def attend(self, q: Tensor, k: Tensor, v: Tensor, window: Window) -> Tensor:
        bias, regions = (
            make if there else None
            for make, there in ((window.bias, window.has_bias), (window.regions, window.has_regions))
        )
        return self.fused(q, k, v, Window(window.height, window.width, bias, regions))


def sites_of(model: nn.Module) -> dict[str, WindowAttention]:
    """The places of a model's attentions, by their layers' names.

    Raises:
        UserError: there is none.
    """
    sites = named_attention_sites(model)
    if not sites:
        raise UserError(
            f"{type(model).__name__} has no attention to look at: accepted are models with windowed attentions"
        )
    return sites


@contextmanager
def probing(model: nn.Module, probes: Mapping[str, Attention]) -> Iterator[None]:
    """With these attentions in the layers of these names; afterwards each layer has its own back."""
    sites = named_attention_sites(model)
    before = {name: sites[name].attention for name in probes}
    try:
        for name, probe in probes.items():
            sites[name].attention = probe
        yield
    finally:
        for name, attention in before.items():
            sites[name].attention = attention


def look_at_layers(model: nn.Module, x: Tensor, looks: Mapping[str, Look]) -> dict[str, Any]:
    """What these functions find in their layers while the model, with exact attention everywhere, maps x.

    Args:
        x: (B, C, height, width).
        looks: by the layers' names; the others are not looked at.
    """
    probes = {name: LeanProbe(looks.get(name, lambda *_: False)) for name in sites_of(model)}
    with probing(model, probes), torch.inference_mode():
        model(x)
    return {name: probes[name].found for name in looks}


def choose_windows(count: int, limit: int, seed: int) -> list[int]:
    """The numbers of ``limit`` of ``count`` windows, all where there are no more: a seeded choice, in rising order."""
    return sorted(Random(seed).sample(range(count), min(limit, count)))


def few_windows(window: Window, chosen: list[int], count: int, dtype: torch.dtype = torch.float64) -> Window:
    """The window of a call with the chosen of ``count`` windows only, its tensors on the CPU, its bias of a dtype."""

    def regions() -> Tensor | None:
        numbers = window.regions()
        return None if numbers is None else numbers.cpu().repeat(count // len(numbers), 1)[chosen]

    def bias() -> Tensor:
        made = window.bias()
        assert made is not None  # as has_bias says
        return made.to("cpu", dtype)

    made_of = bias if window.has_bias else None, regions if window.has_regions else None
    return Window(window.height, window.width, *made_of)


def published_inverse(attention: NystraAttention, q: Tensor, k: Tensor, window: Window) -> Tensor:
    """The published method's pseudo-inverse among landmarks, (B * nW, H, m, m).

    Args:
        q, k: (B * nW, H, N, d): all windows, since ``init="global"`` starts the iteration from all of them.
    """
    size = window.height, window.width, attention.landmarks
    kernel = attention.kernel(pooled_landmarks(q, *size) @ pooled_landmarks(k, *size).mT)
    return razavi_pinv(kernel, attention.iterations, attention.init)


def window_matrices(attention: Attention, q: Tensor, k: Tensor, window: Window, chosen: list[int]) -> Iterator[Tensor]:
    """The matrix (H, N, N) that a method stands for, of one chosen window after the other.

    The published method is looked at as it runs, its iteration started from all windows; others are given one window
    at a time.

    Args:
        q, k: (B * nW, H, N, d) of all windows, on the CPU.

    Raises:
        UserError: the attention refuses windows of this size.
    """
    reason = attention.refuses(window.height, window.width)
    if reason:
        raise UserError(f"{type(attention).__name__} cannot work here: {reason}")
    attention = attention.cpu()
    if isinstance(attention, NystraAttention):
        inverse = published_inverse(attention, q, k, window)
        yield from (_published_matrix(attention, q[n], k[n], window, inverse[n]) for n in chosen)
        return
    for n in chosen:
        yield attention.matrix(q[[n]], k[[n]], few_windows(window, [n], len(q), q.dtype))[0]


def _published_matrix(attention: NystraAttention, q: Tensor, k: Tensor, window: Window, inverse: Tensor) -> Tensor:
    size = window.height, window.width, attention.landmarks
    left = attention.kernel(q @ pooled_landmarks(k, *size).mT) @ inverse
    matrix = left @ attention.kernel(pooled_landmarks(q, *size) @ k.mT)
    return matrix / (matrix.sum(-1, keepdim=True) + 1e-12)


def check_memory(window: Window, heads: int, dtype: torch.dtype) -> None:
    """See that the matrices of one window fit the memory.

    Raises:
        MemoryError: they do not.
    """
    free = memory.free_memory("cpu")
    needed = COPIES * heads * window.tokens**2 * torch.finfo(dtype).bits / 8
    if free is not None and needed > free:
        raise MemoryError(
            f"attention matrices of {window.height}x{window.width} tokens and {heads} heads need about "
            f"{needed / 1e9:.0f} GB of memory and {free / 1e9:.0f} GB are free: accepted are smaller windows "
            "(window_size=)"
        )
