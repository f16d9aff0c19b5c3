"""Dehazing of images with synthetic haze."""

from __future__ import annotations

import numpy as np

from nystra_bench.errors import UserError
from nystra_bench.metrics.base import Convention
from nystra_bench.tasks.base import SyntheticTask
from nystra_bench.tasks.degradations import haze, synthetic_depth

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
    convention = Convention(colour="rgb", rounded=False, border=0)

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
            depth = synthetic_depth(*clean.shape[:2], rng)
        return haze(clean, depth, beta, airlight)

    def identity(self) -> dict:
        return {"density": self.density, **super().identity()}
