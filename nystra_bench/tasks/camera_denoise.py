"""Denoising of the noise that a camera's sensor makes, synthetic; recorded pairs are the task ``real_denoise``."""

from __future__ import annotations

import numpy as np

from nystra_bench.errors import UserError
from nystra_bench.metrics.conventions import DENOISE
from nystra_bench.tasks.base import SyntheticTask
from nystra_bench.tasks.degradations import add_camera_noise, stored

SHOT = (1e-4, 1.2e-2)
"""Range of the shot noise's strength (its variance at full light), from low to high ISO (Brooks et al., CVPR 2019)."""


class CameraDenoise(SyntheticTask):
    """Shot and read noise in linear light, then sRGB, clipped and rounded to 8 bits, as a camera stores it.

    Each image's strength is drawn log-uniformly from ``SHOT`` times ``gain``. The noise is white: the demosaicing,
    sharpening and compression of a camera, which would correlate it, are left out.

    Args:
        gain: factor on the range of the noise's strength.
        images, limit, crop, seed: see ``SyntheticTask``.

    Raises:
        UserError: a parameter is out of range, or the folder holds no images.
    """

    seeded_as = "camera_denoise"
    convention = DENOISE

    def __init__(
        self,
        gain: float = 4.0,
        images: str = "bundled",
        limit: int | None = None,
        crop: int | None = None,
        seed: int = 0,
    ):
        if isinstance(gain, bool) or not isinstance(gain, (int, float)) or not 0 < gain <= 20:
            raise UserError(f"task.gain={gain} is out of range: accepted are numbers above 0, up to 20")
        super().__init__(images, limit, crop, seed)
        self.gain = float(gain)

    def degrade(self, clean: np.ndarray, rng: np.random.Generator, depth: np.ndarray | None = None) -> np.ndarray:
        shot = np.exp(rng.uniform(*np.log(SHOT)))
        read = np.exp(2.18 * np.log(shot) + 1.20 + rng.normal(0, 0.26))  # the fit of Brooks et al. to real sensors
        noisy = add_camera_noise(clean, shot * self.gain, read * self.gain**2, rng)
        return stored(noisy)

    def identity(self) -> dict:
        return {"gain": self.gain, **super().identity()}
