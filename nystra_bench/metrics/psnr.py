"""Peak signal-to-noise ratio."""

from __future__ import annotations

import numpy as np

from nystra_bench.metrics.base import Metric


class Psnr(Metric):
    """PSNR in dB with peak value 1 (255 in 8 bits), over all pixels and channels; infinite for equal images."""

    unit = "dB"

    def compare(self, output: np.ndarray, target: np.ndarray) -> float:
        from skimage.metrics import peak_signal_noise_ratio

        if np.array_equal(output, target):
            return float("inf")
        return peak_signal_noise_ratio(target, output, data_range=1.0)
