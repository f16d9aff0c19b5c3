"""nystra_plus, version 5: exact attention to the clusters that matter to a block of queries, means for the rest."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nystra_bench.attention.base import MASKED, Attention, Window
from nystra_bench.attention.clusters import NOBODY, Clusters, farthest_points, squared_distances, sums_by
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

    The tokens of a window and head are put into m clusters by their keys, and stored in the order of their clusters;
    so queries that stand together have similar keys, and as images are smooth, ask for similar ones. For each block of
    N / m queries in this order

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

    Multiply-adds a token and head, D = d + r: ``m (4 D + 2 d) + K (D + d)``. With m = sqrt(N) and K = 4 sqrt(N), the
    defaults, all of it grows like N^1.5.

    Args:
        landmarks: m, the number of clusters; None for sqrt(N).
        exact_keys: K, the keys that a block of queries attends one by one, at most; None for 4 sqrt(N).
        bias_rank: r, the number of features that stand for the position bias; 0 leaves it out.
        clustering: steps of Lloyd's k-means on all tokens, before all join their nearest cluster.
        residual: whether step 5 is done.

    Raises:
        ValueError: a parameter is out of its range.
    """

    version = "5.0"
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
        landmarks = root if self.landmarks is None else self.landmarks
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
        attending = rows * (m + sizes.keys) * (dim + dim_v + 2)
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
        are outliers less often than the farthest of all tokens.
        """
        among = window.cache.once("candidates", lambda: candidates(sizes, window).to(k.device))
        found = []
        for i in slabs(len(k), len(among) ** 2):
            of = features.of(i)
            keys = torch.cat([k[i].index_select(1, among), of.g.index_select(1, among)], -1)
            regions = of.regions.index_select(1, among)
            apart = (-MASKED - regions @ regions.mT) * APART if regions.shape[-1] else 0.0
            chosen = farthest_points(squared_distances(keys) + apart, sizes.landmarks)
            found.append(at(torch.cat([keys, regions], -1), chosen))
        return torch.cat(found)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, features: Features, seeds: Tensor, sizes: Sizes) -> Tensor:
        """The whole method (n, N, d_v) for q, k (n, N, d), v (n, N, d_v) of n windows and heads, and their seeds."""
        n, tokens, block, blocks = len(q), sizes.tokens, sizes.block, sizes.blocks
        regions = features.regions.shape[-1]
        one = v.new_ones(1, 1, 1).expand(n, tokens, 1)
        keys = torch.cat([k, features.g, features.regions], -1)
        dim = keys.shape[-1]

        # In the order of clusters; the last token fills the last block up, and a row that nobody attends to comes last.
        member = self._members(keys, seeds, regions)
        order = member.argsort(dim=1, stable=True)
        full = order[:, torch.arange(blocks * block, device=q.device).clamp(max=tokens - 1)]
        member = member.gather(1, full)
        rows = at(torch.cat([keys, torch.zeros_like(one), v, one], -1), full).flatten(0, 1)
        filler = torch.cat([rows.new_zeros(dim), rows.new_tensor([NOBODY]), rows.new_zeros(v.shape[-1] + 1)])
        rows = torch.cat([rows, filler[None]])
        ordered = rows[:-1].view(n, blocks * block, -1)
        queries = at(torch.cat([q, features.f, features.regions, one], -1), full).view(n, blocks, block, dim + 1)
        if self.residual:
            mean = queries.mean(2, keepdim=True)
            queries = torch.cat([queries, mean], 2)

        clusters = Clusters.of(
            member[:, :tokens], ordered[:, :tokens, :dim], ordered[:, :tokens, dim + 1 :], sizes.landmarks
        )
        far = torch.bmm(queries.flatten(1, 2), clusters.keys.mT).view(*queries.shape[:3], sizes.landmarks)
        selection = clusters.select(far[:, :, :block].softmax(-1).mean(2), sizes.keys)
        near_rows = rows.index_select(0, selection.rows(blocks * block, n * blocks * block))
        near_rows = near_rows.view(n * blocks, sizes.keys, rows.shape[-1])
        near = torch.bmm(queries.flatten(0, 1), near_rows[..., : dim + 1].mT).view(*queries.shape[:3], sizes.keys)

        # Each token's own key, where its cluster stands for it.
        in_blocks = ordered.view(n, blocks, block, -1)
        member = member.view(n, blocks, block)
        own = torch.linalg.vecdot(queries[:, :, :block], in_blocks[..., : dim + 1])
        top = far.detach().amax(-1, keepdim=True)
        if sizes.keys:
            top = torch.maximum(top, near.detach().amax(-1, keepdim=True))
        top[:, :, :block] = torch.maximum(top[:, :, :block], own.detach()[..., None])
        far, near = (far - top).exp_(), (near - top).exp_()
        members = clusters.sizes.gather(1, member.flatten(1)).view_as(member)
        within = far[:, :, :block].gather(-1, member[..., None])[..., 0] / members
        own = ((own - top[:, :, :block, 0]).exp_() - within).masked_fill(selection.taken.gather(-1, member), 0.0)

        far = far * ~selection.taken[:, :, None]
        out = torch.bmm(near.flatten(0, 1), near_rows[..., dim + 1 :]).view(*queries.shape[:3], -1)
        out = out + torch.bmm(far.flatten(1, 2), clusters.values).view_as(out)
        each = out[:, :, :block] + own[..., None] * in_blocks[..., dim + 1 :]
        each = each[..., :-1] / each[..., -1:]
        if self.residual:
            exact = torch.bmm(mean[:, :, 0, :dim], keys.mT).softmax(-1) @ v
            wrong = exact - out[:, :, block, :-1] / out[:, :, block, -1:]
            if regions:  # a mean query of two regions is nobody's
                marks = queries[:, :, :block, dim - regions : dim]
                wrong = wrong * (marks.amax(2) == marks.amin(2)).all(-1, keepdim=True)
            each = each + wrong[:, :, None]
        return at(each.flatten(1, 2), order.argsort(1))

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


def at(rows: Tensor, numbers: Tensor) -> Tensor:
    """The rows (n, M, w) of (n, N, w) with these numbers (n, M)."""
    offsets = torch.arange(len(rows), device=rows.device)[:, None] * rows.shape[1]
    return rows.reshape(-1, rows.shape[-1]).index_select(0, (numbers + offsets).flatten()).view(*numbers.shape, -1)


def slabs(count: int, weights: int) -> Iterator[slice]:
    """All of ``count`` in parts that need about ``SLAB`` numbers at once."""
    step = max(1, SLAB // weights)
    return (slice(start, min(start + step, count)) for start in range(0, count, step))
