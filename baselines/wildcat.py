"""WildCat: attention to a few keys, found by randomly pivoted Cholesky, that carry Nyström weights of all."""

from __future__ import annotations

import torch
from torch import Tensor

from nystra_bench.attention.cache import Cache
from nystra_bench.attention.parameters import check_truth, check_whole_numbers

from .common import refuses_more_than_tokens, take_rows
from .regionwise import RegionwiseAttention, Shape

TEMPERATURE = 3.94582
"""The squared temperature of the keys' kernel is this times max |k| / max |q|: the constant of the authors' code."""

NEGLIGIBLE = 1e-5
"""Residual, of a diagonal of ones, that rounding in float32 can leave: such keys are combinations of those chosen."""

LEAST_SUM = 1e-20
"""Row sums below give an output of zero, as in the authors' code."""


class WildCatAttention(RegionwiseAttention):
    """WildCat of Schröder and Mackey (arXiv 2602.10056).

    Of the keys, less their mean, a coreset S of m is chosen by randomly pivoted Cholesky of the kernel
    ``h(k, l) = exp(k l / t^2)``: each pivot is drawn in proportion to what is left of h's diagonal. With the Nyström
    weights ``W = h(K_S, K_S)^-1 h(K_S, K)`` the output is ``exp(Q K_S^T) W V / (exp(Q K_S^T) W 1)``. Weights may be
    negative, and so the output is clipped, channel by channel, to the range of the window's values. The temperature
    is that of the authors' code, t^2 = 3.946 max |k| / max |q|, with the norms of each window and head. As there, the
    Cholesky is one of a Gaussian kernel, of which h is a rescaling; here the weights come of its factor by a
    triangular solve.

    Chosen here: all windows, heads and layers share the noise that pivots are drawn with (Gumbel's trick). Where all
    that is left is rounding, no key is added. Compression in several bins, for long sequences, is left out.
    O(N m (d + m + d_v)) time, O(N m) memory. Position bias and shift mask as in ``RegionwiseAttention``. A window, or
    a region, of no more than m tokens has softmax attention, as in the authors' code.

    Args:
        landmarks: m, the size of the coreset.
        clip: clip the output to the range of the values, as the paper does; the matrix is that without.
        seed: of the noise.
        bias_rank: r, the number of features that stand for the position bias; 0 leaves it out.

    Raises:
        ValueError: a parameter is out of its range.
    """

    exact_with_all_landmarks = True

    def __init__(self, landmarks: int = 16, clip: bool = True, seed: int = 0, bias_rank: int = 8):
        super().__init__(bias_rank)
        check_whole_numbers(landmarks=(landmarks, 1), seed=(seed, 0))
        check_truth(clip=clip)
        self.landmarks = landmarks
        self.clip = clip
        self.seed = seed
        self.linear_in_values = not clip

    def linear(self) -> WildCatAttention:
        return WildCatAttention(self.landmarks, False, self.seed, self.bias_rank)

    def refuses(self, height: int, width: int) -> str | None:
        return refuses_more_than_tokens(self.landmarks, height, width)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, size: Shape, cache: Cache) -> Tensor:
        if k.shape[-2] <= self.landmarks:
            return (q @ k.mT).softmax(-1) @ v
        k = k - k.mean(-2, keepdim=True)
        scaled = k * _scale(q, k)
        half_squares = scaled.square().sum(-1) / 2
        pivots, factor = pivoted_cholesky(scaled, half_squares, self._noise(k, cache))
        # From the Gaussian kernel to the exponential one: exp(k l) = exp(|k|^2 / 2) gauss(k, l) exp(|l|^2 / 2).
        # A factor that all keys have is lost in the division, so the exponents may be relative to the largest.
        growth = (half_squares - half_squares.amax(-1, keepdim=True)).exp()[..., None]
        combined = _solve(factor, pivots, growth * torch.cat([v, torch.ones_like(growth)], -1))
        logits = q @ take_rows(k, pivots).mT - half_squares.gather(-1, pivots)[..., None, :]
        left = (logits - logits.amax(-1, keepdim=True)).exp()
        out, total = (left @ combined).tensor_split([v.shape[-1]], -1)
        out = torch.where(total > LEAST_SUM, out / total, 0.0)
        return out.clamp(v.amin(-2, keepdim=True), v.amax(-2, keepdim=True)) if self.clip else out

    def _noise(self, like: Tensor, cache: Cache) -> Tensor:
        """Independent numbers (m, N) of Gumbel's distribution."""
        tokens = like.shape[-2]

        def make() -> Tensor:
            generator = torch.Generator().manual_seed(self.seed)
            uniform = torch.rand(self.landmarks, tokens, generator=generator, dtype=torch.float64)
            return -(-uniform.clamp(min=1e-12).log()).log().to(like)

        return cache.once(("noise", tokens, like.dtype), make)

    def flops(self, windows: int, heads: int, tokens: int, dim: int, dim_v: int) -> int:
        m, n, dim = self.landmarks, tokens, self.width(tokens, dim)
        if n <= m:
            return 2 * windows * heads * n * n * (dim + dim_v)
        cholesky = n * m * dim + n * m * (m - 1) // 2
        return 2 * windows * heads * (cholesky + n * m * (dim + 2 * (dim_v + 1)))


def _scale(q: Tensor, k: Tensor) -> Tensor:
    """1 / t, (n, H, 1, 1): what keys are multiplied with before the kernel is taken."""
    q_norm, k_norm = (x.norm(dim=-1).amax(-1)[..., None, None] for x in (q, k))
    return (q_norm / (TEMPERATURE * k_norm.clamp(min=1e-20))).sqrt()


@torch.no_grad()
def pivoted_cholesky(keys: Tensor, half_squares: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Partial Cholesky of the keys' Gaussian kernel by random pivots.

    Args:
        keys: (n, H, N, c).
        half_squares: (n, H, N), half their squared lengths.
        noise: (m, N) of Gumbel's distribution: with it the largest logarithm is a draw from the weights.

    Returns:
        The pivots (n, H, m) int64, drawn in proportion to what is left of the diagonal of ``exp(k l)``, and the factor
        F (n, H, m, N), ``F^T F`` near the kernel and equal to it in the pivots' rows. Once nothing is left of the
        kernel, rows of F are zero.
    """
    count = len(noise)
    factor = keys.new_zeros(*half_squares.shape[:-1], count, half_squares.shape[-1])
    residual = torch.ones_like(half_squares)
    pivots = []
    for i in range(count):
        pivot = (residual.log() + 2 * half_squares + noise[i]).argmax(-1, keepdim=True)
        products = (take_rows(keys, pivot) @ keys.mT).squeeze(-2)
        row = (products - half_squares - half_squares.gather(-1, pivot)).clamp(max=0).exp()
        if i:
            earlier = factor[..., :i, :]
            known = _take_columns(earlier, pivot)
            row = row - (known.mT @ earlier).squeeze(-2)
        left = residual.gather(-1, pivot)
        row = torch.where(left > 0, row * left.clamp(min=NEGLIGIBLE).rsqrt(), 0.0).scatter(-1, pivot, left.sqrt())
        factor[..., i, :] = row
        residual = (residual - row.square()).scatter(-1, pivot, 0.0)
        residual = torch.where(residual > NEGLIGIBLE, residual, 0.0)
        pivots.append(pivot)
    return torch.cat(pivots, -1), factor


def _solve(factor: Tensor, pivots: Tensor, columns: Tensor) -> Tensor:
    """``G(S, S)^-1 G(S, all) columns`` of the kernel ``G = F^T F``, (n, H, m, c), as F(S)^-1 (F columns)."""
    own = _take_columns(factor, pivots)
    empty = torch.diag_embed((own.diagonal(dim1=-2, dim2=-1) == 0).to(own.dtype))
    return torch.linalg.solve_triangular(own + empty, factor @ columns, upper=True)


def _take_columns(rows: Tensor, index: Tensor) -> Tensor:
    """Columns (n, H, m, c) of ``rows`` (n, H, m, N) by their numbers (n, H, c)."""
    return rows.gather(-1, index[..., None, :].expand(*rows.shape[:-1], index.shape[-1]))
