"""How far an output is from another, besides PSNR and SSIM."""

from __future__ import annotations

import numpy as np

from nystra_bench.metrics.base import Metric


class RelativeRms(Metric):
    """Root mean square of the difference over the root mean square of the target."""

    higher_is_better = False

    def compare(self, output: np.ndarray, target: np.ndarray) -> float:
        return float(np.linalg.norm(output - target) / max(np.linalg.norm(target), np.finfo(float).tiny))


class MaximumError(Metric):
    """Largest absolute difference of a pixel's channel, on the scale of 0 to 1."""

    higher_is_better = False

    def compare(self, output: np.ndarray, target: np.ndarray) -> float:
        return np.abs(output - target).max()
