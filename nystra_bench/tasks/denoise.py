"""Colour Gaussian denoising."""

from __future__ import annotations

import numpy as np

from nystra_bench.errors import UserError
from nystra_bench.metrics.conventions import DENOISE, GREY8
from nystra_bench.tasks.base import SyntheticTask
from nystra_bench.tasks.degradations import add_gaussian_noise, grey


class GaussianDenoise(SyntheticTask):
    """Additive white Gaussian noise on RGB, neither clipped nor rounded, as in DnCNN and SwinIR's evaluation.

    Args:
        sigma: standard deviation of the noise on the scale of 0 to 255; the literature's are 15, 25 and 50.
        images, limit, crop, seed: see ``SyntheticTask``.

    Raises:
        UserError: a parameter is out of range, or the folder holds no images.
    """

    seeded_as = "denoise"
    convention = DENOISE

    def __init__(
        self, sigma: float, images: str = "bundled", limit: int | None = None, crop: int | None = None, seed: int = 0
    ):
        if isinstance(sigma, bool) or not isinstance(sigma, (int, float)) or not 0 < sigma <= 255:
            raise UserError(f"task.sigma={sigma} is out of range: accepted are numbers above 0, up to 255")
        super().__init__(images, limit, crop, seed)
        self.sigma = float(sigma)

    def degrade(self, clean: np.ndarray, rng: np.random.Generator, depth: np.ndarray | None = None) -> np.ndarray:
        return add_gaussian_noise(clean, self.sigma, rng)

    def identity(self) -> dict:
        return {"sigma": self.sigma, **super().identity()}


class GreyDenoise(GaussianDenoise):
    """The same on grey images, one channel, as in SwinIR's evaluation: colour images are read as grey ones.

    Args:
        sigma, images, limit, crop, seed: see ``GaussianDenoise``.

    Raises:
        UserError: a parameter is out of range, or the folder holds no images.
    """

    seeded_as = "denoise_grey"
    convention = GREY8
    channels = 1

    def prepare(self, clean: np.ndarray) -> np.ndarray:
        return grey(clean)
