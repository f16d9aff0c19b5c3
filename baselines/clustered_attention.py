"""Clustered attention: the queries of a cluster share the attention of their mean."""

from __future__ import annotations

import torch
from torch import Tensor

from nystra_bench.attention.base import Attention, Window
from nystra_bench.attention.parameters import check_whole_numbers
from nystra_bench.attention.precision import at_least_float32

from .common import (
    gaussian_directions,
    one_hot,
    refuses_more_than_tokens,
    take_rows,
)


class ClusteredAttention(Attention):
    """Clustered attention of Vyas, Katharopoulos and Fleuret (arXiv 2007.04825).

    The N queries are put into m clusters; every query gets the softmax attention of its cluster's mean query.
    Clustering as in the paper: each query becomes ``bits`` signs of random affine functions (locality-sensitive
    hashing), and Lloyd's k-means runs on these codes with the Hamming distance, its centres being majorities bit
    by bit. As in the authors' code the hashes have a normal offset, on queries without the scale 1/sqrt(d). The
    centres start from the codes of tokens at equal distances (from random ones in that code), a centre without members
    stays as it is, and a tied bit too: so each window and head is clustered by itself, and always in the same way.
    Distances and majorities are matrix products of signs, and counted as such, where the authors' kernels count bits.
    O(N m (iterations bits + d + d_v)) time, O(N (m + bits)) memory. The matrix is row-stochastic. Position bias and
    shift mask are ignored.

    Args:
        landmarks: m, the number of clusters; the paper's are 25 to 200, for longer sequences.
        iterations: of Lloyd's algorithm; the paper's are 10.
        bits: of the hashes; the paper's are 63.
        seed: of the hashes, which all windows, heads and layers share.

    Raises:
        ValueError: a parameter is out of its range.
    """

    version = "2"
    rows_sum_to_one = True

    def __init__(self, landmarks: int = 16, iterations: int = 10, bits: int = 63, seed: int = 0):
        super().__init__()
        check_whole_numbers(landmarks=(landmarks, 1), iterations=(iterations, 0), bits=(bits, 1), seed=(seed, 0))
        self.landmarks = landmarks
        self.iterations = iterations
        self.bits = bits
        self.seed = seed

    def refuses(self, height: int, width: int) -> str | None:
        return refuses_more_than_tokens(self.landmarks, height, width)

    def clusters(self, q: Tensor, window: Window) -> Tensor:
        """Number of the cluster of each query, (B * nW, H, N) int64."""
        codes = self._codes(at_least_float32(q), window)
        starts = torch.arange(self.landmarks, device=q.device) * window.tokens // self.landmarks
        centres = codes[..., starts, :]
        for _ in range(self.iterations):
            members = one_hot(_nearest(codes, centres), self.landmarks, codes.dtype)
            votes = members.mT @ codes
            centres = torch.where(votes == 0, centres, votes.sign())
        return _nearest(codes, centres)

    def _codes(self, q: Tensor, window: Window) -> Tensor:
        """Hash of each query as signs -1 and 1, (B * nW, H, N, bits)."""
        offset_like = q.new_empty(0, 1)
        directions = gaussian_directions(window, self.bits, q, self.seed)
        offsets = gaussian_directions(window, self.bits, offset_like, self.seed + 1)[:, 0]
        projected = q * q.shape[-1] ** 0.5 @ directions.mT + offsets
        return torch.where(projected >= 0, 1.0, -1.0).to(q.dtype)

    def _attend(self, q: Tensor, k: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        """Attention of each cluster (B * nW, H, m, N) in float32 at least, and the queries' clusters (B * nW, H, N)."""
        clusters = self.clusters(q, window)
        q, k = at_least_float32(q), at_least_float32(k)
        members = one_hot(clusters, self.landmarks, q.dtype)
        means = members.mT @ q / members.sum(-2).clamp(min=1)[..., None]
        return (means @ k.mT).softmax(-1), clusters

    def forward(self, q: Tensor, k: Tensor, v: Tensor, window: Window) -> Tensor:
        weights, clusters = self._attend(q, k, window)
        return take_rows((weights @ at_least_float32(v)).to(v.dtype), clusters)

    def matrix(self, q: Tensor, k: Tensor, window: Window) -> Tensor:
        weights, clusters = self._attend(q, k, window)
        return take_rows(weights.to(q.dtype), clusters)

    def flops(self, windows: int, heads: int, tokens: int, dim: int, dim_v: int) -> int:
        m = self.landmarks
        clustering = self.bits * dim + (2 * self.iterations + 1) * self.bits * m
        return 2 * windows * heads * tokens * (clustering + m * (2 * dim + dim_v))


def _nearest(codes: Tensor, centres: Tensor) -> Tensor:
    """The centre at the least Hamming distance from each code; the first of several."""
    return (codes @ centres.mT).argmax(-1)
