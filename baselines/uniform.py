"""Uniform attention, a control: what is left when the attention no longer depends on queries and keys."""

from __future__ import annotations

from torch import Tensor

from nystra_bench.attention.base import Attention, Window


class UniformAttention(Attention):
    """Every token gets the mean of all values of its window: softmax attention with all logits equal.

    A control without a paper. O(N) time and memory. It has no parameters. Position bias and shift mask are ignored.
    The matrix has 1/N everywhere.
    """

    rows_sum_to_one = True
    permutation_equivariant = True

    def forward(self, q: Tensor, k: Tensor, v: Tensor, window: Window) -> Tensor:
        return v.mean(-2, keepdim=True).expand_as(v)

    def matrix(self, q: Tensor, k: Tensor, window: Window) -> Tensor:
        tokens = q.shape[-2]
        return q.new_full((*q.shape[:-1], tokens), 1 / tokens)

    def flops(self, windows: int, heads: int, tokens: int, dim: int, dim_v: int) -> int:
        return 0
