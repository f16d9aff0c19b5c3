"""Agent attention: a few pooled queries collect the values, and the queries collect from them."""

from __future__ import annotations

from torch import Tensor

from nystra_bench.attention.base import Attention, Window
from nystra_bench.attention.landmarks import pooled_landmarks, refuses_landmarks
from nystra_bench.attention.parameters import check_whole_numbers


class AgentAttention(Attention):
    """Agent attention of Han et al. (arXiv 2312.08874), without what it would have to learn.

    ``softmax(Q A^T / sqrt(d)) softmax(A K^T / sqrt(d)) V``, where the m agents A are the queries averaged over the
    cells of a grid. Agent bias and depth-wise convolution, both learned, are left out. q arrives scaled, so the first
    product takes the agents at their original length.
    O(N m (d + d_v)) time, O(N m) memory. Both factors are row-stochastic, and so is the matrix. Position bias and
    shift mask are ignored.

    Args:
        landmarks: m, the number of agents.

    Raises:
        ValueError: a parameter is out of its range.
    """

    rows_sum_to_one = True

    def __init__(self, landmarks: int = 16):
        super().__init__()
        check_whole_numbers(landmarks=(landmarks, 1))
        self.landmarks = landmarks

    def refuses(self, height: int, width: int) -> str | None:
        return refuses_landmarks(self.landmarks, height, width)

    def _factors(self, q: Tensor, k: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        agents = pooled_landmarks(q, window.height, window.width, self.landmarks)
        unscaled = agents * q.shape[-1] ** 0.5
        return (q @ unscaled.mT).softmax(-1), (agents @ k.mT).softmax(-1)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, window: Window) -> Tensor:
        left, right = self._factors(q, k, window)
        return left @ (right @ v)

    def matrix(self, q: Tensor, k: Tensor, window: Window) -> Tensor:
        left, right = self._factors(q, k, window)
        return left @ right

    def flops(self, windows: int, heads: int, tokens: int, dim: int, dim_v: int) -> int:
        return 4 * windows * heads * tokens * self.landmarks * (dim + dim_v)
