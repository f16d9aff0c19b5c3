"""Random feature attention: trigonometric random features of the Gaussian kernel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nystra_bench.attention.base import Window
from nystra_bench.attention.parameters import check_whole_numbers

from .common import gaussian_directions
from .feature_map import FeatureMapAttention


class RandomFeatureAttention(FeatureMapAttention):
    """RFA of Peng et al. (arXiv 2103.02143), without gating and without causal mask.

    ``exp(x . y) = exp(|x|^2 / 2) exp(-|x - y|^2 / 2) exp(|y|^2 / 2)``, where the Gaussian is estimated by the features
    ``[sin(w . x), cos(w . x)] / sqrt(r / 2)`` with standard normal w. The factor of the query is the same for all
    keys and goes out with the normalisation; that of the key is kept, relative to the largest of its window and
    head, so that nothing overflows. x and y are queries and keys, each scaled by d^(-1/4).
    The paper trains models on queries and keys of unit length (``unit_norm``), with a temperature learned; in a
    pretrained model the lengths carry much of the logits, hence the default.
    Estimated row sums may be near zero or negative. The authors' code raises them to a small constant, and so does
    this: to ``floor`` times the sum of the keys' factors, which bounds the row sum. Rows below it do not sum to one.
    O(N r (d + d_v)) time, O(N r) memory. The matrix may have negative entries. Position bias and shift mask are
    ignored.

    Args:
        features: r, the number of random features, sines and cosines together; even.
        seed: of the directions w, which all windows, heads and layers share.
        unit_norm: scale every query and key to length one first, as the paper's models do; the kernel is then
            exp(x . y) of unit vectors (the paper's temperature at its start, 1).
        floor: least row sum, as a share of its upper bound.

    Raises:
        ValueError: a parameter is out of its range.
    """

    rows_sum_to_one = False

    def __init__(self, features: int = 64, seed: int = 0, unit_norm: bool = False, floor: float = 0.01):
        super().__init__()
        check_whole_numbers(features=(features, 2))
        check_whole_numbers(seed=(seed, 0))
        if features % 2:
            raise ValueError(f"features={features} is odd: accepted are even numbers, of as many sines as cosines")
        if not 0 < floor <= 1:
            raise ValueError(f"floor={floor} is out of range: accepted are numbers above 0, up to 1")
        self.count = features
        self.seed = seed
        self.unit_norm = unit_norm
        self.floor = floor

    def features(self, q: Tensor, k: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        quarter = q.shape[-1] ** 0.25
        x, y = (F.normalize(q, dim=-1), F.normalize(k, dim=-1)) if self.unit_norm else (q * quarter, k / quarter)
        directions = gaussian_directions(window, self.count // 2, q, self.seed)
        half_square = y.square().sum(-1, keepdim=True) / 2
        factor = (half_square - half_square.amax(-2, keepdim=True)).exp()
        return self._map(x, directions), self._map(y, directions) * factor

    def _map(self, x: Tensor, directions: Tensor) -> Tensor:
        """Trigonometric features, of length one."""
        angle = x @ directions.mT
        return torch.cat([angle.sin(), angle.cos()], -1) * (self.count / 2) ** -0.5

    def normaliser(self, q_features: Tensor, k_features: Tensor) -> Tensor:
        bound = k_features.norm(dim=-1).sum(-1)[..., None, None]
        return torch.maximum(super().normaliser(q_features, k_features), self.floor * bound)

    def feature_count(self, dim: int) -> int:
        return self.count

    def feature_flops(self, tokens: int, dim: int) -> int:
        return 2 * tokens * dim * self.count
