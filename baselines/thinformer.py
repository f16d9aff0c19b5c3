"""Thinformer: softmax attention to a coreset of keys and values that is found by kernel halving."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nystra_bench.attention.cache import Cache
from nystra_bench.attention.parameters import check_truth, check_whole_numbers

from .common import take_rows
from .regionwise import RegionwiseAttention, Shape

FAILURE = 0.5
"""The probability delta that the thresholds of all halvings together allow for; that of the authors' code."""


class ThinformerAttention(RegionwiseAttention):
    """Thinformer of Carrell, Gong, Shetty, Dwivedi and Mackey (arXiv 2502.12063, "Low-Rank Thinning").

    Softmax attention to ``2^g sqrt(N)`` of the tokens, with equal weights. They are found by KH-Compress(g): buckets of
    4^(g+1) tokens in succession are halved by kernel halving; four halves in succession make the next bucket, twice as
    large, and so on until one is left. The kernel is ``exp(k l / sqrt(d)) (v w + max |v|^2)`` of tokens with keys k, l
    and values v, w. Kernel halving takes one of each two tokens in succession, at random but so that the kernel sums of
    those taken and those left stay close; at the end it is a coin that decides which of the two halves is kept.
    As in the authors' code, a window is first thinned to a power of four of tokens, by a stride from its first one on.

    Chosen here: the tokens of a window, and of a region, stand row by row; windows, heads and layers share the random
    numbers, and each bucket has its own coin.
    O(N 2^g (sqrt(N) + 2^g log N) (d + d_v)) time, O(N 2^g (sqrt(N) + 2^g)) memory: less than quadratic in N, but not
    linear. Within a bucket it goes pair by pair, 2^(g+1) sqrt(N) steps for all windows, heads and buckets together.
    The matrix is row-stochastic. Where values have a say in it, it is no longer one of q and k alone: ``matrix`` gives
    that of ``values=false``. Position bias and shift mask as in ``RegionwiseAttention``.

    Args:
        oversampling: g, from 0 on.
        values: whether the values have a say in the kernel, as in the paper; without, it is ``exp(k l / sqrt(d))``.
        seed: of the random numbers.
        bias_rank: r, the number of features that stand for the position bias; 0 leaves it out.

    Raises:
        ValueError: a parameter is out of its range.
    """

    rows_sum_to_one = True

    def __init__(self, oversampling: int = 0, values: bool = True, seed: int = 0, bias_rank: int = 8):
        super().__init__(bias_rank)
        check_whole_numbers(oversampling=(oversampling, 0), seed=(seed, 0))
        check_truth(values=values)
        self.oversampling = oversampling
        self.values = values
        self.seed = seed
        self.linear_in_values = not values

    def linear(self) -> ThinformerAttention:
        return ThinformerAttention(self.oversampling, False, self.seed, self.bias_rank)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, size: Shape, cache: Cache) -> Tensor:
        chosen = self._coreset(k, v, cache)
        return (q @ take_rows(k, chosen).mT).softmax(-1) @ take_rows(v, chosen)

    @torch.no_grad()
    def _coreset(self, k: Tensor, v: Tensor, cache: Cache) -> Tensor:
        """Numbers (n, H, 2^g sqrt(N)) int64 of the tokens attended to."""
        count, rounds = self._thinned(k.shape[-2])
        stride = k.shape[-2] // count
        chosen = torch.arange(0, count * stride, stride, device=k.device).expand(*k.shape[:-2], count)
        # The kernel's scale does not matter; this one keeps it from overflowing.
        shift = k.square().sum(-1).amax(-1)[..., None, None, None]
        square = v.square().amax((-2, -1))[..., None, None, None]
        for bucket, noise, coins in self._randomness(count, rounds, k, cache):
            keys, values = (take_rows(x, chosen).unflatten(-2, (-1, bucket)) for x in (k, v))
            kernel = (keys @ keys.mT - shift).exp()
            if self.values:
                kernel = kernel * (values @ values.mT + square)
            second = halve(kernel, noise) ^ coins
            pairs = chosen.unflatten(-1, (-1, bucket // 2, 2))
            chosen = torch.where(second, pairs[..., 1], pairs[..., 0]).flatten(-2)
        return chosen

    def _thinned(self, tokens: int) -> tuple[int, int]:
        """To how many tokens a window is thinned first, and how often these are halved."""
        power = (tokens.bit_length() - 1) // 2
        return 4**power, max(power - self.oversampling, 0)

    def _randomness(self, count: int, rounds: int, like: Tensor, cache: Cache) -> list[tuple[int, Tensor, Tensor]]:
        """For each halving the size of its buckets, the thresholds (buckets, pairs), and coins (buckets, 1) bool."""

        def make() -> list[tuple[int, Tensor, Tensor]]:
            generator = torch.Generator().manual_seed(self.seed)
            made = []
            for i in range(rounds):
                bucket = 4 ** (self.oversampling + 1) * 2**i
                buckets = count // 2**i // bucket
                delta = FAILURE * bucket / 4 ** (self.oversampling + 1) / rounds / count
                uniform = 2 * torch.rand(buckets, bucket // 2, generator=generator, dtype=torch.float64) - 1
                coins = torch.rand(buckets, 1, generator=generator) < 0.5
                made.append((bucket, (uniform * (0.5 + math.log(2 / delta))).to(like), coins.to(like.device)))
            return made

        return cache.once(("randomness", count, like.dtype), make)

    def flops(self, windows: int, heads: int, tokens: int, dim: int, dim_v: int) -> int:
        count, rounds = self._thinned(tokens)
        dim = self.width(tokens, dim)
        halving = rounds * count * 4 ** (self.oversampling + 1) * (dim + (dim_v if self.values else 0))
        return 2 * windows * heads * (halving + tokens * (count // 2**rounds) * (dim + dim_v))


def halve(kernel: Tensor, noise: Tensor) -> Tensor:
    """Kernel halving: which of each two points in succession is taken.

    Args:
        kernel: (..., s, s) of s points, positive semi-definite.
        noise: (..., s / 2), a threshold for each pair, relative to its own and the largest size of pairs until then.

    Returns:
        (..., s / 2) bool, whether it is the second point. With f(i) the difference of the first and the second of pair
        i, as functions of the kernel's space, and S the signed sum of the differences before, pair i is added to S with
        the sign that is, in expectation, opposite to the product of S and f(i); the first pair as it is.
    """
    difference = kernel[..., ::2] - kernel[..., 1::2]
    difference = difference[..., ::2, :] - difference[..., 1::2, :]
    size = difference.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    threshold = noise * size * size.cummax(-1).values
    products = difference[..., 0, :]
    second = [torch.zeros_like(products[..., 0], dtype=torch.bool)]
    for i in range(1, kernel.shape[-1] // 2):
        second.append(threshold[..., i] <= products[..., i])
        products = torch.where(second[i][..., None], products - difference[..., i, :], products + difference[..., i, :])
    return torch.stack(second, -1)
