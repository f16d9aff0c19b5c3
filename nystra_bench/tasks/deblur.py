"""Deblurring of images blurred by seeded kernels."""

from __future__ import annotations

import numpy as np

from nystra_bench.errors import UserError, unknown
from nystra_bench.metrics.conventions import DEBLUR
from nystra_bench.tasks.base import SyntheticTask
from nystra_bench.tasks.degradations import add_gaussian_noise, blur, gaussian_kernel, motion_kernel
from nystra_bench.tasks.pairs import FolderPairs

KERNELS = ("motion", "gaussian")
LIGHTS = ("linear", "srgb")


class Deblur(SyntheticTask):
    """One blur kernel an image, from the image's id and the seed, and a little noise after it.

    Args:
        kernel: ``motion`` (the path of a shaking camera) or ``gaussian``.
        size: motion: the longest path in pixels, each image's is between half of it and it; gaussian: the largest
            standard deviation in pixels, each image's is between half of it and it.
        noise: standard deviation of the noise on the scale of 0 to 255.
        light: ``linear`` blurs linear light, as a camera does; ``srgb`` the stored values.
        images, limit, crop, seed: see ``SyntheticTask``.

    Raises:
        UserError: a parameter is out of range, or the folder holds no images.
    """

    seeded_as = "deblur"
    convention = DEBLUR

    def __init__(
        self,
        kernel: str = "motion",
        size: float = 12,
        noise: float = 1,
        light: str = "linear",
        images: str = "bundled",
        limit: int | None = None,
        crop: int | None = None,
        seed: int = 0,
    ):
        for name, value, accepted in (("kernel", kernel, KERNELS), ("light", light, LIGHTS)):
            if value not in accepted:
                raise unknown(f"task.{name}", value, accepted)
        for name, value, least, most in (("size", size, 0.5, 100), ("noise", noise, 0, 255)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
                raise UserError(f"task.{name}={value} is out of range: accepted are numbers from {least} to {most}")
        super().__init__(images, limit, crop, seed)
        self.kernel, self.size, self.noise, self.light = kernel, float(size), float(noise), light

    def draw_kernel(self, rng: np.random.Generator) -> np.ndarray:
        """A kernel (k, k) float32 of sum 1."""
        if self.kernel == "motion":
            return motion_kernel(self.size, rng)
        return gaussian_kernel(self.size * rng.uniform(0.5, 1.0))

    def degrade(self, clean: np.ndarray, rng: np.random.Generator, depth: np.ndarray | None = None) -> np.ndarray:
        return add_gaussian_noise(blur(clean, self.draw_kernel(rng), self.light), self.noise, rng)

    def identity(self) -> dict:
        parameters = {"kernel": self.kernel, "size": self.size, "noise": self.noise, "light": self.light}
        return {**parameters, **super().identity()}


class DeblurPairs(FolderPairs):
    """Blurred and sharp photographs: GoPro, HIDE, RealBlur and others."""

    convention = DEBLUR
