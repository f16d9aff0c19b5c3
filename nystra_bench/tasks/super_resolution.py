"""Super-resolution of bicubically reduced images."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from nystra_bench.errors import UserError
from nystra_bench.metrics.base import Convention
from nystra_bench.tasks.base import SyntheticTask
from nystra_bench.tasks.resize import bicubic

SCALES = (2, 3, 4, 8)


class SuperResolution(SyntheticTask):
    """Low-resolution images by MATLAB's bicubic ``imresize`` in 8 bits, the literature's standard degradation.

    The clean image is first cut at the bottom and right to multiples of the scale. "Nothing done" is bicubic
    enlargement.

    Args:
        scale: 2, 3, 4 or 8.
        images, limit, crop, seed: see ``SyntheticTask``; nothing here is random, the seed changes nothing.

    Raises:
        UserError: a parameter is out of range, or the folder holds no images.
    """

    seeded_as = "super_resolution"

    def __init__(
        self, scale: int, images: str = "bundled", limit: int | None = None, crop: int | None = None, seed: int = 0
    ):
        if scale not in SCALES:
            raise UserError(f"task.scale={scale} is unknown: accepted are {', '.join(map(str, SCALES))}")
        super().__init__(images, limit, crop, seed)
        self.scale = scale
        self.convention = Convention(colour="y", rounded=True, border=scale)

    def prepare(self, clean: np.ndarray) -> np.ndarray:
        height, width = (side // self.scale * self.scale for side in clean.shape[:2])
        if not height or not width:
            raise UserError(
                f"task.scale={self.scale} needs images of {self.scale} pixels a side, not "
                f"{clean.shape[1]}x{clean.shape[0]}: accepted are larger images"
            )
        return clean[:height, :width]

    def degrade(self, clean: np.ndarray, rng: np.random.Generator, depth: np.ndarray | None = None) -> np.ndarray:
        return _resized(clean, Fraction(1, self.scale))

    def as_output(self, degraded: np.ndarray) -> np.ndarray:
        return _resized(degraded, Fraction(self.scale))

    def identity(self) -> dict:
        return {"scale": self.scale}


def _resized(image: np.ndarray, scale: Fraction) -> np.ndarray:
    return bicubic(np.round(image * 255).astype(np.uint8), scale).astype(np.float32) / 255
