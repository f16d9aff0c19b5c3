"""Tokens in clusters: their seeds, their order, and what a cluster is to those who attend to it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

PASSES = 3
"""Over the clusters, from the most important on, in search of some that fit."""


@torch.no_grad()
def farthest_points(distances: Callable[[Tensor], Tensor], count: int, like: Tensor) -> Tensor:
    """Different points that are far from one another: the first, then always the farthest from those that are chosen.

    Args:
        distances: gives those of all points (n, N) from one in each set, whose numbers are (n, 1).
        count: m, how many to choose, at most N.
        like: (n, N, ...), the points.

    Returns:
        Their numbers (n, m) int64, in the order of their choice; the first of several as far ones. (Gonzalez, 1985.)
    """
    nearest = like.new_full(like.shape[:2], torch.inf)
    chosen = torch.zeros(len(like), count, dtype=torch.int64, device=like.device)
    for i in range(1, count):
        last = chosen[:, i - 1 : i]
        nearest = torch.minimum(nearest, distances(last)).scatter(-1, last, -torch.inf)
        chosen[:, i] = nearest.argmax(-1)
    return chosen


def along_a_path(distances: Tensor) -> Tensor:
    """The points in an order in which neighbours are near: from the first one on, always the nearest that is left.

    Args:
        distances: (n, m, m), between all points.

    Returns:
        Their numbers (n, m) int64.
    """
    everyone = torch.arange(len(distances), device=distances.device)
    here = torch.zeros_like(everyone)
    passed = torch.zeros_like(distances[:, 0])
    order = [here]
    for _ in range(distances.shape[1] - 1):
        passed = passed.scatter(1, here[:, None], math.inf)
        here = (distances[everyone, here] + passed).argmin(1)
        order.append(here)
    return torch.stack(order, 1)


def between(distances: Tensor, chosen: Tensor) -> Tensor:
    """The distances (n, m, m) of those (n, C, C) that are between the chosen points (n, m)."""
    rows = distances.gather(1, chosen[:, :, None].expand(-1, -1, distances.shape[2]))
    return rows.gather(2, chosen[:, None].expand(-1, chosen.shape[1], -1))


def squared_distances(points: Tensor) -> Tensor:
    """Between all points (n, C, D): (n, C, C)."""
    squares = points.square().sum(-1, keepdim=True)
    return torch.baddbmm(squares + squares.mT, points, points.mT, alpha=-2)


def sums_by(member: Tensor, rows: Tensor, clusters: int) -> Tensor:
    """Sums (n, m, w) of the rows (n, N, w) of each cluster's members (n, N)."""
    batch, _, width = rows.shape
    offsets = torch.arange(batch, device=member.device)[:, None] * clusters
    index = (member + offsets).flatten()[:, None].expand(-1, width)
    sums = rows.new_zeros(batch * clusters, width).scatter_add(0, index, rows.flatten(0, 1))
    return sums.view(batch, clusters, width)


@dataclass(frozen=True)
class Clusters:
    """Clusters of tokens that are stored in the order of their clusters, n windows and heads."""

    means: Tensor
    """(n, m, w), of the members' rows; 0 where there is none"""
    spread: Tensor
    """(n, m): root of the mean squared distance of the members' keys from their mean"""
    sizes: Tensor
    """(n, m) int64: how many members"""
    starts: Tensor
    """(n, m) int64: the place of the first one"""

    @classmethod
    def of(cls, member: Tensor, rows: Tensor, width: int, clusters: int) -> Clusters:
        """Of tokens (n, N, w), their keys first, of this width, in the order of their clusters (n, N)."""
        batch, tokens = member.shape
        with torch.no_grad():
            sizes = member.new_zeros(batch, clusters).scatter_add_(1, member, torch.ones_like(member))
            starts = sizes.cumsum(1) - sizes
        places = torch.arange(batch * tokens, device=member.device)
        first = (starts + torch.arange(batch, device=member.device)[:, None] * tokens).flatten()
        means = F.embedding_bag(places, rows.flatten(0, 1), first, mode="mean").view(batch, clusters, -1)
        with torch.no_grad():
            squares = rows[..., :width].square().sum(-1)
            squares = squares.new_zeros(batch, clusters).scatter_add_(1, member, squares) / sizes.clamp(min=1)
            spread = (squares - means[..., :width].square().sum(-1)).clamp_(min=0).sqrt_()
            # But for rounding; there is nothing to gain from a single token.
            spread = spread.masked_fill_(sizes < 2, 0.0)
        return cls(means, spread, sizes, starts)

    @property
    def log_sizes(self) -> Tensor:
        """(n, m): logarithms of the numbers of members; minus infinity for those without any."""
        return self.sizes.to(self.means.dtype).log()

    def overlaps(self, begin: Tensor, end: Tensor) -> Tensor:
        """How many members (n, T, m) lie at the places from ``begin`` (T,) up to ``end`` (T,)."""
        starts, ends = self.starts[:, None], (self.starts + self.sizes)[:, None]
        return (torch.minimum(ends, end[:, None]) - torch.maximum(starts, begin[:, None])).clamp_(min=0)

    @torch.no_grad()
    def select(self, weights: Tensor, count: int, own: Tensor, begin: Tensor) -> Selection:
        """The clusters whose means lose most, as many as have ``count`` members together outside a block.

        Args:
            weights: (n, T, m), what each of T blocks of queries gives to each cluster.
            count: K.
            own: (n, T, m), how many members are in the block itself.
            begin: (T,), the place of a block's first token.
        """
        gain = weights * (self.spread / self.sizes.clamp(min=1))[:, None]
        gain, ranked = gain.sort(-1, descending=True)
        own = own.gather(-1, ranked)
        sizes = fitting((at_ranks(self.sizes, ranked) - own).masked_fill_(gain <= 0, 0), count)
        ends = sizes.cumsum(-1)
        taken = torch.zeros_like(weights, dtype=torch.bool).scatter_(-1, ranked, sizes > 0)
        number = torch.arange(count, device=ends.device).expand(*ends.shape[:-1], count).contiguous()
        rank = torch.searchsorted(ends, number, right=True).clamp_(max=ends.shape[-1] - 1)
        place = (at_ranks(self.starts, ranked) - (ends - sizes)).gather(-1, rank) + number
        place += own.gather(-1, rank) * (place >= begin[:, None])  # the block's own tokens are passed over
        return Selection(taken, place, number < ends[..., -1:])


@dataclass(frozen=True)
class Selection:
    """What T blocks of queries attend to one by one beside their own tokens, n windows and heads."""

    taken: Tensor
    """(n, T, m): the clusters"""
    places: Tensor
    """(n, T, K) int64: the places of their members outside the block"""
    there: Tensor
    """(n, T, K): False where there are fewer members, and the place means nothing"""


def fitting(sizes: Tensor, count: int) -> Tensor:
    """The sizes (..., m) of those that are taken, one after the other where they still fit into ``count``; else 0.

    In ``PASSES`` over all: what a large one leaves free is filled up by smaller ones behind it.
    """
    taken = torch.zeros_like(sizes)
    for _ in range(PASSES):
        left = count - taken.sum(-1, keepdim=True)
        further = sizes.masked_fill((taken > 0) | (sizes > left), 0)
        taken += further.masked_fill_(further.cumsum(-1) > left, 0)
    return taken


def at_ranks(of_clusters: Tensor, ranked: Tensor) -> Tensor:
    """(n, T, m) of (n, m), in each block's order (n, T, m)."""
    return of_clusters[:, None].expand_as(ranked).gather(-1, ranked)
