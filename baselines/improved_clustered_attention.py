"""Improved clustered attention: clustered, with the strongest keys of each cluster weighed query by query."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from nystra_bench.attention.base import Window
from nystra_bench.attention.parameters import check_whole_numbers
from nystra_bench.attention.precision import at_least_float32

from .clustered_attention import ClusteredAttention
from .common import take_rows


class ImprovedClusteredAttention(ClusteredAttention):
    """Improved clustered attention of Vyas, Katharopoulos and Fleuret (arXiv 2007.04825).

    Clusters and their attention as in ``ClusteredAttention``. The ``keys`` strongest keys of a cluster have together
    the share s of its attention; each query of the cluster distributes that share among them by the softmax of its own
    logits, and takes the rest from its cluster.
    O(N m (iterations bits + d + d_v) + N keys (d + d_v)) time, O(N (m + bits + d)) memory: queries are served in parts,
    so that no gathered tensor is larger than q and v. The matrix is row-stochastic. Position bias and shift mask are
    ignored. With ``keys`` not fewer than the tokens it is softmax attention.

    Args:
        landmarks: m, the number of clusters; the paper's are 25 to 200, for longer sequences.
        iterations: of Lloyd's algorithm; the paper's are 10.
        bits: of the hashes; the paper's are 63.
        keys: keys that are weighed query by query, all where a window has fewer; the paper's are 32.
        seed: of the hashes, which all windows, heads and layers share.

    Raises:
        ValueError: a parameter is out of its range.
    """

    def __init__(self, landmarks: int = 16, iterations: int = 10, bits: int = 63, keys: int = 32, seed: int = 0):
        super().__init__(landmarks, iterations, bits, seed)
        check_whole_numbers(keys=(keys, 1))
        self.keys = keys

    def _strongest(self, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The keys (..., m, c) of each cluster, their share (..., m, 1), and the weights without them (..., m, N)."""
        top, chosen = weights.topk(min(self.keys, weights.shape[-1]), sorted=False)
        return chosen, top.sum(-1, keepdim=True), weights.scatter(-1, chosen, 0.0)

    def _by_parts(self, q: Tensor, k: Tensor, chosen: Tensor, clusters: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """For parts of the queries, one after the other: their keys and softmax weights, both (..., n, c)."""
        size = -(-q.shape[-2] // chosen.shape[-1])
        for queries, of_part in zip(q.split(size, -2), clusters.split(size, -1), strict=True):
            keys = take_rows(chosen, of_part)
            logits = queries[..., None, :] @ _take(k, keys).mT
            yield keys, logits.squeeze(-2).softmax(-1)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, window: Window) -> Tensor:
        weights, clusters = self._attend(q, k, window)
        chosen, share, rest = self._strongest(weights)
        out = take_rows((rest @ at_least_float32(v)).to(v.dtype), clusters)
        share = take_rows(share.to(v.dtype), clusters)
        end = 0
        for keys, own in self._by_parts(q, k, chosen, clusters):
            start, end = end, end + own.shape[-2]
            strongest = (own[..., None, :] @ _take(v, keys)).squeeze(-2)
            out[..., start:end, :] += share[..., start:end, :] * strongest
        return out

    def matrix(self, q: Tensor, k: Tensor, window: Window) -> Tensor:
        weights, clusters = self._attend(q, k, window)
        chosen, share, rest = self._strongest(weights)
        out, share = (take_rows(x.to(q.dtype), clusters) for x in (rest, share))
        end = 0
        for keys, own in self._by_parts(q, k, chosen, clusters):
            start, end = end, end + own.shape[-2]
            out[..., start:end, :].scatter_(-1, keys, share[..., start:end, :] * own)
        return out

    def flops(self, windows: int, heads: int, tokens: int, dim: int, dim_v: int) -> int:
        strongest = 2 * windows * heads * tokens * min(self.keys, tokens) * (dim + dim_v)
        return super().flops(windows, heads, tokens, dim, dim_v) + strongest


def _take(tokens: Tensor, index: Tensor) -> Tensor:
    """Tokens (..., n, c, d) of ``tokens`` (..., N, d) by their numbers (..., n, c)."""
    return take_rows(tokens, index.flatten(-2)).unflatten(-2, index.shape[-2:])
