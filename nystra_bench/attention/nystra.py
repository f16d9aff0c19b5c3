"""PnP-Nystra as published: Nyström attention with an exponential kernel, no bias, no mask."""

from __future__ import annotations

from torch import Tensor

from nystra_bench.attention.base import Attention, Window
from nystra_bench.attention.landmarks import pooled_landmarks, refuses_landmarks
from nystra_bench.attention.parameters import check_whole_numbers
from nystra_bench.attention.pinv import INITS, razavi_pinv
from nystra_bench.attention.precision import at_least_float32


class NystraAttention(Attention):
    """PnP-Nystra (arXiv 2506.08520), algorithm 1; O(N m) time and memory a window.

    With the kernel G = k(QK^T), landmarks Q', K' pooled from Q, K and A = k(Q'K'^T):
    ``out = (k(QK'^T) A^+ k(Q'K^T) V) / (k(QK'^T) A^+ k(Q'K^T) 1 + 1e-12)``. Position bias and shift mask are ignored,
    as published. Half precision is computed in float32 throughout: row sums exceed float16, and the inverse multiplies
    rounding errors.

    Args:
        landmarks: m, the number of landmarks; published are 8, 16, 32.
        iterations: steps of the pseudo-inverse's iteration; published are 1 to 6.
        init: its start, ``global`` as published or ``matrix`` (see ``razavi_pinv``).
        guard: the logit beyond which the kernel grows linearly instead of exponentially.

    Raises:
        ValueError: a parameter is out of its range.
    """

    version = "2"

    def __init__(self, landmarks: int = 16, iterations: int = 2, init: str = "global", guard: float = 5.0):
        super().__init__()
        check_whole_numbers(landmarks=(landmarks, 1), iterations=(iterations, 0))
        if not isinstance(guard, (int, float)) or not guard >= 0:
            raise ValueError(f"guard={guard} is out of range: accepted are numbers from 0 on")
        if init not in INITS:
            raise ValueError(f"init={init} is unknown: accepted are {', '.join(INITS)}")
        self.landmarks = landmarks
        self.iterations = iterations
        self.init = init
        self.guard = guard

    def refuses(self, height: int, width: int) -> str | None:
        return refuses_landmarks(self.landmarks, height, width)

    def kernel(self, logits: Tensor) -> Tensor:
        """exp(x) up to the guard g, and exp(g) + (x - g) beyond it."""
        return logits.clamp(max=self.guard).exp() + (logits - self.guard).clamp(min=0)

    def _factors(self, q: Tensor, k: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        """k(QK'^T) A^+ of shape (..., N, m), and k(Q'K^T) of shape (..., m, N), in float32 at least."""
        q, k = at_least_float32(q), at_least_float32(k)
        size = window.height, window.width, self.landmarks
        q_marks, k_marks = pooled_landmarks(q, *size), pooled_landmarks(k, *size)
        inverse = razavi_pinv(self.kernel(q_marks @ k_marks.transpose(-2, -1)), self.iterations, self.init)
        left = self.kernel(q @ k_marks.transpose(-2, -1)) @ inverse  # formed first, as published
        return left, self.kernel(q_marks @ k.transpose(-2, -1))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, window: Window) -> Tensor:
        left, right = self._factors(q, k, window)
        out = (left @ (right @ at_least_float32(v))) / (left @ right.sum(-1, keepdim=True) + 1e-12)
        return out.to(v.dtype)

    def matrix(self, q: Tensor, k: Tensor, window: Window) -> Tensor:
        left, right = self._factors(q, k, window)
        return ((left @ right) / (left @ right.sum(-1, keepdim=True) + 1e-12)).to(q.dtype)

    def flops(self, windows: int, heads: int, tokens: int, dim: int, dim_v: int) -> int:
        m, n = self.landmarks, tokens
        kernels = 2 * n * m * dim + m * m * dim
        inverse = 4 * self.iterations * m**3
        products = n * m * m + 2 * n * m * dim_v + n * m
        return 2 * windows * heads * (kernels + inverse + products)
