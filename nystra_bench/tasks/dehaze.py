"""Dehazing of images with synthetic haze."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nystra_bench.errors import UserError
from nystra_bench.metrics.conventions import DEHAZE
from nystra_bench.tasks.base import SyntheticTask
from nystra_bench.tasks.datasets import Box, Picture, cut_out
from nystra_bench.tasks.degradations import haze, synthetic_depth
from nystra_bench.tasks.pairs import PLACEHOLDER, FolderPairs, Pair

AIRLIGHT = (0.7, 1.0)
"""Range of the airlight's brightness, that of RESIDE's indoor training set (Li et al., IEEE TIP 2019)."""
TINT = 0.03
"""How far a channel of the airlight may be from the others."""


class Dehaze(SyntheticTask):
    """Haze by the scattering model over real depth where the picture has it, else over a seeded synthetic landscape.

    Distances are relative to the farthest point; airlight and density are drawn for each image.

    Args:
        density: the largest beta; each image's is between 0.4 times it and it. exp(-density) is how much of the
            farthest point's light is left in the densest haze.
        images, limit, crop, seed: see ``SyntheticTask``; ``images=stereo`` is the picture with real depth.

    Raises:
        UserError: a parameter is out of range, or the folder holds no images.
    """

    seeded_as = "dehaze"
    convention = DEHAZE

    def __init__(
        self,
        density: float = 2.0,
        images: str = "stereo+bundled",
        limit: int | None = None,
        crop: int | None = None,
        seed: int = 0,
    ):
        if isinstance(density, bool) or not isinstance(density, (int, float)) or not 0 < density <= 10:
            raise UserError(f"task.density={density} is out of range: accepted are numbers above 0, up to 10")
        super().__init__(images, limit, crop, seed)
        self.density = float(density)

    def degrade(self, clean: np.ndarray, rng: np.random.Generator, depth: np.ndarray | None = None) -> np.ndarray:
        beta = self.density * rng.uniform(0.4, 1.0)
        airlight = np.clip(rng.uniform(*AIRLIGHT) + rng.uniform(-TINT, TINT, 3), 0, 1)
        if depth is None:
            height, width = clean.shape[:2]
            depth = synthetic_depth(height, width, rng)
        return haze(clean, depth, beta, airlight)

    def identity(self) -> dict:
        return {"density": self.density, **super().identity()}


class DehazePairs(FolderPairs):
    """Hazy and clear images, several hazy ones for each clear one: RESIDE's SOTS and others.

    Args:
        clean_border: pixels cut off each side of the clear image first: 10 for SOTS/indoor as RESIDE has it, whose
            clear images keep a white border that the hazy ones have lost.
        root, degraded, clean, degraded_name, clean_name, limit, crop: see ``FolderPairs``.

    Raises:
        UserError: see ``FolderPairs``; the border is no whole number from 0 on.
    """

    convention = DEHAZE

    def __init__(
        self,
        root: str | None = None,
        degraded: str = "hazy",
        clean: str = "gt",
        degraded_name: str = PLACEHOLDER + "_*",
        clean_name: str = PLACEHOLDER,
        clean_border: int = 0,
        limit: int | None = None,
        crop: int | None = None,
    ):
        if type(clean_border) is not int or clean_border < 0:
            raise UserError(f"task.clean_border={clean_border} is out of range: accepted are whole numbers from 0 on")
        super().__init__(root, degraded, clean, degraded_name, clean_name, limit, crop)
        self.clean_border = clean_border

    def find(self) -> list[Pair]:
        return [replace(pair, clean=self._without_border(pair.clean)) for pair in super().find()]

    def _without_border(self, clean: Picture) -> Picture:
        b = self.clean_border

        def inside(size: tuple[int, int]) -> Box:
            rows, columns = (slice(b, max(side - b, b)) for side in size)
            return rows, columns

        return cut_out(clean, inside)
