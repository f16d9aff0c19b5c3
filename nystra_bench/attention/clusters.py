"""Tokens in clusters: their seeds, their members, their order, and what a cluster is to those who attend to it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

NOBODY = -1e4
"""Logit of empty clusters, and of rows that fill a block up: its exponential is 0."""

PASSES = 3
"""Over the clusters, from the most important on, in search of some that fit."""


def farthest_points(distances: Tensor, count: int) -> Tensor:
    """Points that are far from one another: the first, then always the farthest from those that are chosen.

    Args:
        distances: (b, C, C), squared, between all candidates.
        count: m, how many to choose, at most C.

    Returns:
        Their numbers (b, m) int64, in the order of their choice. (Gonzalez, 1985.)
    """
    chosen = [torch.zeros(len(distances), dtype=torch.int64, device=distances.device)]
    everyone = torch.arange(len(distances), device=distances.device)
    nearest = distances[:, 0]
    for _ in range(count - 1):
        farthest = nearest.argmax(1)
        chosen.append(farthest)
        nearest = torch.minimum(nearest, distances[everyone, farthest])
    return torch.stack(chosen, 1)


def along_a_path(distances: Tensor) -> Tensor:
    """The points in an order in which neighbours are near: from the first one on, always the nearest that is left.

    Args:
        distances: (b, m, m), between all points.

    Returns:
        Their numbers (b, m) int64.
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
    """The distances (b, m, m) of those (b, C, C) that are between the chosen points (b, m)."""
    rows = distances.gather(1, chosen[:, :, None].expand(-1, -1, distances.shape[2]))
    return rows.gather(2, chosen[:, None].expand(-1, chosen.shape[1], -1))


def squared_distances(points: Tensor) -> Tensor:
    """Between all points (b, C, D): (b, C, C)."""
    squares = points.square().sum(-1, keepdim=True)
    return torch.baddbmm(squares + squares.mT, points, points.mT, alpha=-2)


def sums_by(member: Tensor, rows: Tensor, clusters: int) -> Tensor:
    """Sums (b, m, w) of the rows (b, N, w) of each cluster's members (b, N)."""
    batch, _, width = rows.shape
    offsets = torch.arange(batch, device=member.device)[:, None] * clusters
    index = (member + offsets).flatten()[:, None].expand(-1, width)
    sums = rows.new_zeros(batch * clusters, width).scatter_add(0, index, rows.flatten(0, 1))
    return sums.view(batch, clusters, width)


@dataclass(frozen=True)
class Clusters:
    """Clusters of tokens that are stored in the order of their clusters, n windows and heads."""

    keys: Tensor
    """(n, m, D + 1): the mean of the members' keys, and the logarithm of their number"""
    values: Tensor
    """(n, m, w): the mean of the members' values"""
    spread: Tensor
    """(n, m): root of the mean squared distance of the members' keys from their mean"""
    sizes: Tensor
    """(n, m) int64: how many members"""
    starts: Tensor
    """(n, m) int64: the place of the first one"""

    @classmethod
    def of(cls, member: Tensor, keys: Tensor, values: Tensor, clusters: int) -> Clusters:
        """Of tokens with keys (n, N, D) and values (n, N, w), in the order of their clusters (n, N)."""
        with torch.no_grad():
            numbers = torch.arange(clusters, device=member.device).expand(len(member), -1).contiguous()
            starts = torch.searchsorted(member.contiguous(), numbers)
            ends = torch.searchsorted(member.contiguous(), numbers, right=True)
            sizes = ends - starts
        squares = keys.square().sum(-1, keepdim=True)
        means = sums_by(member, torch.cat([keys, squares, values], -1), clusters) / sizes.clamp(min=1)[..., None]
        of_keys, of_squares, of_values = means.split([keys.shape[-1], 1, values.shape[-1]], -1)
        spread = (of_squares[..., 0] - of_keys.square().sum(-1)).clamp(min=0).sqrt()
        spread = spread.masked_fill(sizes < 2, 0.0)  # but for rounding; there is nothing to gain from a single token
        weights = torch.where(sizes > 0, sizes.clamp(min=1).to(keys.dtype).log(), NOBODY)
        return cls(torch.cat([of_keys, weights[..., None]], -1), of_values, spread, sizes, starts)

    @torch.no_grad()
    def select(self, weights: Tensor, count: int) -> Selection:
        """The clusters whose means lose most, as many as have ``count`` members together.

        Args:
            weights: (n, T, m), what each of T blocks of queries gives to each cluster.
            count: K.
        """
        gain = weights * (self.spread / self.sizes.clamp(min=1))[:, None]
        gain, ranked = gain.sort(-1, descending=True)
        sizes = fitting(at_ranks(self.sizes, ranked).masked_fill(gain <= 0, 0), count)
        ends = sizes.cumsum(-1)
        taken = torch.zeros_like(weights, dtype=torch.bool).scatter(-1, ranked, sizes > 0)
        place = torch.arange(count, device=ends.device).expand(*ends.shape[:-1], count).contiguous()
        rank = torch.searchsorted(ends, place, right=True).clamp(max=ends.shape[-1] - 1)
        first = at_ranks(self.starts, ranked) - (ends - sizes)
        return Selection(taken, first.gather(-1, rank) + place, place < ends[..., -1:])


@dataclass(frozen=True)
class Selection:
    """What T blocks of queries attend to one by one, n windows and heads."""

    taken: Tensor
    """(n, T, m): the clusters"""
    places: Tensor
    """(n, T, K) int64: the places of their members"""
    there: Tensor
    """(n, T, K): False where there are fewer members, and the place means nothing"""

    def rows(self, stride: int, filler: int) -> Tensor:
        """Numbers (n * T * K,) of rows, ``stride`` to a window and head; ``filler`` for those that are not there."""
        offsets = torch.arange(len(self.places), device=self.places.device)[:, None, None] * stride
        return torch.where(self.there, self.places + offsets, filler).flatten()


def fitting(sizes: Tensor, count: int) -> Tensor:
    """The sizes (..., m) of those that are taken, one after the other where they still fit into ``count``; else 0.

    In ``PASSES`` over all: what a large one leaves free is filled up by smaller ones behind it.
    """
    taken = torch.zeros_like(sizes)
    for _ in range(PASSES):
        left = count - taken.sum(-1, keepdim=True)
        further = sizes.masked_fill((taken > 0) | (sizes > left), 0)
        taken = taken + further.masked_fill(further.cumsum(-1) > left, 0)
    return taken


def at_ranks(of_clusters: Tensor, ranked: Tensor) -> Tensor:
    """(n, T, m) of (n, m), in each block's order (n, T, m)."""
    return of_clusters[:, None].expand_as(ranked).gather(-1, ranked)
