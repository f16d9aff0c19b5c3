"""PISA: the blocks of keys that matter to a block of queries exactly, the others by their means to first order."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nystra_bench.attention.cache import Cache
from nystra_bench.attention.landmarks import landmark_grid
from nystra_bench.attention.parameters import check_whole_numbers

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
        bias_rank: r, the number of features that stand for the position bias; 0 leaves it out.

    Raises:
        ValueError: a parameter is out of its range.
    """

    rows_sum_to_one = True

    def __init__(self, block: int = 16, density: float = 0.1, blocks_from: str = "cells", bias_rank: int = 8):
        super().__init__(bias_rank)
        check_whole_numbers(block=(block, 1))
        if not isinstance(density, (int, float)) or not 0 < density <= 1:
            raise ValueError(f"density={density} is out of range: accepted are numbers above 0, up to 1")
        if blocks_from not in BLOCKS_FROM:
            raise ValueError(f"blocks_from={blocks_from} is unknown: accepted are {', '.join(BLOCKS_FROM)}")
        self.block = block
        self.density = density
        self.blocks_from = blocks_from

    def attend(self, q: Tensor, k: Tensor, v: Tensor, size: Shape, cache: Cache) -> Tensor:
        tokens = q.shape[-2]
        count, critical = self._counts(tokens)
        order, back, sizes = self._order(size, q, cache)
        q, k, v = (self._blocks(x, order, count) for x in (q, k, v))
        q_means, k_means, v_means = (x.sum(-2) / sizes[:, None] for x in (q, k, v))
        chosen = (q_means @ k_means.mT).topk(critical, sorted=False).indices
        # The sum of (k - mean k) v^T is that of k (v - mean v)^T; tokens that fill up a block have k = 0.
        first_order = k.flatten(2, 3).mT @ (v - v_means[..., None, :]).flatten(2, 3) / tokens
        size_logits = sizes.log()
        # 0 for tokens, minus infinity for what fills up the last block.
        real = torch.where(torch.arange(self.block, device=q.device) < sizes[:, None], 0.0, -torch.inf)
        out = torch.empty_like(v)
        step = -(-count // critical)
        for start in range(0, count, step):
            own = slice(start, start + step)
            queries, keys = q[:, :, own], chosen[:, :, own]
            logits = queries @ self._of_blocks(k, keys).mT + real[keys].flatten(-2)[..., None, :]
            means = (queries.flatten(2, 3) @ k_means.mT).unflatten(2, queries.shape[2:4]) + size_logits
            means = means.scatter(-1, keys[..., None, :].expand(*means.shape[:-1], -1), -torch.inf)
            near, far = torch.cat([logits, means], -1).softmax(-1).tensor_split([logits.shape[-1]], -1)
            of_means = (far.flatten(2, 3) @ v_means).unflatten(2, queries.shape[2:4])
            change = (queries.flatten(2, 3) @ first_order).unflatten(2, queries.shape[2:4])
            out[:, :, own] = near @ self._of_blocks(v, keys) + of_means + far.sum(-1, keepdim=True) * change
        return out.flatten(2, 3).index_select(-2, back)

    def _blocks(self, x: Tensor, order: Tensor, count: int) -> Tensor:
        """Tokens (n, H, N, c) in blocks (n, H, count, block, c), the last one filled up with zeros."""
        x = x.index_select(-2, order)
        return F.pad(x, (0, 0, 0, count * self.block - x.shape[-2])).unflatten(-2, (count, self.block))

    @staticmethod
    def _of_blocks(x: Tensor, numbers: Tensor) -> Tensor:
        """All tokens (n, H, g, t * block, c) of blocks (n, H, count, block, c) by the blocks' numbers (n, H, g, t)."""
        taken = take_rows(x.flatten(-2), numbers.flatten(-2))
        return taken.unflatten(-1, x.shape[-2:]).unflatten(2, numbers.shape[-2:]).flatten(3, 4)

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
        first_order = 2 * filled * dim * dim_v
        return 2 * windows * heads * (choosing + attending + first_order)
