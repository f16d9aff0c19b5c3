"""nystra_plus in one pass over each window and head, by a kernel in C++ or, on a GPU, in Triton."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nystra_bench.attention.base import Attention, Window
from nystra_bench.attention.implementation import DEFAULT, Implementation, Kernel, rows_together, windows_of
from nystra_bench.attention.nystra_plus import NystraPlusAttention
from nystra_bench.kernels import BLOCK

VECTOR = 16
"""Floats of the widest vectors, to which the kernel wants rows of features filled up."""


class FusedNystraPlusAttention(NystraPlusAttention):
    """``nystra_plus``, with a kernel that keeps all that it makes of a window and head in the processor's caches.

    It gives what the eager form gives, but for rounding. Queries, keys and values are read as they lie, and the output
    is written as (B * nW, N, H, d_v), which is what the projection after it reads. There is one in C++ for CPUs, which
    finds the windows of a map by itself, and one in Triton for GPUs; both take half precision, with sums in float32.
    The kernel has clusters without steps of k-means (``landmarks_from=clusters``, ``clustering=0``), of any number of
    landmarks, channels and features.

    Args:
        implementation: ``fused`` is the kernel, ``eager`` the form of ``nystra_plus``, ``auto`` the kernel where it can
            run. Its library is built at first use, which ``setup_ms`` counts.

    All others are those of ``nystra_plus``.

    Raises:
        ValueError: a parameter is out of its range.
        UserError: ``implementation=fused`` where there can be no kernel.
    """

    def __init__(
        self,
        landmarks: int = 16,
        iterations: int = 6,
        bias_rank: int = 8,
        landmarks_from: str = "clusters",
        clustering: int = 0,
        exact_diagonal: bool = True,
        target_deviation: float | None = None,
        implementation: str = DEFAULT,
    ):
        super().__init__(landmarks, iterations, bias_rank, landmarks_from, clustering, exact_diagonal, target_deviation)
        unserved = None
        if landmarks_from != "clusters" or clustering:
            unserved = f"the kernel has no landmarks_from={landmarks_from} with clustering={clustering}"
        self.implementation = implementation
        self._form = Implementation(implementation, "nystra_plus", {"cpu": _flops, "cuda": _flops_on_gpu}, unserved)

    def about(self) -> dict[str, str]:
        return self.told_by_layers() if self._by_layer else self._form.about()

    def calibrate(self, sites, restore, images) -> dict:
        """As ``nystra_plus`` does, by the eager form; what it chose runs in this one."""
        record = super().calibrate(sites, restore, images)
        self._by_layer = {name: self._of_this_form(chosen) for name, chosen in self._by_layer.items()}
        return record

    def _of_this_form(self, chosen: Attention) -> Attention:
        if not isinstance(chosen, NystraPlusAttention):
            return chosen
        return FusedNystraPlusAttention(
            chosen.landmarks,
            chosen.iterations,
            chosen.bias_rank,
            chosen.landmarks_from,
            chosen.clustering,
            chosen.exact_diagonal,
            implementation=self.implementation,
        )

    def forward(self, q: Tensor, k: Tensor, v: Tensor, window: Window) -> Tensor:
        kernel = self._form.operator(q, k, v, window)
        if kernel is None:
            return super().forward(q, k, v, window)
        if q.device.type == "cuda":
            kept, regions = self._features(window, q), self._regions(window, q.device)
            return kernel(q, k, v, *kept, regions, self.iterations, self.exact_diagonal)
        return self._on_cpu(kernel, q, k, v, window, None, 1.0)

    def reads_maps(self, x: Tensor, window: Window) -> bool:
        return self._form.reads_maps(x, window)

    def forward_map(self, q: Tensor, k: Tensor, v: Tensor, window: Window, places: Tensor, scale: float) -> Tensor:
        kernel = self._form.operator(q, k, v, window)
        assert kernel is not None, "reads_maps has said so"
        return self._on_cpu(kernel, q, k, v, window, places, scale)

    def _on_cpu(self, kernel: Kernel, q, k, v, window: Window, places: Tensor | None, scale: float) -> Tensor:
        panels, padded = self._panels(window, q.shape[1]), self._padded_regions(window)
        settings = self.iterations, self.exact_diagonal, places, scale
        return kernel(*rows_together(q, k, v), *panels, *padded, *settings)

    def _features(self, window: Window, q: Tensor) -> tuple[Tensor, ...]:
        """F and G (H, N, r) float32, the bias's diagonal (H, N), and the centres (m,), for the kernel of GPUs."""

        def make() -> tuple[Tensor, ...]:
            factors = (x.float().to(q.device).contiguous() for x in self._factors(window, q.shape[1]))
            return *factors, self._centres(window, q.device)

        return window.cache.once("features", make)

    def _regions(self, window: Window, device: torch.device) -> Tensor | None:
        """Regions (nW, N) int64; None where no window has more than one."""
        if not window.has_regions:
            return None

        def make() -> Tensor | None:
            regions = window.regions()
            if regions is None or (regions == regions[:, :1]).all():
                return None
            return regions.to(device).contiguous()

        return window.shared.once("regions", make)

    def _panels(self, window: Window, heads: int) -> Panels:
        """Made once a layer and window size."""

        def make() -> Panels:
            f, g, diagonal = (x.float().cpu() for x in self._factors(window, heads))
            tokens, rank = window.tokens, f.shape[-1]
            blocks = -(-tokens // BLOCK)
            features = f.new_zeros(heads, tokens, 2 * rank + -2 * rank % VECTOR)
            features[..., :rank], features[..., rank : 2 * rank] = f, g
            own = diagonal.new_zeros(heads, blocks * BLOCK)
            own[:, :tokens] = diagonal
            centres = self._centres(window, torch.device("cpu")).contiguous()
            return Panels(_in_blocks(f, blocks), _in_blocks(g, blocks), features, own, centres)

        return window.cache.once("panels", make)

    def _padded_regions(self, window: Window) -> tuple[Tensor | None, Tensor | None]:
        """Regions (nW, blocks * BLOCK) float32, and which windows have more than one (nW,); None where none has.

        Made once for all layers of maps with the same regions.
        """
        if not window.has_regions:
            return None, None

        def make() -> tuple[Tensor | None, Tensor | None]:
            regions = window.regions()
            if regions is None:
                return None, None
            masked = (regions != regions[:, :1]).any(1)
            if not masked.any():
                return None, None
            padded = torch.zeros(len(regions), -(-window.tokens // BLOCK) * BLOCK)
            padded[:, : window.tokens] = regions
            return padded, masked.cpu()

        return window.shared.once("padded regions", make)


class Panels(NamedTuple):
    """What the kernel takes of a layer's position bias, float32."""

    queries: Tensor
    """F, (H, blocks, r, BLOCK), zeros beyond the last token"""
    keys: Tensor
    """G alike"""
    features: Tensor
    """F and G side by side, (H, N, 2 r), filled up with zeros to whole vectors"""
    diagonal: Tensor
    """The bias of each token to itself, (H, blocks * BLOCK)"""
    centres: Tensor
    """The tokens that clusters start from, (m,) int64"""


def _in_blocks(features: Tensor, blocks: int) -> Tensor:
    """Features (H, N, r) as (H, blocks, r, BLOCK): a block of tokens after the other, tokens side by side."""
    heads, tokens, rank = features.shape
    padded = features.new_zeros(heads, blocks * BLOCK, rank)
    padded[:, :tokens] = features
    return padded.unflatten(1, (blocks, BLOCK)).transpose(2, 3).contiguous()


def _flops(
    q, k, v, queries, keys, features, diagonal, centres, regions, masked, iterations, exact_diagonal, places, scale, **_
) -> int:
    """Those of the eager form's matrix products, from shapes; the kernel forms the clusters' means by sums instead."""
    (windows, heads, tokens, dim), (landmarks,), rank = windows_of(q, places), centres, queries[2]
    return NystraPlusAttention(landmarks, iterations, rank).flops(windows, heads, tokens, dim, v[3])


def _flops_on_gpu(q, k, v, f, g, diagonal, centres, regions, iterations, exact_diagonal, **_) -> int:
    (windows, heads, tokens, dim), (landmarks,), rank = q, centres, f[2]
    return NystraPlusAttention(landmarks, iterations, rank).flops(windows, heads, tokens, dim, v[3])
