"""nystra_plus, version 5: exact attention to the clusters that matter to a block of queries, means for the rest."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nystra_bench.attention.base import MASKED, Attention, Window
from nystra_bench.attention.clusters import (
    NOBODY,
    Clusters,
    Selection,
    along_a_path,
    between,
    farthest_points,
    squared_distances,
    sums_by,
)
from nystra_bench.attention.folding import folded_bias
from nystra_bench.attention.landmarks import central_tokens, refuses_landmarks
from nystra_bench.attention.parameters import check_whole_numbers
from nystra_bench.attention.precision import at_least_float32

CANDIDATES = 4
"""Tokens that a cluster's seed is chosen among, for each cluster."""

APART = 100.0
"""Times the features of a cluster's region: no token of another region then joins it."""

SLAB = 4_000_000
"""Numbers that a step makes at once: 16 MB of float32, which the caches of processors hold."""


class NystraPlusV5Attention(Attention):
    """Ours, version 5: near keys one by one, far keys by the means of their clusters, one softmax over both.

    The tokens of a window and head are put into m clusters by their keys, and stored in the order of their clusters,
    which are numbered along a path from each to the nearest; so queries that stand together have similar keys, and as
    images are smooth, ask for similar ones. For each block of N / m queries in this order

    1. the clusters are ranked by what their means would lose: the weight that the block gives to a cluster, times the
       spread of its keys, over their number;
    2. the keys of the first clusters, K in all, are attended one by one, and each token to itself in any case;
    3. each other cluster c is one key, its mean, with the weight ``n_c exp(q k_c)``, and one value, its mean;
    4. one softmax goes over all of them;
    5. what is then still wrong at the block's mean query, which is known exactly at the cost of one query, is taken
       off all queries of the block.

    Rows sum to one, no matrix is inverted, and with all tokens as landmarks it is exact. The position bias is folded
    into the features, ``[Q F][K G]^T = Q K^T + B``; the regions of shifted windows are features, too, which give the
    pairs within a region the 100 that Swin's mask takes off the others.

    Multiply-adds a token and head, D = d + r: ``m (4 D + 2 d) + K (D + d)``. With m = 2 sqrt(N) and K = 4 sqrt(N),
    the defaults, all of it grows like N^1.5.

    Args:
        landmarks: m, the number of clusters; None for 2 sqrt(N).
        exact_keys: K, the keys that a block of queries attends one by one, at most; None for 4 sqrt(N).
        bias_rank: r, the number of features that stand for the position bias; 0 leaves it out.
        clustering: steps of Lloyd's k-means on all tokens, before all join their nearest cluster.
        residual: whether step 5 is done.

    Raises:
        ValueError: a parameter is out of its range.
    """

    version = "5.1"
    uses_bias = True
    folds_bias = True
    uses_mask = True
    rows_sum_to_one = True
    exact_with_all_landmarks = True

    def __init__(
        self,
        landmarks: int | None = None,
        exact_keys: int | None = None,
        bias_rank: int = 8,
        clustering: int = 1,
        residual: bool = True,
    ):
        super().__init__()
        if landmarks is not None:
            check_whole_numbers(landmarks=(landmarks, 1))
        if exact_keys is not None:
            check_whole_numbers(exact_keys=(exact_keys, 0))
        check_whole_numbers(bias_rank=(bias_rank, 0), clustering=(clustering, 0))
        if not isinstance(residual, bool):
            raise ValueError(f"residual={residual} is unknown: accepted are true, false")
        self.landmarks = landmarks
        self.exact_keys = exact_keys
        self.bias_rank = bias_rank
        self.uses_bias = self.folds_bias = bias_rank > 0
        self.clustering = clustering
        self.residual = residual

    def sizes(self, tokens: int) -> Sizes:
        """m and K in windows of N tokens."""
        root = math.isqrt(tokens)
        landmarks = min(2 * root, tokens) if self.landmarks is None else self.landmarks
        keys = 4 * root if self.exact_keys is None else self.exact_keys
        return Sizes(tokens, landmarks, min(keys, tokens))

    def refuses(self, height: int, width: int) -> str | None:
        if self.landmarks is not None and self.landmarks > height * width:
            return f"landmarks={self.landmarks} exceed the {height * width} tokens of a {height}x{width} window"
        return None

    def forward(self, q: Tensor, k: Tensor, v: Tensor, window: Window) -> Tensor:
        batch, heads, tokens, d_v = v.shape
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
                for i in slabs(len(keys), sizes.weights)
            ]
        )
        return out.view(heads, batch, tokens, d_v).transpose(0, 1).to(v.dtype)

    def matrix(self, q: Tensor, k: Tensor, window: Window) -> Tensor:
        eye = torch.eye(window.tokens, dtype=q.dtype, device=q.device)
        return self.forward(q, k, eye.expand(*q.shape[:-2], -1, -1), window)

    def flops(self, windows: int, heads: int, tokens: int, dim: int, dim_v: int) -> int:
        sizes, dim = self.sizes(tokens), dim + min(self.bias_rank, tokens)
        m, rows = sizes.landmarks, sizes.blocks * (sizes.block + self.residual)
        seeding = min(CANDIDATES * m, tokens) ** 2 * dim
        clustering = (self.clustering + 1) * tokens * m * dim
        attending = rows * (m + sizes.keys) * (dim + dim_v + 2) + sizes.blocks * sizes.block * m
        exact = sizes.blocks * tokens * (dim + dim_v) if self.residual else 0
        return 2 * windows * heads * (seeding + clustering + attending + exact)

    def _features(self, window: Window, heads: int, batch: int, like: Tensor) -> Features:
        nothing = like.new_zeros(heads, window.tokens, 0)
        f, g = (x.to(like) for x in folded_bias(window, self.bias_rank) or (nothing, nothing))
        return Features(f, g, region_features(window, like), batch)

    @torch.no_grad()
    def _seeds(self, k: Tensor, features: Features, window: Window, sizes: Sizes) -> Tensor:
        """The keys with their features (n, m, D) that clusters start from, of keys (n, N, d).

        Far from one another among the tokens in the middle of a grid's cells: those lie apart on the image, too, and
        are outliers less often than the farthest of all tokens. Along a path from each to the nearest, so that blocks
        of queries are cut from neighbouring clusters.
        """
        among = window.cache.once("candidates", lambda: candidates(sizes, window).to(k.device))
        found = []
        for i in slabs(len(k), len(among) ** 2):
            of = features.of(i)
            keys = torch.cat([k[i].index_select(1, among), of.g.index_select(1, among)], -1)
            regions = of.regions.index_select(1, among)
            apart = (-MASKED - regions @ regions.mT) * APART if regions.shape[-1] else 0.0
            distances = squared_distances(keys) + apart
            chosen = farthest_points(distances, sizes.landmarks)
            chosen = chosen.gather(1, along_a_path(between(distances, chosen)))
            found.append(at(torch.cat([keys, regions], -1), chosen))
        return torch.cat(found)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, features: Features, seeds: Tensor, sizes: Sizes) -> Tensor:
        """The whole method (n, N, d_v) for q, k (n, N, d), v (n, N, d_v) of n windows and heads, and their seeds."""
        keys = torch.cat([k, features.g, features.regions], -1)
        member = self._members(keys, seeds, features.regions.shape[-1])
        order = member.argsort(dim=1, stable=True)
        tokens = InBlocks.of(torch.cat([q, features.f, features.regions], -1), keys, v, member, order, sizes)
        clusters = tokens.clusters(sizes)
        queries = tokens.queries
        if self.residual:
            queries = torch.cat([queries, queries.mean(2, keepdim=True)], 2)
        far = Weights.of(torch.bmm(queries.flatten(1, 2), clusters.keys.mT).view(*queries.shape[:3], sizes.landmarks))
        chosen = clusters.select(far.shares(sizes.block), sizes.keys)
        sums = self._sums(queries, far, tokens, clusters, chosen)
        each = sums[..., :-1] / sums[..., -1:]
        out = each[:, :, : sizes.block]
        if self.residual:
            exact = torch.bmm(queries[:, :, -1, :-1], keys.mT).softmax(-1) @ v
            out = out + tokens.of_one_region(exact - each[:, :, -1], features.regions.shape[-1])[:, :, None]
        return at(out.flatten(1, 2), order.argsort(1))

    def _sums(self, queries: Tensor, far: Weights, tokens: InBlocks, clusters: Clusters, chosen: Selection) -> Tensor:
        """Weighted sums of the values, and of ones in the last column: (n, T, b, d_v + 1), or one row a block more.

        Args:
            queries: (n, T, b, D + 1), or with the mean query of each block behind the others.
            far: what they give to the clusters, (n, T, b, m).
        """
        block, width = tokens.queries.shape[2], queries.shape[-1]
        rows = tokens.chosen(chosen)
        near = torch.bmm(queries.flatten(0, 1), rows[..., :width].mT).view(*queries.shape[:3], -1)
        own = torch.nn.functional.pad(tokens.own_logits(), (0, queries.shape[2] - block), value=NOBODY)[..., None]
        top = largest(far.top, near, own)
        near, own, less = (near - top).exp_(), (own - top).exp_(), (far.top - top).exp_()

        # What a token's own key has beyond its part in the cluster that stands for it.
        members = clusters.sizes.gather(1, tokens.member.flatten(1)).view_as(tokens.member)[..., None]
        within = far.weights[:, :, :block].gather(-1, tokens.member[..., None]) / members
        own = own[:, :, :block] - within * less[:, :, :block]
        own = own.masked_fill(chosen.taken.gather(-1, tokens.member)[..., None], 0.0)

        left = far.weights * ~chosen.taken[:, :, None]
        sums = less * torch.bmm(left.flatten(1, 2), clusters.values).view(*queries.shape[:3], -1)
        sums = sums + torch.bmm(near.flatten(0, 1), rows[..., width:]).view_as(sums)
        beyond = own * tokens.in_blocks[..., width:]
        return sums + torch.nn.functional.pad(beyond, (0, 0, 0, queries.shape[2] - block))

    @torch.no_grad()
    def _members(self, keys: Tensor, marks: Tensor, regions: int) -> Tensor:
        """The cluster (n, N) of each token: the nearest of the marks (n, m, D), which the seeds are at first."""
        ones = keys.new_ones(1, 1, 1).expand(*keys.shape[:2], 1)
        for _ in range(self.clustering):
            sums = sums_by(nearest(keys, marks, regions), torch.cat([keys, ones], -1), marks.shape[1])
            marks = torch.where(sums[..., -1:] > 0, sums[..., :-1] / sums[..., -1:], marks)
        return nearest(keys, marks, regions)


@dataclass(frozen=True)
class Sizes:
    """The sizes of a call: N tokens, m landmarks and K keys a block of queries."""

    tokens: int
    landmarks: int
    keys: int

    @property
    def block(self) -> int:
        """Queries of a block; the last one may have fewer."""
        return -(-self.tokens // self.landmarks)

    @property
    def blocks(self) -> int:
        return -(-self.tokens // self.block)

    @property
    def weights(self) -> int:
        """Numbers that a window and head needs at once, about."""
        return self.tokens * (2 * self.landmarks + self.keys)


@dataclass(frozen=True)
class InBlocks:
    """Tokens in the order of their clusters, n windows and heads, cut into T blocks of b; the last one fills up."""

    queries: Tensor
    """(n, T, b, D + 1), their features beside them, and a one"""
    rows: Tensor
    """(n T b + 1, D + 1 + d_v + 1): keys and their features, the logarithm of one, values, a one; at last a row that
    nobody attends to"""
    member: Tensor
    """(n, T, b) int64: the clusters"""

    @classmethod
    def of(cls, queries: Tensor, keys: Tensor, v: Tensor, member: Tensor, order: Tensor, sizes: Sizes) -> InBlocks:
        """Of queries and keys (n, N, D), values (n, N, d_v), clusters and order (n, N)."""
        one = keys.new_ones(1, 1, 1).expand(*keys.shape[:2], 1)
        places = torch.arange(sizes.blocks * sizes.block, device=keys.device).clamp(max=sizes.tokens - 1)
        full = order[:, places]
        rows = at(torch.cat([keys, torch.zeros_like(one), v, one], -1), full).flatten(0, 1)
        nobody = rows.new_zeros(1, rows.shape[-1])
        nobody[:, keys.shape[-1]] = NOBODY
        in_blocks = (len(keys), sizes.blocks, sizes.block)
        queries = at(torch.cat([queries, one], -1), full).view(*in_blocks, -1)
        return cls(queries, torch.cat([rows, nobody]), member.gather(1, full).view(in_blocks))

    @property
    def in_blocks(self) -> Tensor:
        """The rows (n, T, b, D + 1 + d_v + 1), without that of nobody."""
        return self.rows[:-1].view(*self.queries.shape[:3], -1)

    def clusters(self, sizes: Sizes) -> Clusters:
        width = self.queries.shape[-1]
        rows = self.in_blocks.flatten(1, 2)[:, : sizes.tokens]
        member = self.member.flatten(1)[:, : sizes.tokens]
        return Clusters.of(member, rows[..., : width - 1], rows[..., width:], sizes.landmarks)

    def chosen(self, selection: Selection) -> Tensor:
        """The rows (n T, K, D + 1 + d_v + 1) that each block attends to one by one."""
        n, blocks, block = self.member.shape
        numbers = selection.rows(blocks * block, n * blocks * block)
        return self.rows.index_select(0, numbers).view(n * blocks, -1, self.rows.shape[-1])

    def own_logits(self) -> Tensor:
        """(n, T, b), of each token with itself."""
        return torch.linalg.vecdot(self.queries, self.in_blocks[..., : self.queries.shape[-1]])

    def of_one_region(self, rows: Tensor, regions: int) -> Tensor:
        """Rows (n, T, w) of blocks, 0 for blocks with tokens of two regions: their mean query is nobody's."""
        if not regions:
            return rows
        marks = self.queries[..., -1 - regions : -1]
        return rows * (marks.amax(2) == marks.amin(2)).all(-1, keepdim=True)


@dataclass(frozen=True)
class Weights:
    """Exponentials of logits, over those of the largest in their row."""

    weights: Tensor
    """(n, T, b, m)"""
    top: Tensor
    """(n, T, b, 1), the largest logits"""

    @classmethod
    def of(cls, logits: Tensor) -> Weights:
        top = largest(logits)
        return cls((logits - top).exp_(), top)

    @torch.no_grad()
    def shares(self, block: int) -> Tensor:
        """(n, T, m): the first ``block`` rows divided by their sums, and added up."""
        weights = self.weights[:, :, :block]
        return (weights.sum(-1).reciprocal()[:, :, None] @ weights)[:, :, 0]


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

    def of(self, part: slice) -> Features:
        """Those of some windows and heads, counted heads first."""
        numbers = torch.arange(part.start, part.stop, device=self.f.device)
        heads, windows = numbers // self.windows, numbers % self.windows % len(self.regions)
        return Features(self.f[heads], self.g[heads], self.regions[windows], 1)


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


def candidates(sizes: Sizes, window: Window) -> Tensor:
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
    return torch.baddbmm(half_squares, keys, marks.mT).argmax(-1)


@torch.no_grad()
def largest(*logits: Tensor) -> Tensor:
    """The largest (..., 1) of several sets of logits in the last dimension, some of which may be empty."""
    return torch.stack([x.amax(-1, keepdim=True) for x in logits if x.shape[-1]]).amax(0)


def at(rows: Tensor, numbers: Tensor) -> Tensor:
    """The rows (n, M, w) of (n, N, w) with these numbers (n, M)."""
    offsets = torch.arange(len(rows), device=rows.device)[:, None] * rows.shape[1]
    return rows.reshape(-1, rows.shape[-1]).index_select(0, (numbers + offsets).flatten()).view(*numbers.shape, -1)


def slabs(count: int, weights: int) -> Iterator[slice]:
    """All of ``count`` in parts that need about ``SLAB`` numbers at once."""
    step = max(1, SLAB // weights)
    return (slice(start, min(start + step, count)) for start in range(0, count, step))
