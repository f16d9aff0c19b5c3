"""PISA: the blocks of keys that matter to a block of queries exactly, the others by their means to first order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nystra_bench.attention.cache import Cache
from nystra_bench.attention.landmarks import landmark_grid
from nystra_bench.attention.parameters import check_truth, check_whole_numbers

from .common import take_rows
from .regionwise import RegionwiseAttention, Shape

BLOCKS_FROM = ("cells", "segments")


class PISAAttention(RegionwiseAttention):
    """Piecewise sparse attention (PISA) of Li et al. (arXiv 2602.01077).

    Queries and keys are cut into the same blocks. To each block of queries those key blocks are critical whose mean key
    has the largest product with the mean query; ``density`` of all blocks, rounded down, but one at least. Keys of
    critical blocks are attended to exactly. Of any other block b, with n_b keys of mean k_b, each logit is taken to be
    ``q k_b``, and what the keys differ from their mean is made up for to first order, with one matrix for all blocks:

    ``out = (sum over critical j of exp(q k_j) v_j + sum over other b of n_b exp(q k_b) v_b + (g / N) q H) / (sum + g)``

    with v_b the mean value, g the sum of ``n_b exp(q k_b)`` over the other blocks, and H that of ``(k_j - k_b) v_j^T``
    over all tokens, those of critical blocks among them, as in the authors' code. H of equal values is zero, so rows of
    the matrix sum to one; entries may be negative. The last block may have fewer tokens than the others.

    Chosen here: the paper's blocks are tokens in succession; ``blocks_from=cells`` orders a window cell by cell first,
    so that a block is compact. Blocks of 64 tokens, the paper's, would be too few in a window: the default is 16.
    O(N^2 (1 / block + density) (d + d_v) + N d d_v) time, O(N^2 / block) memory: quadratic in N. Blocks of queries are
    served in parts, so that no gathered tensor is larger than k and v. Position bias and shift mask as in
    ``RegionwiseAttention``. With ``density=1`` it is softmax attention.

    Args:
        block: tokens of a block.
        density: share of the key blocks that are critical, above 0; in the paper 0.1 to 0.15.
        blocks_from: ``cells`` of a grid, or ``segments`` of the row of tokens.
        first_order: whether the term with H is there; without, as in one kernel of the authors', means stand alone.
        bias_rank: r, the number of features that stand for the position bias; 0 leaves it out.

    Raises:
        ValueError: a parameter is out of its range.
    """

    rows_sum_to_one = True

    def __init__(
        self,
        block: int = 16,
        density: float = 0.1,
        blocks_from: str = "cells",
        first_order: bool = True,
        bias_rank: int = 8,
    ):
        super().__init__(bias_rank)
        check_whole_numbers(block=(block, 1))
        if not isinstance(density, (int, float)) or not 0 < density <= 1:
            raise ValueError(f"density={density} is out of range: accepted are numbers above 0, up to 1")
        if blocks_from not in BLOCKS_FROM:
            raise ValueError(f"blocks_from={blocks_from} is unknown: accepted are {', '.join(BLOCKS_FROM)}")
        check_truth(first_order=first_order)
        self.block = block
        self.density = density
        self.blocks_from = blocks_from
        self.first_order = first_order

    def attend(self, q: Tensor, k: Tensor, v: Tensor, size: Shape, cache: Cache) -> Tensor:
        count, critical = self._counts(q.shape[-2])
        order, back, sizes = self._order(size, q, cache)
        queries, keys, values = (self._cut(x, order, count) for x in (q, k, v))
        q_means, k_means, v_means = (x.sum(-2) / sizes[:, None] for x in (queries, keys, values))
        # The sum of (k - mean k) v^T is that of k (v - mean v)^T; what fills up a block has k = 0.
        changes = None
        if self.first_order:
            changes = keys.flatten(2, 3).mT @ (values - v_means[..., None, :]).flatten(2, 3)
        blocks = Blocks(keys, values, k_means, v_means, sizes, changes)
        chosen = (q_means @ k_means.mT).topk(critical, sorted=False).indices
        step = -(-count // critical)
        parts = zip(queries.split(step, 2), chosen.split(step, 2), strict=True)
        return torch.cat([_attend(*part, blocks) for part in parts], 2).flatten(2, 3).index_select(-2, back)

    def _cut(self, x: Tensor, order: Tensor, count: int) -> Tensor:
        """Tokens (n, H, N, c) in blocks (n, H, count, block, c), the last one filled up with zeros."""
        x = x.index_select(-2, order)
        return F.pad(x, (0, 0, 0, count * self.block - x.shape[-2])).unflatten(-2, (count, self.block))

    def _counts(self, tokens: int) -> tuple[int, int]:
        """How many blocks there are, and how many of them are critical to one."""
        count = -(-tokens // self.block)
        return count, max(1, int(self.density * count))

    def _order(self, size: Shape, like: Tensor, cache: Cache) -> tuple[Tensor, Tensor, Tensor]:
        """The tokens in the order of their blocks (N,), the places (N,) of the tokens in it, and the blocks' sizes."""

        def make() -> tuple[Tensor, Tensor, Tensor]:
            tokens = size[0] * size[1]
            place = torch.arange(tokens)
            if self.blocks_from == "cells":
                height, width = landmark_grid(self.block, *size)
                row, column = place // size[1] // height, place % size[1] // width
                place = (row * size[1] + column) * tokens + place
            order = place.argsort()
            count, _ = self._counts(tokens)
            sizes = torch.full((count,), float(self.block))
            sizes[-1] = tokens - (count - 1) * self.block
            return order.to(like.device), order.argsort().to(like.device), sizes.to(like)

        return cache.once(("order", size, like.dtype), make)

    def flops(self, windows: int, heads: int, tokens: int, dim: int, dim_v: int) -> int:
        count, critical = self._counts(tokens)
        filled, dim = count * self.block, self.width(tokens, dim)
        choosing = count * count * dim
        attending = filled * (count + critical * self.block) * (dim + dim_v)
        first_order = 2 * filled * dim * dim_v if self.first_order else 0
        return 2 * windows * heads * (choosing + attending + first_order)


@dataclass(frozen=True)
class Blocks:
    """Keys and values in blocks; the last one is filled up with zeros."""

    keys: Tensor
    """(n, H, count, block, d)"""
    values: Tensor
    """(n, H, count, block, d_v)"""
    key_means: Tensor
    """(n, H, count, d)"""
    value_means: Tensor
    """(n, H, count, d_v)"""
    sizes: Tensor
    """(count,), the number of tokens in each"""
    changes: Tensor | None
    """(n, H, d, d_v), H, the sum of ``(k - mean k of its block) v^T`` over all tokens; None for zeroth order"""

    def taken(self, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values (n, H, g, t * block, c) of the blocks of these numbers (n, H, g, t), one after another.

        And (n, H, g, 1, t * block), for logits: 0 for tokens, minus infinity for what fills up a block.
        """
        place = torch.arange(self.keys.shape[-2], device=numbers.device)
        filling = torch.where(place < self.sizes[:, None], 0.0, -torch.inf)
        keys, values = (
            take_rows(x.flatten(-2), numbers.flatten(-2)).unflatten(-1, x.shape[-2:]) for x in (self.keys, self.values)
        )
        keys, values = (x.unflatten(2, numbers.shape[-2:]).flatten(3, 4) for x in (keys, values))
        return keys, values, filling[numbers].flatten(-2)[..., None, :]


def _attend(queries: Tensor, critical: Tensor, blocks: Blocks) -> Tensor:
    """Output (n, H, g, block, d_v) of blocks of queries (n, H, g, block, d), to each of which t blocks are critical."""
    shape, rows = queries.shape[2:4], queries.flatten(2, 3)
    keys, values, filling = blocks.taken(critical)
    exact = queries @ keys.mT + filling
    means = (rows @ blocks.key_means.mT).unflatten(2, shape) + blocks.sizes.log()
    means = means.scatter(-1, critical[..., None, :].expand(*means.shape[:-1], -1), -torch.inf)
    near, far = torch.cat([exact, means], -1).softmax(-1).tensor_split([exact.shape[-1]], -1)
    others = far.flatten(2, 3) @ blocks.value_means
    if blocks.changes is not None:
        others = others + far.sum(-1).flatten(2)[..., None] / blocks.sizes.sum() * (rows @ blocks.changes)
    return near @ values + others.unflatten(2, shape)
