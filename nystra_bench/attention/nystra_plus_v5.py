"""nystra_plus, version 5: exact attention to the clusters that matter to a block of queries, means for the rest."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from nystra_bench.attention.base import MASKED, Attention, Window
from nystra_bench.attention.blocks import PROBED, InBlocks, OrderedBias, Sizes, at, fused, slabs
from nystra_bench.attention.calibration import CalibratedAttention
from nystra_bench.attention.clusters import (
    Clusters,
    along_a_path,
    between,
    farthest_points,
    squared_distances,
    sums_by,
)
from nystra_bench.attention.folding import folded_bias
from nystra_bench.attention.landmarks import central_tokens, refuses_landmarks
from nystra_bench.attention.pairs import BiasOfPairs, bias_of_pairs
from nystra_bench.attention.parameters import check_truth, check_whole_numbers
from nystra_bench.attention.precision import at_least_float32
from nystra_bench.attention.sdpa import FusedAttention

LANDMARKS = (16, 32, 64, 128)
BIAS_RANKS = (2, 8, 24)
"""What a target deviation chooses from, with twice as many keys as landmarks."""

CANDIDATES = 4
"""Tokens that a cluster's seed is chosen among, for each cluster."""

APART = 100.0
"""Times the features of a cluster's region: no token of another region then joins it."""

SAMPLE = 4
"""Every so many-th token takes part in Lloyd's steps."""

SLAB = 4_000_000
"""Numbers that a step makes at once: 16 MB of float32."""


class NystraPlusV5Attention(CalibratedAttention):
    """Ours, version 5: near keys one by one, far keys by the means of their clusters, one softmax over both.

    The tokens of a window and head are put into m clusters by their keys, and stored in the order of their clusters,
    which are numbered along a path from each to the nearest; so queries that stand together have similar keys, and as
    images are smooth, ask for similar ones. Each block of b queries in this order attends, in one fused call, to

    1. the block's own tokens, one by one;
    2. the tokens of the clusters whose means would lose most, K in all, one by one: they are ranked by the weight that
       the block gives to a cluster, times the spread of its keys, over their number;
    3. the mean of each other cluster c, with the weight ``n_c exp(q k_c)``; of a cluster that lies partly in the block,
       that of its rest.

    What is then still wrong at m mean queries, which is known exactly at the cost of one query each, is taken off the
    N / m queries behind it.

    Rows sum to one, no matrix is inverted, and with all tokens as landmarks, or all keys one by one, it is exact. The
    position bias of what is attended one by one is exact, too; for clusters, and for what is asked of means, it is
    folded into the features, ``[Q F][K G]^T = Q K^T + B``. The regions of shifted windows are features as well, which
    give the pairs within a region the 100 that Swin's mask takes off the others.

    Windows of few tokens are attended exactly, by the fused kernel, where that takes less time.

    Multiply-adds a token and head, D = d + r: about ``(b + K + 2 m) 2 D + 1.4 m D`` with b = max(32, N / m); in the
    kernel ``(b + K) 2 d + 5.4 m D``. With m = 16 N^(1/4) and K = 32 N^(1/4), the defaults, all of it grows like N^1.25
    up to N = 65,536.

    Args:
        landmarks: m, the number of clusters; None for 16 N^(1/4).
        exact_keys: K, the keys that a block of queries attends one by one beside its own, at most; None for
            32 N^(1/4).
        bias_rank: r, the number of features that stand for the position bias of clusters; 0 leaves the bias out.
        clustering: steps of Lloyd's k-means on every fourth token, before all join their nearest cluster.
        residual: whether mean queries are looked at.
        exact_up_to: tokens of the largest windows that are attended exactly; None for 1,024 where neither landmarks nor
            exact_keys are given, and for none where they are.
        target_deviation: PSNR in dB that the output is to keep with that of exact attention. Landmarks, keys and rank
            are then chosen for each layer on a few images (``calibration.choose``), the other parameters as they are.

    Raises:
        ValueError: a parameter is out of its range.
    """

    version = "5.5"
    uses_bias = True
    folds_bias = True
    uses_mask = True
    rows_sum_to_one = True
    exact_with_all_landmarks = True
    exact_usually = 1024
    """Tokens of the largest windows in which clusters take no less time than fused exact attention (docs/RESEARCH.md):
    those are attended exactly where nothing else is asked for."""

    def __init__(
        self,
        landmarks: int | None = None,
        exact_keys: int | None = None,
        bias_rank: int = 8,
        clustering: int = 1,
        residual: bool = True,
        exact_up_to: int | None = None,
        target_deviation: float | None = None,
    ):
        super().__init__(target_deviation)
        given = {"landmarks": (landmarks, 1), "exact_keys": (exact_keys, 0), "exact_up_to": (exact_up_to, 0)}
        check_whole_numbers(**{name: (value, least) for name, (value, least) in given.items() if value is not None})
        check_whole_numbers(bias_rank=(bias_rank, 0), clustering=(clustering, 0))
        check_truth(residual=residual)
        self.landmarks = landmarks
        self.exact_keys = exact_keys
        self.bias_rank = bias_rank
        self.uses_bias = self.folds_bias = bias_rank > 0
        self.clustering = clustering
        self.residual = residual
        self.exact_up_to = exact_up_to
        self._exact = FusedAttention()
        self._ran: str | None = None

    def sizes(self, tokens: int) -> Sizes:
        """m and K in windows of N tokens."""
        root = tokens**0.25
        landmarks = min(round(16 * root), tokens) if self.landmarks is None else self.landmarks
        keys = round(32 * root) if self.exact_keys is None else self.exact_keys
        return Sizes(tokens, landmarks, min(keys, tokens))

    def is_exact(self, tokens: int) -> bool:
        """Whether windows of N tokens are attended exactly."""
        if self.exact_up_to is not None:
            return tokens <= self.exact_up_to
        return tokens <= self.exact_usually and self.landmarks is None and self.exact_keys is None

    def about(self) -> dict[str, str]:
        """``kernel``: ``exact`` where the windows of the last call were, else ``clusters``."""
        return {"kernel": self._ran} if self._ran else self.told_by_layers()

    def candidates(self) -> dict[str, Attention]:
        return {
            f"landmarks={landmarks} exact_keys={2 * landmarks} bias_rank={rank}": self.of_sizes(landmarks, rank)
            for landmarks in LANDMARKS
            for rank in BIAS_RANKS
        }

    def of_sizes(self, landmarks: int, bias_rank: int) -> NystraPlusV5Attention:
        """One that is like this otherwise, with twice as many keys as landmarks."""
        others = self.clustering, self.residual, self.exact_up_to
        return NystraPlusV5Attention(landmarks, 2 * landmarks, bias_rank, *others)

    def refuses(self, height: int, width: int) -> str | None:
        if self.target_deviation is None and self.landmarks is not None and self.landmarks > height * width:
            return f"landmarks={self.landmarks} exceed the {height * width} tokens of a {height}x{width} window"
        return None

    def forward(self, q: Tensor, k: Tensor, v: Tensor, window: Window) -> Tensor:
        batch, heads, tokens, d_v = v.shape
        self._ran = "exact" if self.is_exact(tokens) else "clusters"
        if self.is_exact(tokens):
            return self._exact.attend(q, k, v, window.kept_bias(q.dtype) if self.uses_bias else None, window)
        sizes = self.sizes(tokens)
        # Heads first: all windows of a head share the features of the bias.
        queries, keys, values = (
            at_least_float32(x.transpose(0, 1)).reshape(heads * batch, tokens, -1) for x in (q, k, v)
        )
        features = self._features(window, heads, batch, keys)
        seeds = self._seeds(keys, features, window, sizes)
        out = torch.cat(
            [
                self._attend(queries[i], keys[i], values[i], features.of(i), seeds[i], sizes)
                for i in slabs(len(keys), 2 * tokens * sizes.landmarks, SLAB)
            ]
        )
        return out.view(heads, batch, tokens, d_v).transpose(0, 1).to(v.dtype)

    def matrix(self, q: Tensor, k: Tensor, window: Window) -> Tensor:
        eye = torch.eye(window.tokens, dtype=q.dtype, device=q.device)
        return self.forward(q, k, eye.expand(*q.shape[:-2], -1, -1), window)

    def flops(self, windows: int, heads: int, tokens: int, dim: int, dim_v: int) -> int:
        if self.is_exact(tokens):
            return self._exact.flops(windows, heads, tokens, dim, dim_v)
        sizes, rank = self.sizes(tokens), min(self.bias_rank, tokens)
        asked = self.clustering * len(range(SAMPLE // 2 % tokens, tokens, SAMPLE)) + tokens  # for their nearest cluster
        probes = sizes.blocks * sizes.block // PROBED
        clusters = (asked + probes) * sizes.landmarks * (dim + rank)
        means = sizes.groups if self.residual else 0
        return 2 * windows * heads * (clusters + self._products(sizes, means, dim, rank, dim_v))

    def _products(self, sizes: Sizes, means: int, dim: int, rank: int, dim_v: int) -> int:
        """Multiply-adds of seeds, rests, and attention, with so many mean queries a block.

        Values are filled up to the width of keys (``blocks.fused``).
        """
        wide, block = dim + rank, sizes.block
        seeds = min(CANDIDATES * sizes.landmarks, sizes.tokens) ** 2 * wide
        rests = 2 * block * (wide + dim_v)
        near = block * (block + sizes.keys) * rank  # what the features say of their bias
        attending = ((block + means) * sizes.rows + means * sizes.tokens) * (wide + max(wide, dim_v))
        return seeds + sizes.blocks * (rests + near + attending)

    def _features(self, window: Window, heads: int, batch: int, like: Tensor) -> Features:
        nothing = like.new_zeros(heads, window.tokens, 0)
        f, g = (x.to(like) for x in folded_bias(window, self.bias_rank) or (nothing, nothing))
        pairs = bias_of_pairs(window, like) if self.bias_rank else None
        return Features(f, g, region_features(window, like), batch, pairs)

    @torch.no_grad()
    def _seeds(self, k: Tensor, features: Features, window: Window, sizes: Sizes) -> Tensor:
        """The keys with their features (n, m, D) that clusters start from, of keys (n, N, d).

        Far from one another among the tokens in the middle of a grid's cells: those lie apart on the image, too, and
        are outliers less often than the farthest of all tokens. Along a path from each to the nearest, so that blocks
        of queries are cut from neighbouring clusters.
        """
        among = window.cache.once("candidates", lambda: places_of_candidates(sizes, window).to(k.device))
        found = []
        for i in slabs(len(k), len(among) ** 2, SLAB):
            of = features.of(i)
            keys = torch.cat([k[i].index_select(1, among), of.g.index_select(1, among)], -1)
            regions = of.regions.index_select(1, among)
            distances = squared_distances(keys)
            if regions.shape[-1]:
                distances += (-MASKED - regions @ regions.mT) * APART
            chosen = farthest_points(partial(row_of, distances), sizes.landmarks, keys)
            chosen = chosen.gather(1, along_a_path(between(distances, chosen)))
            found.append(at(torch.cat([keys, regions], -1), chosen))
        return torch.cat(found)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, features: Features, seeds: Tensor, sizes: Sizes) -> Tensor:
        """The whole method (n, N, d_v) for q, k (n, N, d), v (n, N, d_v) of n windows and heads, and their seeds."""
        keys = torch.cat([k, features.g, features.regions], -1)
        regions, d_v = features.regions.shape[-1], v.shape[-1]
        member = self._members(keys, seeds, regions)
        order = sorted_by(member, sizes.landmarks)
        tokens = InBlocks.of(torch.cat([q, features.f, features.regions], -1), keys, v, member, order, sizes)
        clusters = Clusters.of(tokens.member, tokens.rows, keys.shape[-1], sizes.landmarks)
        probes = tokens.probes()
        attended = tokens.attended(clusters, probes, sizes, features.in_order(order, q.shape[-1]))
        if self.residual:
            means = probes.unflatten(2, (sizes.groups, -1)).mean(3)
            out = attended.by(torch.cat([tokens.queries, means], 2), d_v)
            out, guess = out.split([sizes.block, sizes.groups], 2)
            wrong = fused(means.flatten(1, 2), tokens.rows, None, d_v).view_as(guess) - guess
            wrong = tokens.of_one_region(wrong, regions)
            out = out + wrong.repeat_interleave(sizes.block // sizes.groups, 2)
        else:
            out = attended.by(tokens.queries, d_v)
        out = out.flatten(1, 2)[:, : sizes.tokens].flatten(0, 1)
        return torch.empty_like(out).index_copy_(0, order, out).view_as(v)

    @torch.no_grad()
    def _members(self, keys: Tensor, marks: Tensor, regions: int) -> Tensor:
        """The cluster (n, N) of each token: the nearest of the marks (n, m, D), which the seeds are at first."""
        some = keys[:, SAMPLE // 2 % keys.shape[1] :: SAMPLE]
        for _ in range(self.clustering):
            sums = sums_by(nearest(some, marks, regions), F.pad(some, (0, 1), value=1.0), marks.shape[1])
            marks = torch.where(sums[..., -1:] > 0, sums[..., :-1] / sums[..., -1:], marks)
        return nearest(keys, marks, regions)


@dataclass(frozen=True)
class Features:
    """What stands beside queries and keys: of the bias F and G, the same for all windows of a head, and of regions."""

    f: Tensor
    """(H, N, r); of n windows and heads after ``of``"""
    g: Tensor
    regions: Tensor
    """(nW, N, regions)"""
    windows: int
    """B * nW, the windows of a head in the batch"""
    pairs: BiasOfPairs | None
    """the bias itself; None where there is none"""
    heads: Tensor | None = None
    """(n,), the numbers of the heads after ``of``"""

    def of(self, part: slice) -> Features:
        """Those of some windows and heads, counted heads first."""
        numbers = torch.arange(part.start, part.stop, device=self.f.device)
        heads, windows = numbers // self.windows, numbers % self.windows % len(self.regions)
        return Features(self.f[heads], self.g[heads], self.regions[windows], 1, self.pairs, heads)

    def in_order(self, order: Tensor, dim: int) -> OrderedBias | None:
        """The exact bias of tokens in the order of their clusters, all their numbers (n N,); None where there is none.

        Args:
            dim: d, the columns of queries and keys before those of the features.
        """
        if self.pairs is None or self.heads is None:
            return None
        _, tokens, rank = self.f.shape
        return OrderedBias(self.pairs, self.heads, order.view(-1, tokens) % tokens, slice(dim, dim + rank))


def region_features(window: Window, like: Tensor) -> Tensor:
    """Features (nW, N, regions) of tokens, whose products are 100 within a region and 0 between two.

    A window without regions has no columns. Made once for all layers of maps with the same regions.
    """
    nothing = like.new_zeros(1, window.tokens, 0)
    if not window.has_regions:
        return nothing

    def make() -> Tensor:
        regions = window.regions()
        if regions is None:
            return nothing
        # Numbered within each window, so that there are as many columns as a window has regions at most.
        numbers = [row.unique(return_inverse=True)[1] for row in regions]
        return torch.nn.functional.one_hot(torch.stack(numbers)).to(like) * math.sqrt(-MASKED)

    return window.shared.once(("region features", like.dtype), make)


def places_of_candidates(sizes: Sizes, window: Window) -> Tensor:
    """Numbers of the tokens that seeds are chosen among: in the middle of a grid's cells, or all if they are few."""
    count = min(CANDIDATES * sizes.landmarks, sizes.tokens)
    if count == sizes.tokens:
        return torch.arange(count)
    if refuses_landmarks(count, window.height, window.width) is None:
        return central_tokens(count, window.height, window.width)
    return (torch.arange(count) * sizes.tokens + sizes.tokens // 2) // count  # a strip too narrow for the grid


def nearest(keys: Tensor, marks: Tensor, regions: int) -> Tensor:
    """The number (n, N) of the nearest mark (n, m, D) to each key (n, N, D), in its region: the last columns."""
    if regions:
        marks = torch.cat([marks[..., :-regions], marks[..., -regions:] * APART], -1)
    plain = marks[..., : marks.shape[-1] - regions]
    half_squares = plain.square().sum(-1)[:, None].mul(-0.5)
    return torch.baddbmm(half_squares, keys, marks.mT).max(-1).indices


def sorted_by(member: Tensor, clusters: int) -> Tensor:
    """The numbers (n N,) of all tokens, window by window, in the order of their clusters (n, N).

    Sorted as one row of 32-bit numbers, for which PyTorch has a faster way.
    """
    windows = torch.arange(len(member), device=member.device)[:, None] * clusters
    return (member + windows).flatten().int().sort(stable=True).indices


def row_of(distances: Tensor, last: Tensor) -> Tensor:
    """Row ``last`` (n, 1) of each matrix (n, C, C): (n, C)."""
    return distances.gather(1, last[..., None].expand(-1, -1, distances.shape[2]))[:, 0]
