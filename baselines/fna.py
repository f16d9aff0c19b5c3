"""Fast Nyström attention: Nyströmformer's factors with single tokens, far from one another, as landmarks."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from nystra_bench.attention.cache import Cache
from nystra_bench.attention.clusters import farthest_points
from nystra_bench.attention.parameters import check_whole_numbers
from nystra_bench.attention.pinv import razavi_pinv

from .common import refuses_more_than_tokens, take_rows
from .regionwise import RegionwiseAttention, Shape


class FNAAttention(RegionwiseAttention):
    """Fast Nyström attention (FNA) of Lu, Liao, Wang, Yang and Shi (arXiv 2507.16018).

    ``softmax(Q K_S^T) Z softmax(Q_S K^T) V``, where the landmarks are queries and keys of m single tokens S, and Z is
    the pseudo-inverse of ``softmax(Q_S K_S^T)`` by six steps of the iteration of Razavi et al., started from
    ``A^T / |A|_1`` (the rows of A sum to one). S is found by farthest-point sampling, one set for all heads.

    The authors sample among the inputs of the layer, and keep the set for the layers that follow. An attention here
    sees neither: it samples in each layer among the keys of all heads side by side, in balance and with the features of
    the bias, from the window's first token on. The authors also let known sinks of a vision transformer be landmarks
    in any case; the windows here have none.
    O(N m (d + d_v) + m^3) time, O(N m) memory. Rows of the matrix sum to one as far as the iteration has converged;
    entries may be negative. Position bias and shift mask as in ``RegionwiseAttention``. With as many landmarks as
    tokens and a well-conditioned softmax matrix it is softmax attention.

    Args:
        landmarks: m, the number of tokens that are landmarks; all of a region that has fewer.
        iterations: steps of the pseudo-inverse's iteration; the paper's are 6.
        bias_rank: r, the number of features that stand for the position bias; 0 leaves it out.

    Raises:
        ValueError: a parameter is out of its range.
    """

    exact_with_all_landmarks = True

    def __init__(self, landmarks: int = 16, iterations: int = 6, bias_rank: int = 8):
        super().__init__(bias_rank)
        check_whole_numbers(landmarks=(landmarks, 1), iterations=(iterations, 0))
        self.landmarks = landmarks
        self.iterations = iterations

    def refuses(self, height: int, width: int) -> str | None:
        return refuses_more_than_tokens(self.landmarks, height, width)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, size: Shape, cache: Cache) -> Tensor:
        count = min(self.landmarks, k.shape[-2])
        points = k.transpose(1, 2).flatten(2)
        chosen = farthest_points(distances_among(points), count, points)[:, None].expand(-1, k.shape[1], -1)
        q_marks, k_marks = take_rows(q, chosen), take_rows(k, chosen)
        inverse = razavi_pinv((q_marks @ k_marks.mT).softmax(-1), self.iterations)
        return (q @ k_marks.mT).softmax(-1) @ (inverse @ ((q_marks @ k.mT).softmax(-1) @ v))

    def flops(self, windows: int, heads: int, tokens: int, dim: int, dim_v: int) -> int:
        m, n, dim = self.landmarks, tokens, self.width(tokens, dim)
        sampling = (m - 1) * n * dim
        kernels = 2 * n * m * dim + m * m * dim
        inverse = 4 * self.iterations * m**3
        products = 2 * n * m * dim_v + m * m * dim_v
        return 2 * windows * heads * (sampling + kernels + inverse + products)


def distances_among(points: Tensor) -> Callable[[Tensor], Tensor]:
    """What gives the squared distances (n, N) of points (n, N, c) from one in each set, by their numbers (n, 1)."""
    points = points - points.mean(-2, keepdim=True)  # distances are differences of squares: the smaller, the better
    squares = points.square().sum(-1)

    def distances(last: Tensor) -> Tensor:
        product = points @ take_rows(points, last).mT
        return squares + squares.gather(-1, last) - 2 * product.squeeze(-1)

    return distances
