"""Super-resolution of bicubically reduced images."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from nystra_bench.errors import UserError
from nystra_bench.metrics.conventions import super_resolution
from nystra_bench.tasks.base import SyntheticTask
from nystra_bench.tasks.pairs import FolderPairs
from nystra_bench.tasks.resize import bicubic

SCALES = (2, 3, 4, 8)
VIA_DOUBLE = (8,)
"""Scales whose published images were rounded once: ×8 came later than the others, and by another script."""


class SuperResolution(SyntheticTask):
    """Low-resolution images by MATLAB's bicubic ``imresize``, the literature's standard degradation.

    The clean image is first cut at the bottom and right to multiples of the scale. "Nothing done" is bicubic
    enlargement.

    Args:
        scale: 2, 3, 4 or 8.
        grey: how metrics look at grey images, see ``conventions.super_resolution``.
        images, limit, crop, seed: see ``SyntheticTask``; nothing here is random, the seed changes nothing.

    Raises:
        UserError: a parameter is out of range, or the folder holds no images.
    """

    seeded_as = "super_resolution"

    def __init__(
        self,
        scale: int,
        images: str = "bundled",
        limit: int | None = None,
        crop: int | None = None,
        seed: int = 0,
        grey: str = "colour",
    ):
        check_scale(scale)
        super().__init__(images, limit, crop, seed)
        self.scale, self.grey = scale, grey
        self.convention = super_resolution(scale, grey)

    def prepare(self, clean: np.ndarray) -> np.ndarray:
        height, width = self.degraded_size(*clean.shape[:2])
        return clean[: height * self.scale, : width * self.scale]

    def degraded_size(self, height: int, width: int) -> tuple[int, int]:
        return height // self.scale, width // self.scale

    def degrade(self, clean: np.ndarray, rng: np.random.Generator, depth: np.ndarray | None = None) -> np.ndarray:
        return _resized(clean, Fraction(1, self.scale), self.scale in VIA_DOUBLE)

    def as_output(self, degraded: np.ndarray) -> np.ndarray:
        return enlarged(degraded, self.scale)

    def identity(self) -> dict:
        return _identity(self.scale, self.grey)


class SuperResolutionPairs(FolderPairs):
    """Super-resolution of given low-resolution images: Set5, Set14, BSD100, Urban100, Manga109.

    Args:
        scale: 2, 3, 4 or 8; put in where ``{scale}`` stands in the folders and names.
        grey: how metrics look at grey images, see ``conventions.super_resolution``.
        root, degraded, clean, degraded_name, clean_name, limit, crop: see ``FolderPairs``.

    Raises:
        UserError: a parameter is out of range.
    """

    def __init__(
        self,
        scale: int,
        root: str | None = None,
        degraded: str = "LR_bicubic/X{scale}",
        clean: str = "HR",
        degraded_name: str = "{name}x{scale}",
        clean_name: str = "{name}",
        limit: int | None = None,
        crop: int | None = None,
        grey: str = "colour",
    ):
        check_scale(scale)
        texts = (text.replace("{scale}", str(scale)) for text in (degraded, clean, degraded_name, clean_name))
        degraded, clean, degraded_name, clean_name = texts
        self.scale, self.grey = scale, grey
        self.convention = super_resolution(scale, grey)
        super().__init__(root, degraded, clean, degraded_name, clean_name, limit, crop)

    def as_output(self, degraded: np.ndarray) -> np.ndarray:
        return enlarged(degraded, self.scale)

    def identity(self) -> dict:
        return _identity(self.scale, self.grey)


def _identity(scale: int, grey: str) -> dict:
    """``grey`` stands in it only where it is not the usual one: the other cells stay what they were."""
    return {"scale": scale} | ({} if grey == "colour" else {"grey": grey})


def check_scale(scale: int) -> None:
    """Hold a scale to the accepted ones.

    Raises:
        UserError: it is none of them.
    """
    if type(scale) is not int or scale not in SCALES:
        raise UserError(f"task.scale={scale} is unknown: accepted are {', '.join(map(str, SCALES))}")


def enlarged(image: np.ndarray, scale: int) -> np.ndarray:
    """(height, width, 3) float32 in [0, 1], enlarged by MATLAB's bicubic ``imresize`` of the 8-bit image."""
    return _resized(image, Fraction(scale))


def _resized(image: np.ndarray, scale: Fraction, via_double: bool = False) -> np.ndarray:
    return bicubic(np.round(image * 255).astype(np.uint8), scale, via_double).astype(np.float32) / 255
