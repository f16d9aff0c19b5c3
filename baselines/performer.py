"""Performer: positive orthogonal random features of the softmax kernel."""

from __future__ import annotations

from torch import Tensor

from nystra_bench.attention.base import Window
from nystra_bench.attention.parameters import check_whole_numbers

from .common import gaussian_directions
from .feature_map import FeatureMapAttention


class PerformerAttention(FeatureMapAttention):
    """FAVOR+ of Choromanski et al. (arXiv 2009.14794), without causal mask.

    ``exp(x . y)`` is estimated without bias by features ``exp(w . x - |x|^2 / 2) / sqrt(r)`` with standard normal w,
    orthogonal in blocks of d; x and y are queries and keys, each scaled by d^(-1/4). That is the
    paper's split of 1/sqrt(d), and q, which arrives scaled by it all, is scaled accordingly.
    As in the authors' code the largest w . x is subtracted in the exponent, of each query by itself and of all keys
    of a window and head together, and ``epsilon`` is added to every feature. The larger the logits, the more
    features drown in it, and the attention tends to the uniform one.
    O(N r (d + d_v)) time, O(N r) memory. The matrix has positive entries. Position bias and shift mask are ignored.

    Args:
        features: r, the number of random features; the paper recommends the order of d log d.
        seed: of the directions w, which all windows, heads and layers share; they are never drawn anew.
        epsilon: added to every feature, so that no row sum vanishes; above 0, and 1e-4 in the authors' code.

    Raises:
        ValueError: a parameter is out of its range.
    """

    def __init__(self, features: int = 64, seed: int = 0, epsilon: float = 1e-4):
        super().__init__()
        check_whole_numbers(features=(features, 1), seed=(seed, 0))
        if not epsilon > 0:
            raise ValueError(f"epsilon={epsilon} is out of range: accepted are numbers above 0")
        self.count = features
        self.seed = seed
        self.epsilon = epsilon

    def features(self, q: Tensor, k: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        quarter = q.shape[-1] ** 0.25
        directions = gaussian_directions(window, self.count, q, self.seed, orthogonal=True)
        return self._map(q * quarter, directions, (-1,)), self._map(k / quarter, directions, (-2, -1))

    def _map(self, x: Tensor, directions: Tensor, together: tuple[int, ...]) -> Tensor:
        """Positive features of x; exponents are shifted by their maximum over the dimensions ``together``."""
        projected = x @ directions.mT
        half_square = x.square().sum(-1, keepdim=True) / 2
        exponent = projected - half_square - projected.amax(together, keepdim=True)
        return self.count**-0.5 * (exponent.exp() + self.epsilon)

    def feature_count(self, dim: int) -> int:
        return self.count

    def feature_flops(self, tokens: int, dim: int) -> int:
        return 4 * tokens * dim * self.count
