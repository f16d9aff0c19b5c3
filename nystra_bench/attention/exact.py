"""Exact softmax attention in separate operations."""

from __future__ import annotations

import math

from torch import Tensor

from nystra_bench.attention.base import Attention, Window, add_bias_and_mask

LARGE = 2e9
"""Bytes of logits from which on it is looked whether the memory holds them."""


class ExactAttention(Attention):
    """softmax(QK^T + B + M) V in separate operations (Swin, arXiv 2103.14030, eq. 4): the reference.

    Time and memory O(N^2) a window. Position bias and mask are made once and kept, as in ``sdpa``; what making them at
    every call costs, as published code does, is the difference to ``exact_published``.
    """

    exact = True
    rows_sum_to_one = True
    permutation_equivariant = True
    uses_bias = True
    uses_mask = True

    def forward(self, q: Tensor, k: Tensor, v: Tensor, window: Window) -> Tensor:
        return self.matrix(q, k, window) @ v

    def matrix(self, q: Tensor, k: Tensor, window: Window) -> Tensor:
        _check_room(q, k)
        logits = q @ k.transpose(-2, -1)
        return add_bias_and_mask(logits, *self.bias_and_mask(q, window)).softmax(-1)

    def bias_and_mask(self, q: Tensor, window: Window) -> tuple[Tensor | None, Tensor | None]:
        """Position bias (H, N, N) and shift mask (nW, N, N) for queries q; None where there is none."""
        return window.kept_bias(q.dtype), window.kept_mask(q.dtype)

    def flops(self, windows: int, heads: int, tokens: int, dim: int, dim_v: int) -> int:
        return 2 * windows * heads * tokens * tokens * (dim + dim_v)


def _check_room(q: Tensor, k: Tensor) -> None:
    """Refuse logits that the memory cannot hold beside their softmax, before the system kills the process for them.

    Raises:
        MemoryError: there is less memory than that.
    """
    shape = (*q.shape[:-1], k.shape[-2])
    needed = 2 * math.prod(shape) * q.element_size()
    if needed < LARGE:
        return
    from nystra_bench.instruments.memory import free_memory

    free = free_memory(q.device.type)
    if free is not None and needed > free:
        windows, heads, queries, keys = shape
        raise MemoryError(
            f"the logits of {windows} windows, {heads} heads and {queries} x {keys} tokens need about "
            f"{needed / 1e9:.0f} GB and {free / 1e9:.0f} GB are free: accepted are smaller images, tiles, "
            "or sdpa, which does not keep them"
        )
