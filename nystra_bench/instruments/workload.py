"""Queries, keys and values for measuring an attention alone, with the statistics of a restoration model's."""

from __future__ import annotations

import torch
from torch import Tensor

from nystra_bench.models.windows import partition, split_heads

LOGIT_STD = 5.0
"""Standard deviation of the logits within a window; of the released models that we looked at it is 4.8 to 9.7."""


def smooth_field(channels: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Random maps (height, width, channels), float32, of mean 0 and variance 1 each, with a power spectrum 1/f^2.

    That is the spectrum of natural images (Field, J. Opt. Soc. Am. A 4, 1987): all octaves have the same energy.
    """
    white = torch.randn(channels, height, width, generator=generator)
    rows, columns = torch.fft.fftfreq(height) * height, torch.fft.rfftfreq(width) * width
    frequency = (rows[:, None].square() + columns.square()).sqrt()
    frequency[0, 0] = torch.inf  # no mean
    field = torch.fft.irfft2(torch.fft.rfft2(white) / frequency, s=(height, width))
    return (field / field.std((1, 2), correction=0, keepdim=True)).permute(1, 2, 0)


def logit_deviation(q: Tensor, k: Tensor) -> Tensor:
    """Standard deviation (H,) of the logits of each head: within windows, over all pairs of tokens.

    Of q, k (b, H, N, d); the root of the variance's mean over windows. No N x N matrix is made: the second moment of
    ``q k`` is the inner product of the second moments of q and k, both d x d.
    """
    tokens = q.shape[-2]
    moments = ((q.mT @ q) * (k.mT @ k)).sum((-2, -1)) / tokens**2
    means = (q.mean(-2) * k.mean(-2)).sum(-1)
    return (moments - means.square()).mean(0).clamp(min=0).sqrt()


def workload(
    heads: int, dim: int, side: int, map_side: int, seed: int = 0, logit_std: float = LOGIT_STD
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v of the windows of a map, each (nW, H, N, d), float32, N = side * side.

    The features are smooth random maps. As in a model each head projects all of them to its queries, keys and values,
    here by random matrices, so that neighbours are alike and attention is neither uniform nor to oneself alone. Queries
    are scaled (by one factor a head) so that the logits have the standard deviation asked for. In memory the tensors
    lie as those of SwinIR do: token by token, all heads of a token beside each other.

    Args:
        side: of a window in tokens.
        map_side: of the map in tokens, a multiple of ``side``.
        seed: the same seed gives the same tensors.
    """
    generator = torch.Generator().manual_seed(seed)
    channels = heads * dim
    features = smooth_field(channels, map_side, map_side, generator)
    projection = torch.randn(channels, 3 * channels, generator=generator) / channels**0.5
    q, k, v = split_heads(partition((features @ projection)[None], side), 3, heads)
    scale = logit_std / logit_deviation(q, k)
    return q * scale[:, None, None], k, v
