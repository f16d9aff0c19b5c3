"""Efficient attention: softmax over the channels of the queries and over the tokens of the keys."""

from __future__ import annotations

from torch import Tensor

from nystra_bench.attention.base import Attention, Window


class EfficientAttention(Attention):
    """Efficient attention of Shen et al. (arXiv 1812.01243), with softmax normalisation.

    ``softmax_channels(Q) (softmax_tokens(K)^T V)``; O(N d d_v) time, O(N d) memory. The paper does not scale the
    queries by 1/sqrt(d), so that scale is taken off q again. It has no parameters. The rows of the matrix sum to one
    by construction, and no entry is negative. Position bias and shift mask are ignored.
    """

    rows_sum_to_one = True
    permutation_equivariant = True

    def _factors(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return (q * q.shape[-1] ** 0.5).softmax(-1), k.softmax(-2)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, window: Window) -> Tensor:
        left, right = self._factors(q, k)
        return left @ (right.mT @ v)

    def matrix(self, q: Tensor, k: Tensor, window: Window) -> Tensor:
        left, right = self._factors(q, k)
        return left @ right.mT

    def flops(self, windows: int, heads: int, tokens: int, dim: int, dim_v: int) -> int:
        return 4 * windows * heads * tokens * dim * dim_v
