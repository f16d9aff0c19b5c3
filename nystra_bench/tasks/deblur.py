"""Deblurring of images blurred by seeded kernels."""

from __future__ import annotations

import numpy as np

from nystra_bench.errors import UserError, unknown
from nystra_bench.metrics.conventions import DEBLUR
from nystra_bench.tasks.base import SyntheticTask
from nystra_bench.tasks.degradations import add_gaussian_noise, blur, gaussian_kernel, generator, motion_kernel, stored
from nystra_bench.tasks.pairs import FolderPairs

KERNELS = ("motion", "gaussian")
LIGHTS = ("linear", "srgb")


class Deblur(SyntheticTask):
    """One blur kernel an image, from the image's id and the seed; the result is rounded to 8 bits.

    Args:
        kernel: ``motion`` (the path of a shaking camera) or ``gaussian``.
        kernels: how many kernels there are, drawn from the seed; each image has one of them, as in the benchmark of
            Levin et al. (CVPR 2009), which has 8. None draws a new one for each image.
        size: motion: the longest path in pixels, each image's is between half of it and it; gaussian: the largest
            standard deviation in pixels, each image's is between half of it and it.
        noise: standard deviation of the noise before the rounding, on the scale of 0 to 255.
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
        kernels: int | None = 8,
        size: float = 8,
        noise: float = 0,
        light: str = "linear",
        images: str = "bundled",
        limit: int | None = None,
        crop: int | None = None,
        seed: int = 0,
    ):
        for name, value, accepted in (("kernel", kernel, KERNELS), ("light", light, LIGHTS)):
            if value not in accepted:
                raise unknown(f"task.{name}", value, accepted)
        for option, number, least, most in (("size", size, 0.5, 100), ("noise", noise, 0, 255)):
            if isinstance(number, bool) or not isinstance(number, (int, float)) or not least <= number <= most:
                raise UserError(f"task.{option}={number} is out of range: accepted are numbers from {least} to {most}")
        if kernels is not None and (not isinstance(kernels, int) or isinstance(kernels, bool) or kernels < 1):
            raise UserError(f"task.kernels={kernels} is out of range: accepted are whole numbers from 1 on, or null")
        super().__init__(images, limit, crop, seed)
        self.kernel, self.kernels, self.light = kernel, kernels, light
        self.size, self.noise = float(size), float(noise)

    def draw_kernel(self, rng: np.random.Generator) -> np.ndarray:
        """A kernel (k, k) float32 of sum 1."""
        if self.kernels is not None:
            rng = generator(self.seeded_as, "kernel", int(rng.integers(self.kernels)), self.seed)
        if self.kernel == "motion":
            return motion_kernel(self.size, rng)
        return gaussian_kernel(self.size * rng.uniform(0.5, 1.0))

    def degrade(self, clean: np.ndarray, rng: np.random.Generator, depth: np.ndarray | None = None) -> np.ndarray:
        blurred = blur(clean, self.draw_kernel(rng), self.light)
        return stored(add_gaussian_noise(blurred, self.noise, rng))

    def identity(self) -> dict:
        parameters = {
            "kernel": self.kernel,
            "kernels": self.kernels,
            "size": self.size,
            "noise": self.noise,
            "light": self.light,
        }
        return {**parameters, **super().identity()}


class DeblurPairs(FolderPairs):
    """Blurred and sharp photographs: GoPro, HIDE, RealBlur and others."""

    convention = DEBLUR
