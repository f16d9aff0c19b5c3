"""Structural similarity."""

from __future__ import annotations

import numpy as np

from nystra_bench.errors import UserError
from nystra_bench.metrics.base import Metric
from nystra_bench.metrics.conventions import Convention, pool

SMALLEST = 11
REACH = SMALLEST // 2
STRIP = 1024
"""Rows that are compared at a time: scikit-image makes a dozen double copies of what it is given."""


class Ssim(Metric):
    """SSIM of Wang et al. (2004): Gaussian window of 11 pixels, sigma 1.5, K1 = 0.01, K2 = 0.03, mean over channels.

    The mean is over the pixels whose whole window lies in the image.
    """

    smallest = SMALLEST

    def prepare(self, image: np.ndarray, convention: Convention) -> np.ndarray:
        prepared = super().prepare(image, convention)
        return pool(prepared) if convention.pooled else prepared

    def compare(self, output: np.ndarray, target: np.ndarray) -> float:
        if min(target.shape[:2]) < SMALLEST:
            raise UserError(
                f"metrics=ssim needs images of {SMALLEST} pixels a side, not {target.shape[1]}x{target.shape[0]}: "
                "accepted are larger images, or metrics without ssim"
            )
        height = target.shape[0] - 2 * REACH  # the pixels whose whole window lies in the image
        strips = [(top, min(top + STRIP, height)) for top in range(0, height, STRIP)]
        total = sum(
            (end - top) * _similarity(output[top : end + 2 * REACH], target[top : end + 2 * REACH])
            for top, end in strips
        )
        return total / height


def _similarity(output: np.ndarray, target: np.ndarray) -> float:
    """Mean over the pixels that are at least ``REACH`` from the border."""
    from skimage.metrics import structural_similarity

    return structural_similarity(
        target,
        output,
        channel_axis=-1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1.0,
    )
