"""Exact softmax attention, written as the published models write it."""

from __future__ import annotations

from torch import Tensor

from nystra_bench.attention.base import Attention, Window, add_bias_and_mask


class ExactAttention(Attention):
    """softmax(QK^T + B + M) V in separate operations (Swin, arXiv 2103.14030, eq. 4): the reference.

    Time and memory O(N^2) a window. The position bias is assembled at every call, as the published code does.
    """

    exact = True
    rows_sum_to_one = True
    permutation_equivariant = True
    uses_bias = True
    uses_mask = True

    def forward(self, q: Tensor, k: Tensor, v: Tensor, window: Window) -> Tensor:
        return self.matrix(q, k, window) @ v

    def matrix(self, q: Tensor, k: Tensor, window: Window) -> Tensor:
        return add_bias_and_mask(q @ k.transpose(-2, -1), window).softmax(-1)

    def flops(self, windows: int, heads: int, tokens: int, dim: int, dim_v: int) -> int:
        return 2 * windows * heads * tokens * tokens * (dim + dim_v)
