"""nystra_plus, version 5, in one pass over each window and head, by a kernel in C++."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nystra_bench.attention.base import Window
from nystra_bench.attention.blocks import Sizes
from nystra_bench.attention.implementation import DEFAULT, Implementation, Kernel, rows_together, windows_of
from nystra_bench.attention.nystra_plus_v5 import (
    CANDIDATES,
    Features,
    NystraPlusV5Attention,
    places_of_candidates,
    region_features,
)


class FusedNystraPlusV5Attention(NystraPlusV5Attention):
    """``nystra_plus_v5``, with a kernel that reads all that a block of queries attends to where it lies.

    It gives what the eager form gives, but for rounding, and but for tokens that are as near to two clusters, or
    clusters that matter as much to a block, but for rounding. Queries, keys and values are read as they lie, and the
    output is written as (B * nW, N, H, d_v), which is what the projection after it reads; the kernel finds the windows
    of a map by itself. bfloat16 is taken, too, with sums in float32. It is for CPUs.

    Args:
        exact_up_to: as in the eager form, but the kernel is faster than exact attention in smaller windows: None for
            512 where neither landmarks nor exact_keys are given.
        implementation: ``fused`` is the kernel, ``eager`` the form of ``nystra_plus_v5``, ``auto`` the kernel where it
            can run. Its library is built at first use, which ``setup_ms`` counts.

    All others are those of ``nystra_plus_v5``.

    Raises:
        ValueError: a parameter is out of its range.
        UserError: ``implementation=fused`` where there can be no kernel.
    """

    exact_usually = 512

    def __init__(
        self,
        landmarks: int | None = None,
        exact_keys: int | None = None,
        bias_rank: int = 8,
        clustering: int = 1,
        residual: bool = True,
        exact_up_to: int | None = None,
        target_deviation: float | None = None,
        implementation: str = DEFAULT,
    ):
        super().__init__(landmarks, exact_keys, bias_rank, clustering, residual, exact_up_to, target_deviation)
        self.implementation = implementation
        self._form = Implementation(implementation, "nystra_plus_v5", {"cpu": _flops})

    def about(self) -> dict[str, str]:
        if self._by_layer or self._ran != "clusters":
            return super().about()
        return self._form.about()

    def of_sizes(self, landmarks: int, bias_rank: int) -> NystraPlusV5Attention:
        others = self.clustering, self.residual, self.exact_up_to
        return FusedNystraPlusV5Attention(
            landmarks, 2 * landmarks, bias_rank, *others, implementation=self.implementation
        )

    def forward(self, q: Tensor, k: Tensor, v: Tensor, window: Window) -> Tensor:
        if self.is_exact(window.tokens):
            return super().forward(q, k, v, window)
        kernel = self._form.operator(q, k, v, window)
        if kernel is None:
            return super().forward(q, k, v, window)
        return self._on_cpu(kernel, q, k, v, window, None, 1.0)

    def _products(self, sizes: Sizes, means: int, dim: int, rank: int, dim_v: int) -> int:
        """The kernel's: distances from seeds alone, nothing filled up, no features in what is attended one by one."""
        if self.implementation == "eager":
            return super()._products(sizes, means, dim, rank, dim_v)
        wide, block, m = dim + rank, sizes.block, sizes.landmarks
        seeds = (min(CANDIDATES * m, sizes.tokens) + m) * m * wide
        near = block * (block + sizes.keys) * rank
        attending = ((block + means) * sizes.rows + means * sizes.tokens) * (wide + dim_v)
        return seeds + sizes.blocks * (attending - near)

    def reads_maps(self, x: Tensor, window: Window) -> bool:
        return not self.is_exact(window.tokens) and self._form.reads_maps(x, window)

    def forward_map(self, q: Tensor, k: Tensor, v: Tensor, window: Window, places: Tensor, scale: float) -> Tensor:
        kernel = self._form.operator(q, k, v, window)
        assert kernel is not None, "reads_maps has said so"
        return self._on_cpu(kernel, q, k, v, window, places, scale)

    def _on_cpu(self, kernel: Kernel, q, k, v, window: Window, places: Tensor | None, scale: float) -> Tensor:
        self._ran = "clusters"
        sizes = self.sizes(window.tokens)
        kept = self._kept(window, q.shape[1])
        sizes_of_blocks = sizes.landmarks, sizes.keys, sizes.block, sizes.groups if self.residual else 0
        regions = regions_of(window)
        settings = kept.candidates, *sizes_of_blocks, self.clustering, places, scale
        return kernel(*rows_together(q, k, v), kept.queries, kept.keys, *kept.pairs, *regions, *settings)

    def _kept(self, window: Window, heads: int) -> Kept:
        """Made once a layer and window size."""

        def make() -> Kept:
            features = self._features(window, heads, 1, torch.empty(0, dtype=torch.float32))
            candidates = places_of_candidates(self.sizes(window.tokens), window)
            return Kept(features.f.contiguous(), features.g.contiguous(), pairs_of(features), candidates)

        return window.cache.once("features of the kernel", make)


class Kept(NamedTuple):
    """What the kernel takes of a layer."""

    queries: Tensor
    """F, (H, N, r) float32"""
    keys: Tensor
    """G alike"""
    pairs: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
    """the bias of pairs: entries (H, S) float32, places (N,) int32 of queries and of keys, means (H, N) float32"""
    candidates: Tensor
    """The tokens that clusters may start from, (C,) int64"""


def pairs_of(features: Features) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """The bias of pairs as the kernel takes it; None four times where there is none."""
    pairs = features.pairs
    if pairs is None:
        return None, None, None, None
    return pairs.entries, pairs.queries.int(), pairs.keys.int(), pairs.means.contiguous()


def regions_of(window: Window) -> tuple[Tensor | None, Tensor | None]:
    """Features (nW, N, regions) float32, and which windows have more than one region (nW,); None where none has.

    Made once for all layers of maps with the same regions.
    """
    if not window.has_regions:
        return None, None

    def make() -> tuple[Tensor | None, Tensor | None]:
        features = region_features(window, torch.empty(0, dtype=torch.float32))
        masked = (features != features[:, :1]).flatten(1).any(1)
        return (features.contiguous(), masked) if masked.any() else (None, None)

    return window.shared.once("regions of the kernel", make)


def _flops(q, k, v, queries, *others, **_) -> int:
    """Those of the matrix products, from shapes."""
    marks, near, _, groups, clustering, places, _ = others[-7:]
    (windows, heads, tokens, dim), rank = windows_of(q, places), queries[2]
    method = FusedNystraPlusV5Attention(marks, near, rank, clustering, groups > 0, implementation="fused")
    return method.flops(windows, heads, tokens, dim, v[3])
