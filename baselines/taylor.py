"""Softmax attention with the exponential replaced by its Taylor polynomial of degree 2."""

from __future__ import annotations

import torch
from torch import Tensor

from nystra_bench.attention.base import Window

from .feature_map import FeatureMapAttention


class TaylorAttention(FeatureMapAttention):
    """``exp(x)`` as ``1 + x + x^2 / 2`` of the scaled logits x, as a product of features, each row divided by its sum.

    The feature map of Based (Arora et al., arXiv 2402.18668): 1, the d channels, and their products of two, of which
    the d (d + 1) / 2 different ones are kept, so r = 1 + d + d (d + 1) / 2. O(N r d_v) time, O(N r) memory: linear in
    N, but quadratic in d. The polynomial is at least 1/2, so the matrix has positive entries and no division is near
    zero. Even, growing for large negative logits, it is far from exp beyond about one.
    It has no parameters. Position bias and shift mask are ignored.
    """

    def features(self, q: Tensor, k: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        return self._map(q), self._map(k)

    @staticmethod
    def _map(x: Tensor) -> Tensor:
        first, second = torch.triu_indices(x.shape[-1], x.shape[-1], device=x.device)
        weight = torch.where(first == second, 0.5**0.5, 1.0).to(x.dtype)
        products = x[..., first] * x[..., second] * weight
        return torch.cat([torch.ones_like(x[..., :1]), x, products], -1)

    def feature_count(self, dim: int) -> int:
        return 1 + dim + dim * (dim + 1) // 2
