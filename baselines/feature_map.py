"""Attention whose kernel is a product of features, so that the N x N matrix is never formed."""

from __future__ import annotations

from torch import Tensor

from nystra_bench.attention.base import Attention, Window
from nystra_bench.attention.precision import at_least_float32


class FeatureMapAttention(Attention):
    """``out = f(Q) (g(K)^T V) / (f(Q) g(K)^T 1)``; O(N r (d + d_v)) time and O(N r) memory a window, r features.

    Subclasses give the features f and g. Everything is computed in float32 where the inputs are of half precision:
    sums over all keys leave its range.
    """

    rows_sum_to_one = True
    permutation_equivariant = True

    def features(self, q: Tensor, k: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        """Features (B * nW, H, N, r) of q, which is scaled by 1/sqrt(d), and of k; q and k are float32 or float64."""
        raise NotImplementedError

    def feature_count(self, dim: int) -> int:
        """r, for heads of ``dim`` channels."""
        raise NotImplementedError

    def feature_flops(self, tokens: int, dim: int) -> int:
        """Floating point operations of the matrix products in the features of q and k of one window and head."""
        return 0

    def normaliser(self, q_features: Tensor, k_features: Tensor) -> Tensor:
        """What each row is divided by, (B * nW, H, N, 1)."""
        return q_features @ k_features.sum(-2)[..., None]

    def forward(self, q: Tensor, k: Tensor, v: Tensor, window: Window) -> Tensor:
        q_features, k_features = self.features(at_least_float32(q), at_least_float32(k), window)
        summed = k_features.mT @ at_least_float32(v)
        return (q_features @ summed / self.normaliser(q_features, k_features)).to(v.dtype)

    def matrix(self, q: Tensor, k: Tensor, window: Window) -> Tensor:
        q_features, k_features = self.features(at_least_float32(q), at_least_float32(k), window)
        return (q_features @ k_features.mT / self.normaliser(q_features, k_features)).to(q.dtype)

    def flops(self, windows: int, heads: int, tokens: int, dim: int, dim_v: int) -> int:
        products = 2 * tokens * self.feature_count(dim) * (2 * dim_v + 1)
        return windows * heads * (self.feature_flops(tokens, dim) + products)
