"""Tokens in the order of their clusters, cut into blocks, and what each block of queries attends to."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nystra_bench.attention.clusters import Clusters
from nystra_bench.attention.pairs import BiasOfPairs

BLOCK = 32
"""Queries of a block, at least: with fewer, each takes the fused kernel longer."""

PROBED = 8
"""Neighbouring queries whose mean tells what they look for."""

GATHERED = 500_000
"""Numbers that are gathered at once for the fused kernel, which then finds them in the processor's caches."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of a call: N tokens, m landmarks, and K keys a block of queries beside its own."""

    tokens: int
    landmarks: int
    keys: int

    @property
    def block(self) -> int:
        """b, the queries of a block: N / m if these are enough; the last block may have fewer."""
        return PROBED * math.ceil(max(BLOCK, self.tokens / self.landmarks) / PROBED)

    @property
    def blocks(self) -> int:
        """T"""
        return -(-self.tokens // self.block)

    @property
    def groups(self) -> int:
        """Groups of a block's queries with a mean query each: about as many in all as there are landmarks."""
        return max(r for r in (1, 2, 4) if r == 1 or r * self.tokens <= self.block * self.landmarks)

    @property
    def rows(self) -> int:
        """What a block attends to: its own tokens, K keys, m means, and the rests of the two clusters at its ends."""
        return self.block + self.keys + self.landmarks + 2


@dataclass(frozen=True)
class InBlocks:
    """Tokens in the order of their clusters, n windows and heads; their queries in T blocks, the last one filled up."""

    queries: Tensor
    """(n, T, b, D), their features beside them"""
    rows: Tensor
    """(n, N, D + d_v): keys and their features, values"""
    member: Tensor
    """(n, N) int64: the clusters"""

    @classmethod
    def of(cls, queries: Tensor, keys: Tensor, v: Tensor, member: Tensor, order: Tensor, sizes: Sizes) -> InBlocks:
        """Of queries and keys (n, N, D), values (n, N, d_v), clusters (n, N), and all their numbers (n N,) in order."""
        rows = torch.cat([keys, v], -1)
        queries, rows, member = (x.flatten(0, 1).index_select(0, order).view_as(x) for x in (queries, rows, member))
        return cls(in_blocks(queries, sizes), rows, member)

    def probes(self) -> Tensor:
        """Means (n, T, b / 8, D) of neighbouring queries."""
        return self.queries.unflatten(2, (-1, PROBED)).mean(3)

    def attended(self, clusters: Clusters, probes: Tensor, sizes: Sizes, bias: OrderedBias | None) -> Attended:
        """What each block attends to, as its probes (n, T, p, D) tell, with the exact bias where it does one by one."""
        n, blocks, block, width = self.queries.shape
        tokens, device = sizes.tokens, self.rows.device
        with torch.no_grad():
            weights = torch.baddbmm(clusters.log_sizes[:, None], probes.flatten(1, 2), clusters.means[..., :width].mT)
            weights = weights.softmax(-1).view(*probes.shape[:3], -1).sum(2)
            places = torch.arange(blocks * block, device=device).view(blocks, block)
            begin, end = places[:, 0], (places[:, -1] + 1).clamp(max=tokens)
            overlaps = clusters.overlaps(begin, end)
            chosen = clusters.select(weights, sizes.keys, overlaps, begin)
        there, places = places < tokens, places.clamp(max=tokens - 1)
        rests, log_rests = self._rests(there, clusters, chosen.taken, sizes)
        table = torch.cat([self.rows, clusters.means, rests.flatten(1, 2)], 1)
        means = torch.arange(sizes.landmarks + 2 * blocks, device=device) + tokens
        means, places_of_rests = means.split([sizes.landmarks, 2 * blocks])
        numbers = [
            places.expand(n, -1, -1),
            chosen.places.masked_fill(~chosen.there, 0),
            means.expand(n, blocks, -1),
            places_of_rests.view(blocks, 2).expand(n, -1, -1),
        ]
        log_sizes = [
            nothing_but(there.expand(n, -1, -1), table),
            nothing_but(chosen.there, table),
            clusters.log_sizes[:, None].masked_fill(chosen.taken | (overlaps > 0), -math.inf),
            log_rests,
        ]
        offsets = torch.arange(n, device=device)[:, None, None] * table.shape[1]
        near = None if bias is None else bias.near(numbers[0], torch.cat(numbers[:2], -1))
        return Attended(table.flatten(0, 1), torch.cat(numbers, -1) + offsets, torch.cat(log_sizes, -1), near)

    def _rests(self, there: Tensor, clusters: Clusters, taken: Tensor, sizes: Sizes) -> tuple[Tensor, Tensor]:
        """Means (n, T, 2, D + d_v) of what the first and the last cluster of a block have outside it.

        And the logarithms of their numbers (n, T, 2), minus infinity for nothing, and for what is attended one by one.

        Args:
            there: (T, b), False for what fills the last block up.
            taken: (n, T, m), the clusters that are attended one by one.
        """
        member = in_blocks(self.member, sizes)
        ends = member[..., [0, -1]]
        here = (member[:, :, None] == ends[..., None]) & there[:, None]
        own = here.to(self.rows) @ in_blocks(self.rows, sizes)
        members = clusters.sizes.gather(1, ends.flatten(1)).view_as(ends)
        left = members - here.sum(-1)
        sums = at(clusters.means, ends.flatten(1)).view_as(own) * members[..., None] - own
        gone = taken.gather(-1, ends)
        gone[..., 1] |= ends[..., 0] == ends[..., 1]
        return sums / left.clamp(min=1)[..., None], left.to(sums.dtype).log().masked_fill(gone, -math.inf)

    def of_one_region(self, rows: Tensor, regions: int) -> Tensor:
        """Rows (n, T, g, w) of groups of queries, 0 for those of two regions: their mean query is nobody's."""
        if not regions:
            return rows
        marks = self.queries[..., -regions:].unflatten(2, (rows.shape[2], -1))
        return rows * (marks.amax(3) == marks.amin(3)).all(-1, keepdim=True)


@dataclass(frozen=True)
class Attended:
    """What each of T blocks of queries attends to, L rows a block, n windows and heads."""

    table: Tensor
    """(all rows, D + d_v): keys with their features, and values"""
    numbers: Tensor
    """(n, T, L) int64, of rows in the table"""
    log_sizes: Tensor
    """(n, T, L): logarithms of the numbers of tokens that they stand for; minus infinity where there is none"""
    near: NearBias | None
    """of the first rows of each block"""

    def by(self, queries: Tensor, d_v: int) -> Tensor:
        """Attention (n, T, M, d_v) of queries (n, T, M, D): of each block those it has, and others behind them."""
        numbers, log_sizes, blocks = (x.flatten(0, 1) for x in (self.numbers, self.log_sizes, queries))
        out = []
        for i in slabs(len(blocks), numbers.shape[1] * self.table.shape[1], GATHERED):
            rows = self.table.index_select(0, numbers[i].flatten()).view(*numbers[i].shape, -1)
            added = log_sizes[i, None]
            if self.near is not None:
                added = self.near.added_to(added, i, blocks[i], rows)
            out.append(fused(blocks[i], rows, added, d_v))
        return torch.cat(out).view(*queries.shape[:-1], d_v)


@dataclass(frozen=True)
class OrderedBias:
    """The position bias of tokens that are stored in the order of their clusters, n windows and heads."""

    pairs: BiasOfPairs
    heads: Tensor
    """(n,) int64"""
    tokens: Tensor
    """(n, N) int64: which one stands at each place"""
    features: slice
    """the columns of queries and keys that say nearly the same"""

    def near(self, queries: Tensor, keys: Tensor) -> NearBias:
        """That of T blocks of queries and keys at the places (n, T, b) and (n, T, L')."""
        blocks = keys.shape[1]
        queries, keys = (self.tokens.gather(1, p.flatten(1)).view(-1, p.shape[2]) for p in (queries, keys))
        return NearBias(self.pairs, self.heads.repeat_interleave(blocks), queries, keys, self.features)


@dataclass(frozen=True)
class NearBias:
    """The position bias of blocks of queries and the keys that they attend to one by one, n windows and heads."""

    pairs: BiasOfPairs
    heads: Tensor
    """(n T,) int64"""
    queries: Tensor
    """(n T, b) int64, numbers of tokens"""
    keys: Tensor
    """(n T, L') int64, of the first rows that a block attends to"""
    features: slice

    def added_to(self, log_sizes: Tensor, part: slice, queries: Tensor, rows: Tensor) -> Tensor:
        """What is added to the logits (p, M, L) of some blocks' queries (p, M, D) and rows (p, L, D + d_v).

        For the first b queries and the first L' rows, beside the logarithms (p, 1, L), what the bias is beyond what the
        features say of it: means are asked for and ask by features alone.
        """
        many, near = self.queries.shape[1], self.keys.shape[1]
        f, g = queries[:, :many, self.features], rows[:, :near, self.features]
        beyond = self.pairs.of(self.heads[part], self.queries[part], self.keys[part]).baddbmm(f, g.mT, alpha=-1)
        added = log_sizes.repeat(1, queries.shape[1], 1)
        added[:, :many, :near] += beyond
        return added


def fused(queries: Tensor, rows: Tensor, added: Tensor | None, d_v: int) -> Tensor:
    """Attention (n, b, d_v) of queries (n, b, D) to rows (n, L, D + d_v) of keys and values, in one fused call.

    PyTorch's kernel for CPUs wants values as wide as keys: it is given the last columns of the keys with them.

    Args:
        added: to the logits, (n, 1 or b, L).
    """
    width = queries.shape[-1]
    keys, values = rows[..., :width], rows[..., -max(width, d_v) :]
    mask = None if added is None else added[None]
    out = F.scaled_dot_product_attention(queries[None], keys[None], values[None], attn_mask=mask, scale=1.0)
    return out[0, ..., -d_v:]


def in_blocks(tokens: Tensor, sizes: Sizes) -> Tensor:
    """Tokens (n, N, ...) as (n, T, b, ...); the last one fills up."""
    if missing := sizes.blocks * sizes.block - sizes.tokens:
        tokens = torch.cat([tokens, tokens[:, -1:].repeat_interleave(missing, 1)], 1)
    return tokens.unflatten(1, (sizes.blocks, sizes.block))


def nothing_but(there: Tensor, like: Tensor) -> Tensor:
    """Logarithms of one and, where there is nothing, of zero."""
    return torch.zeros_like(there, dtype=like.dtype).masked_fill_(~there, -math.inf)


def at(rows: Tensor, numbers: Tensor) -> Tensor:
    """The rows (n, M, w) of (n, N, w) with these numbers (n, M)."""
    offsets = torch.arange(len(rows), device=rows.device)[:, None] * rows.shape[1]
    return rows.reshape(-1, rows.shape[-1]).index_select(0, (numbers + offsets).flatten()).view(*numbers.shape, -1)


def slabs(count: int, numbers: int, at_once: int) -> Iterator[slice]:
    """All of ``count``, in parts that need about ``at_once`` numbers where each needs so many."""
    step = max(1, at_once // max(1, numbers))
    return (slice(start, min(start + step, count)) for start in range(0, count, step))
