"""Skyformer: Nyström approximation of a Gaussian kernel in place of the softmax."""

from __future__ import annotations

import torch
from torch import Tensor

from nystra_bench.attention.base import Attention, Window
from nystra_bench.attention.parameters import check_whole_numbers
from nystra_bench.attention.pinv import razavi_pinv
from nystra_bench.attention.precision import at_least_float32


class SkyformerAttention(Attention):
    """Skyformer of Chen, Zeng, Ji and Yang (arXiv 2111.00035).

    "Kernelized attention" C V with ``C_ij = exp(-|q_i - k_j|^2 / (2 sqrt(d)))``, not normalised, takes the place of
    softmax attention; C is a block of the positive semi-definite kernel matrix of queries and keys together, which is
    approximated by the Nyström method on m of these 2N tokens, W: ``C(Q, W) (C(W, W) + gamma I)^-1 C(W, K) V``.
    The inverse is that of the authors' code: M = C(W, W) + gamma I, scaled to D^(-1/2) M D^(-1/2) with D its row sums,
    then the iteration of Razavi et al.
    The paper trains its models with this attention. Put in the place of a trained softmax it is not an approximation of
    it: softmax weights are C_ij exp(|k_j|^2 / (2 sqrt(d))), normalised, and both factors are missing here.
    O(N m (d + d_v) + m^3) time, O(N m) memory; computed in float32 at least. Neither do rows sum to one, nor are all
    entries positive. Position bias and shift mask are ignored.

    Args:
        landmarks: m, half of them queries (one more where odd) and half keys, at random places of the window, the
            same for all windows and heads; drawn without replacement (with, in the paper).
        iterations: steps of the inverse's iteration; 6 in the authors' code.
        gamma: the regularisation; 0.1 in the authors' code.
        seed: of the places.

    Raises:
        ValueError: a parameter is out of its range.
    """

    def __init__(self, landmarks: int = 16, iterations: int = 6, gamma: float = 0.1, seed: int = 0):
        super().__init__()
        check_whole_numbers(landmarks=(landmarks, 1))
        check_whole_numbers(iterations=(iterations, 0))
        check_whole_numbers(seed=(seed, 0))
        if not gamma >= 0:
            raise ValueError(f"gamma={gamma} is out of range: accepted are numbers from 0 on")
        self.landmarks = landmarks
        self.iterations = iterations
        self.gamma = gamma
        self.seed = seed

    def refuses(self, height: int, width: int) -> str | None:
        if self.landmarks > 2 * height * width:
            pool = f"{2 * height * width} queries and keys of a {height}x{width} window"
            return f"landmarks={self.landmarks} exceed the {pool}"
        return None

    def _places(self, window: Window, device: torch.device) -> tuple[Tensor, Tensor]:
        """Tokens whose queries, and tokens whose keys, are landmarks."""

        def make() -> Tensor:
            generator = torch.Generator().manual_seed(self.seed)
            return torch.stack([torch.randperm(window.tokens, generator=generator) for _ in range(2)]).to(device)

        queries, keys = window.cache.once(("places", self.seed, window.tokens, device), make)
        return queries[: -(-self.landmarks // 2)], keys[: self.landmarks // 2]

    def _factors(self, q: Tensor, k: Tensor, window: Window) -> tuple[Tensor, Tensor, Tensor]:
        """C(Q, W) (..., N, m), the inverse (..., m, m), C(W, K) (..., m, N)."""
        quarter = q.shape[-1] ** 0.25
        x, y = at_least_float32(q) * quarter, at_least_float32(k) / quarter
        queries, keys = self._places(window, q.device)
        marks = torch.cat([x[..., queries, :], y[..., keys, :]], -2)
        return _gaussian(x, marks), self._inverse(_gaussian(marks, marks)), _gaussian(marks, y)

    def _inverse(self, kernel: Tensor) -> Tensor:
        regular = kernel + self.gamma * torch.eye(self.landmarks, dtype=kernel.dtype, device=kernel.device)
        root = regular.sum(-1).rsqrt()
        scale = root[..., :, None] * root[..., None, :]
        return scale * razavi_pinv(scale * regular, self.iterations)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, window: Window) -> Tensor:
        left, inverse, right = self._factors(q, k, window)
        return (left @ (inverse @ (right @ at_least_float32(v)))).to(v.dtype)

    def matrix(self, q: Tensor, k: Tensor, window: Window) -> Tensor:
        left, inverse, right = self._factors(q, k, window)
        return (left @ (inverse @ right)).to(q.dtype)

    def flops(self, windows: int, heads: int, tokens: int, dim: int, dim_v: int) -> int:
        m, n = self.landmarks, tokens
        kernels = 2 * n * m * dim + m * m * dim
        inverse = 4 * self.iterations * m**3
        products = 2 * n * m * dim_v + m * m * dim_v
        return 2 * windows * heads * (kernels + inverse + products)


def _gaussian(x: Tensor, y: Tensor) -> Tensor:
    """exp(-|x_i - y_j|^2 / 2), (..., n, m), of x (..., n, d) and y (..., m, d)."""
    x_half, y_half = x.square().sum(-1) / 2, y.square().sum(-1) / 2
    # Rounding alone can make the exponent positive.
    return (x @ y.mT - x_half[..., :, None] - y_half[..., None, :]).clamp(max=0).exp()
