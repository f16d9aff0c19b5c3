"""Exact softmax attention in separate operations."""

from __future__ import annotations

from torch import Tensor

from nystra_bench.attention.base import Attention, Window, add_bias_and_mask


class ExactAttention(Attention):
    """softmax(QK^T + B + M) V in separate operations (Swin, arXiv 2103.14030, eq. 4): the reference.

    Time and memory O(N^2) a window. Position bias and mask are made once and kept, as in ``sdpa``; what making them at
    every call costs, as published code does, is the difference to ``exact_published``.
    """

    exact = True
    rows_sum_to_one = True
    permutation_equivariant = True
    uses_bias = True
    uses_mask = True

    def forward(self, q: Tensor, k: Tensor, v: Tensor, window: Window) -> Tensor:
        return self.matrix(q, k, window) @ v

    def matrix(self, q: Tensor, k: Tensor, window: Window) -> Tensor:
        logits = q @ k.transpose(-2, -1)
        return add_bias_and_mask(logits, *self.bias_and_mask(q, window)).softmax(-1)

    def bias_and_mask(self, q: Tensor, window: Window) -> tuple[Tensor | None, Tensor | None]:
        """Position bias (H, N, N) and shift mask (nW, N, N) for queries q; None where there is none."""
        return window.kept_bias(q.dtype), window.kept_mask(q.dtype)

    def flops(self, windows: int, heads: int, tokens: int, dim: int, dim_v: int) -> int:
        return 2 * windows * heads * tokens * tokens * (dim + dim_v)
