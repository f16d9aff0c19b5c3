"""Nyströmformer: Nyström approximation of the softmax matrix."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from nystra_bench.attention.base import Attention, Window
from nystra_bench.attention.landmarks import pooled_landmarks, refuses_landmarks
from nystra_bench.attention.parameters import check_whole_numbers
from nystra_bench.attention.pinv import INITS, razavi_pinv
from nystra_bench.attention.precision import at_least_float32

from .common import refuses_more_than_tokens

LANDMARKS_FROM = ("segments", "cells")


class NystromformerAttention(Attention):
    """Nyströmformer of Xiong et al. (arXiv 2102.03902), without its learned convolution of the values.

    ``softmax(Q K'^T) Z softmax(Q' K^T) V``, where Z is the pseudo-inverse of ``softmax(Q' K'^T)`` by the iteration of
    Razavi et al., started from ``A^T / (|A|_1 |A|_inf)``, and the m landmarks Q', K' are means of N/m tokens
    in succession; here the tokens of a window row by row. Where m does not divide N, segments overlap
    by a token, as in adaptive average pooling (the authors pad with zeros).
    O(N m (d + d_v) + m^3) time, O(N m) memory; the pseudo-inverse is in float32 at least. Rows of the matrix sum to one
    as far as the iteration has converged; entries may be negative. Position bias and shift mask are ignored. With
    as many landmarks as tokens and a well-conditioned softmax matrix it is softmax attention.

    Args:
        landmarks: m, the number of landmarks; 64 for 512 tokens in the paper.
        iterations: steps of the pseudo-inverse's iteration; the paper's are 6.
        init: its start, with the norms of each ``matrix`` as in the paper's formula, or with their maxima over the
            whole tensor, ``global``, as in the authors' code (see ``razavi_pinv``).
        landmarks_from: means of ``segments`` of the row of tokens, the paper's, or of the ``cells`` of a grid.

    Raises:
        ValueError: a parameter is out of its range.
    """

    exact_with_all_landmarks = True

    def __init__(
        self, landmarks: int = 16, iterations: int = 6, init: str = "matrix", landmarks_from: str = "segments"
    ):
        super().__init__()
        check_whole_numbers(landmarks=(landmarks, 1))
        check_whole_numbers(iterations=(iterations, 0))
        for parameter, value, accepted in (("init", init, INITS), ("landmarks_from", landmarks_from, LANDMARKS_FROM)):
            if value not in accepted:
                raise ValueError(f"{parameter}={value} is unknown: accepted are {', '.join(accepted)}")
        self.landmarks = landmarks
        self.iterations = iterations
        self.init = init
        self.landmarks_from = landmarks_from

    def refuses(self, height: int, width: int) -> str | None:
        refuses = refuses_landmarks if self.landmarks_from == "cells" else refuses_more_than_tokens
        return refuses(self.landmarks, height, width)

    def _means(self, tokens: Tensor, window: Window) -> Tensor:
        """The landmarks, (B * nW, H, m, d)."""
        if self.landmarks_from == "cells":
            return pooled_landmarks(tokens, window.height, window.width, self.landmarks)
        if window.tokens % self.landmarks == 0:
            return tokens.unflatten(-2, (self.landmarks, -1)).mean(-2)
        return F.adaptive_avg_pool1d(tokens.mT.flatten(0, 1), self.landmarks).mT.unflatten(0, tokens.shape[:2])

    def _factors(self, q: Tensor, k: Tensor, window: Window) -> tuple[Tensor, Tensor, Tensor]:
        """softmax(QK'^T) (..., N, m), Z (..., m, m) in float32 at least, and softmax(Q'K^T) (..., m, N)."""
        q_marks, k_marks = self._means(q, window), self._means(k, window)
        small = at_least_float32(q_marks @ k_marks.mT).softmax(-1)
        inverse = razavi_pinv(small, self.iterations, self.init)
        return (q @ k_marks.mT).softmax(-1), inverse, (q_marks @ k.mT).softmax(-1)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, window: Window) -> Tensor:
        left, inverse, right = self._factors(q, k, window)
        return left @ (inverse @ at_least_float32(right @ v)).to(v.dtype)

    def matrix(self, q: Tensor, k: Tensor, window: Window) -> Tensor:
        left, inverse, right = self._factors(q, k, window)
        return left @ (inverse @ at_least_float32(right)).to(q.dtype)

    def flops(self, windows: int, heads: int, tokens: int, dim: int, dim_v: int) -> int:
        m, n = self.landmarks, tokens
        kernels = 2 * n * m * dim + m * m * dim
        inverse = 4 * self.iterations * m**3
        products = 2 * n * m * dim_v + m * m * dim_v
        return 2 * windows * heads * (kernels + inverse + products)
