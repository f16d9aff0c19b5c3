"""Softmax attention to keys and values that are averaged over the cells of a grid."""

from __future__ import annotations

import torch
from torch import Tensor

from nystra_bench.attention.base import Attention, Window
from nystra_bench.attention.landmarks import pooled_landmarks, refuses_landmarks
from nystra_bench.attention.parameters import check_whole_numbers


class PooledAttention(Attention):
    """``softmax(Q K'^T) V'``, where K' and V' are keys and values averaged over the m cells of a grid.

    The spatial reduction by average pooling of PVT v2 (Wang et al., arXiv 2106.13797, "linear SRA"), without its
    learned projection, normalisation and activation after the pooling. O(N m (d + d_v)) time, O(N m) memory. The matrix
    is row-stochastic. Position bias and shift mask are ignored. With as many landmarks as tokens it is softmax
    attention.

    Args:
        landmarks: m, the number of cells.

    Raises:
        ValueError: a parameter is out of its range.
    """

    rows_sum_to_one = True
    exact_with_all_landmarks = True

    def __init__(self, landmarks: int = 16):
        super().__init__()
        check_whole_numbers(landmarks=(landmarks, 1))
        self.landmarks = landmarks

    def refuses(self, height: int, width: int) -> str | None:
        return refuses_landmarks(self.landmarks, height, width)

    def _pooled(self, tokens: Tensor, window: Window) -> Tensor:
        return pooled_landmarks(tokens, window.height, window.width, self.landmarks)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, window: Window) -> Tensor:
        return (q @ self._pooled(k, window).mT).softmax(-1) @ self._pooled(v, window)

    def matrix(self, q: Tensor, k: Tensor, window: Window) -> Tensor:
        return self.forward(q, k, torch.eye(q.shape[-2], dtype=q.dtype, device=q.device), window)

    def flops(self, windows: int, heads: int, tokens: int, dim: int, dim_v: int) -> int:
        return 2 * windows * heads * tokens * self.landmarks * (dim + dim_v)
