"""Windows with the same mask, to be attended in one call."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nystra_bench.attention.base import Window, region_mask

FEW = 1 / 8
"""Share of masked windows up to which all windows are first attended without a mask: to compute those few twice costs
less than to copy all the others."""


@dataclass(frozen=True)
class Group:
    """Windows of a batch that have one mask."""

    windows: Tensor | None
    """Their numbers in the batch, (n,) int64; None for all windows, where later groups overwrite some."""
    mask: Tensor | None
    """(1, 1, N, N); None where every token sees its whole window"""

    def take(self, tokens: Tensor) -> Tensor:
        """The group's windows (n, H, N, d) of (B * nW, H, N, d); whole rows of all heads where they lie together."""
        return tokens if self.windows is None else _swap(_swap(tokens).index_select(0, self.windows))

    def put(self, part: Tensor, out: Tensor) -> None:
        """The inverse: write (n, H, N, d) into ``out`` (B * nW, H, N, d)."""
        assert self.windows is not None, "all windows need no copy"
        _swap(out).index_copy_(0, self.windows, _swap(part))


ALL = [Group(None, None)]


def groups_of(window: Window, count: int, dtype: torch.dtype) -> list[Group]:
    """The ``count`` windows of a batch by their masks; made once for all layers of maps with the same regions.

    A shifted map has at most four: windows inside, at the right, at the bottom, and in the corner. The one without a
    mask is the first.
    """
    if not window.has_regions:
        return ALL
    return window.shared.once_for_all(("groups", count, dtype), lambda: _grouped(window.regions(), count, dtype))


def _grouped(regions: Tensor | None, count: int, dtype: torch.dtype) -> list[Group]:
    if regions is None:
        return ALL
    patterns, of_window = _first_of_region(regions).unique(dim=0, return_inverse=True)
    masks = [region_mask(pattern[None]).to(dtype)[:, None] if pattern.any() else None for pattern in patterns]
    if len(masks) == 1:
        return [Group(None, masks[0])]
    of_batch = of_window.repeat(count // len(regions))
    groups = [Group((of_batch == number).nonzero()[:, 0], mask) for number, mask in enumerate(masks)]
    # The pattern of zeros, that of no mask, is sorted before all others.
    if masks[0] is None and (of_window > 0).sum() <= FEW * len(regions):
        groups[0] = Group(None, None)
    return groups


def _first_of_region(regions: Tensor) -> Tensor:
    """For each token the first of its window that is in its region, (nW, N): equal where masks are equal."""
    first = torch.zeros_like(regions)
    for number in regions.unique():
        here = regions == number
        first = torch.where(here, here.int().argmax(1, keepdim=True), first)
    return first


def _swap(tokens: Tensor) -> Tensor:
    """(n, H, N, d) as (n, N, H, d), in which order models and fused kernels have them in memory."""
    return tokens.transpose(1, 2)
