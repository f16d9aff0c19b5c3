"""Colour Gaussian denoising."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nystra_bench.errors import UserError
from nystra_bench.metrics.base import Convention
from nystra_bench.tasks.base import Sample, Task
from nystra_bench.tasks.datasets import digest, pictures
from nystra_bench.tasks.degradations import add_gaussian_noise, generator


class GaussianDenoise(Task):
    """Additive white Gaussian noise on RGB, neither clipped nor rounded, as in DnCNN and SwinIR's evaluation.

    Args:
        sigma: standard deviation of the noise on the scale of 0 to 255; the literature's are 15, 25 and 50.
        images: ``bundled``, or a folder of clean images.
        limit: number of images; None takes all.
        crop: side of the central crop in pixels; None takes whole images.
        seed: of the noise; an image's noise depends on the task, its id and the seed alone.

    Raises:
        UserError: a parameter is out of range, or the folder holds no images.
    """

    convention = Convention(colour="rgb", rounded=True, border=0)

    def __init__(
        self, sigma: float, images: str = "bundled", limit: int | None = None, crop: int | None = None, seed: int = 0
    ):
        if not isinstance(sigma, (int, float)) or not 0 < sigma <= 255:
            raise UserError(f"task.sigma={sigma} is out of range: accepted are numbers above 0, up to 255")
        self.sigma = float(sigma)
        self.seed = seed
        self.images = str(images)
        self.pictures = pictures(self.images, limit, crop)

    @property
    def dataset(self) -> str:
        return "bundled" if self.images == "bundled" else Path(self.images).expanduser().resolve().name

    def samples(self) -> Iterator[Sample]:
        for picture in self.pictures:
            clean = picture.read().astype(np.float32) / 255
            rng = generator("denoise", picture.id, self.seed)
            yield Sample(picture.id, add_gaussian_noise(clean, self.sigma, rng), clean)

    def identity(self) -> dict:
        return {"sigma": self.sigma, "seed": self.seed}

    def digest(self) -> str:
        return digest(self.pictures)
