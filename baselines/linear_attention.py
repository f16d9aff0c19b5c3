"""Linear attention with the feature map elu + 1."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from nystra_bench.attention.base import Window

from .feature_map import FeatureMapAttention


class LinearAttention(FeatureMapAttention):
    """Linear attention of Katharopoulos, Vyas, Pappas and Fleuret (arXiv 2006.16236), without causal mask.

    ``f(Q) (f(K)^T V) / (f(Q) f(K)^T 1 + 1e-6)`` with ``f(x) = elu(x) + 1`` (eq. 7) for each channel; O(N d d_v)
    time, O(N d) memory. The paper does not scale the queries by 1/sqrt(d), so that scale is taken off q again; the
    1e-6 is of the authors' code. It has no parameters. The matrix has no negative entries. Position bias and shift
    mask are ignored.
    """

    def features(self, q: Tensor, k: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        return F.elu(q * q.shape[-1] ** 0.5) + 1, F.elu(k) + 1

    def feature_count(self, dim: int) -> int:
        return dim

    def normaliser(self, q_features: Tensor, k_features: Tensor) -> Tensor:
        return super().normaliser(q_features, k_features) + 1e-6
