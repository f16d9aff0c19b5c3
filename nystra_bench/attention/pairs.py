"""The position bias of single pairs of tokens, for what never sees an N x N matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nystra_bench.attention.base import Window


@dataclass(frozen=True)
class BiasOfPairs:
    """The ``centred`` position bias of a head's query i and key j: ``entries[queries[i] + keys[j]] - means[i]``."""

    entries: Tensor
    """(H, S): those of the relative offsets where the bias is a matter of these alone, else of all N^2 pairs"""
    queries: Tensor
    """(N,) int64"""
    keys: Tensor
    """(N,) int64"""
    means: Tensor
    """(H, N), of each query's bias over all keys"""

    def of(self, heads: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        """(n, M, L), of queries (n, M) and keys (n, L) of heads (n,), all of them numbers."""
        offsets = (heads * self.entries.shape[1])[:, None]
        places = (self.queries[queries] + offsets)[..., None] + self.keys[keys][:, None]
        found = self.entries.flatten().index_select(0, places.flatten()).view(places.shape)
        return found - self.means[heads[:, None], queries][..., None]


def bias_of_pairs(window: Window, like: Tensor) -> BiasOfPairs | None:
    """That of a window, of like's dtype and device, made once a layer and window size; None where there is no bias."""

    def make() -> BiasOfPairs:
        bias = window.bias()
        assert bias is not None, "as has_bias says"
        bias = bias.float()
        height, width, tokens = window.height, window.width, torch.arange(window.tokens, device=bias.device)
        entries = entries_of_offsets(bias, height, width)
        if entries is None:
            entries, queries, keys = bias.flatten(1), tokens * window.tokens, tokens
        else:
            places = tokens // width * (2 * width - 1) + tokens % width
            queries, keys = places + (2 * width - 1) * (height - 1) + width - 1, -places
            entries = entries.flatten(1)
        means = bias.mean(-1)
        return BiasOfPairs(entries.to(like).contiguous(), queries, keys, means.to(like))

    return window.cache.once(("pairs", like.dtype), make) if window.has_bias else None


def entries_of_offsets(bias: Tensor, height: int, width: int) -> Tensor | None:
    """The entries (H, 2 height - 1, 2 width - 1) of all offsets of a query from a key, of a position bias (H, N, N).

    They stand in the rows of the tokens in the window's corners. None where other pairs of the same offset have another
    bias, as those of the published models never have.
    """
    grid = bias.unflatten(2, (height, width)).unflatten(1, (height, width))
    entries = bias.new_empty(len(bias), 2 * height - 1, 2 * width - 1)
    for y, rows in ((0, slice(0, height)), (height - 1, slice(height - 1, None))):
        for x, columns in ((0, slice(0, width)), (width - 1, slice(width - 1, None))):
            entries[:, rows, columns] = grid[:, y, x].flip(1, 2)
    for of_head, expected in zip(entries, grid, strict=True):
        windows = of_head.unfold(0, height, 1).unfold(1, width, 1)
        if not torch.equal(windows, expected.flip(2, 3)):
            return None
    return entries
