"""Removing what JPEG compression did to an image."""

from __future__ import annotations

import numpy as np

from nystra_bench.errors import UserError
from nystra_bench.metrics.conventions import GREY8, JPEG, luma
from nystra_bench.tasks.base import SyntheticTask
from nystra_bench.tasks.degradations import jpeg, stored


class Jpeg(SyntheticTask):
    """Colour JPEG compression artefacts, in RGB, as in SwinIR's evaluation.

    Args:
        quality: of libjpeg, from 1 to 100; the literature's are 10, 20, 30 and 40.
        images, limit, crop, seed: see ``SyntheticTask``; nothing here is random, the seed changes nothing.

    Raises:
        UserError: a parameter is out of range, or the folder holds no images.
    """

    seeded_as = "jpeg"
    convention = JPEG

    def __init__(
        self, quality: int, images: str = "bundled", limit: int | None = None, crop: int | None = None, seed: int = 0
    ):
        if type(quality) is not int or not 1 <= quality <= 100:
            raise UserError(f"task.quality={quality} is out of range: accepted are whole numbers from 1 to 100")
        super().__init__(images, limit, crop, seed)
        self.quality = quality

    def degrade(self, clean: np.ndarray, rng: np.random.Generator, depth: np.ndarray | None = None) -> np.ndarray:
        return jpeg(clean, self.quality)

    def identity(self) -> dict:
        return {"quality": self.quality}


class GreyJpeg(Jpeg):
    """The same on one channel, as on Classic5 and LIVE1: of a colour image it is the luma Y.

    Y is BT.601's in the studio range, rounded to 8 bits (SwinIR's test code, and those before it); a grey image, with
    three equal channels, is taken as it is.

    Args:
        quality, images, limit, crop, seed: see ``Jpeg``.

    Raises:
        UserError: a parameter is out of range, or the folder holds no images.
    """

    seeded_as = "jpeg_grey"
    convention = GREY8
    channels = 1

    def prepare(self, clean: np.ndarray) -> np.ndarray:
        is_grey = (clean == clean[..., :1]).all()
        return clean[..., :1] if is_grey else stored(luma(clean))
