"""Seeded degradations of clean images, on numpy arrays (height, width, channels) of float32 in [0, 1]."""

from __future__ import annotations

import hashlib
import io
import math

import numpy as np


def generator(*identity: object) -> np.random.Generator:
    """A random generator that depends on what is named, and on nothing else: not on order, not on the process."""
    text = "\x1f".join(str(part) for part in identity)
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big"))


def add_gaussian_noise(image: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Add white Gaussian noise of standard deviation ``sigma`` / 255; neither clipped nor rounded."""
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    return image + noise * np.float32(sigma / 255)


def stored(image: np.ndarray) -> np.ndarray:
    """The image as a file of 8 bits holds it: clipped to [0, 1] and rounded."""
    return (np.round(image.clip(0, 1) * 255) / 255).astype(np.float32)


def add_camera_noise(image: np.ndarray, shot: float, read: float, rng: np.random.Generator) -> np.ndarray:
    """Noise of variance ``shot * light + read``, added to the linear light of an sRGB image; not clipped at the top.

    The Gaussian approximation of a sensor's Poisson and read noise (Foi et al., IEEE TIP 2008).
    """
    light = to_linear(image)
    deviation = np.sqrt(shot * light + read).astype(np.float32)
    noisy = light + deviation * rng.standard_normal(image.shape, dtype=np.float32)
    return to_srgb(np.maximum(noisy, 0))


# --------------------------------------------------------------------------- blur


def to_linear(image: np.ndarray) -> np.ndarray:
    """sRGB values in [0, 1] as linear light (IEC 61966-2-1)."""
    low = image / 12.92
    return np.where(image <= 0.04045, low, ((np.maximum(image, 0.04045) + 0.055) / 1.055) ** 2.4).astype(np.float32)


def to_srgb(light: np.ndarray) -> np.ndarray:
    """The inverse of :func:`to_linear`."""
    high = 1.055 * np.maximum(light, 0.0031308) ** (1 / 2.4) - 0.055
    return np.where(light <= 0.0031308, light * 12.92, high).astype(np.float32)


def gaussian_kernel(sigma: float) -> np.ndarray:
    """Isotropic Gaussian (k, k) float32 of sum 1, cut off at 4 ``sigma`` pixels."""
    radius = max(1, math.ceil(4 * sigma))
    line = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = np.outer(line, line)
    return (kernel / kernel.sum()).astype(np.float32)


def motion_kernel(length: float, rng: np.random.Generator) -> np.ndarray:
    """The path of a shaking camera during an exposure, drawn as a blur kernel (k, k) float32 of sum 1.

    The camera moves on at constant speed in a direction that changes smoothly, at random (after the random motion of
    Boracchi and Foi, IEEE TIP 2012); the path's length is between half of ``length`` and ``length`` pixels, and its
    centre of mass is in the middle of the kernel.
    """
    steps = max(64, math.ceil(2 * length))  # at most half a pixel apart
    turning = rng.normal(0, 1.0, 4)  # two smooth random bends, in radians
    phase = np.linspace(0, 1, steps)
    angle = rng.uniform(0, 2 * np.pi) + turning[0] * phase + turning[1] * np.sin(np.pi * phase)
    step = rng.uniform(0.5, 1.0) * length / (steps - 1)
    path = np.cumsum(step * np.stack([np.sin(angle), np.cos(angle)], 1), 0)
    path -= path.mean(0)
    radius = max(1, math.ceil(np.abs(path).max()))
    kernel = np.zeros((2 * radius + 1, 2 * radius + 1))
    corner = np.floor(path).astype(int)
    for down in (0, 1):
        for right in (0, 1):  # each point of the path is shared by the four pixels around it
            y, x = corner[:, 0] + down, corner[:, 1] + right
            share = (1 - np.abs(path[:, 0] - y)) * (1 - np.abs(path[:, 1] - x))
            inside = (np.abs(y) <= radius) & (np.abs(x) <= radius)
            np.add.at(kernel, (y[inside] + radius, x[inside] + radius), share[inside])
    return (kernel / kernel.sum()).astype(np.float32)


def blur(image: np.ndarray, kernel: np.ndarray, light: str = "linear") -> np.ndarray:
    """Convolve each channel with ``kernel``; the border is continued by reflection.

    Args:
        light: ``linear`` blurs linear light, as a camera does; ``srgb`` the stored values.
    """
    from scipy.signal import oaconvolve

    values = to_linear(image) if light == "linear" else image
    radius = kernel.shape[0] // 2
    padded = np.pad(values, ((radius, radius), (radius, radius), (0, 0)), mode="symmetric")
    blurred = oaconvolve(padded, kernel[:, :, None], mode="valid", axes=(0, 1)).astype(np.float32)
    return to_srgb(blurred.clip(0, 1)) if light == "linear" else blurred


# --------------------------------------------------------------------------- haze


def haze(image: np.ndarray, depth: np.ndarray, beta: float, airlight: np.ndarray | float) -> np.ndarray:
    """Atmospheric scattering (Koschmieder): ``I = J t + A (1 - t)``, with ``t = exp(-beta depth)``.

    On the values as they are stored, as RESIDE's images are made (Li et al., IEEE TIP 2019), not on linear light.

    Args:
        depth: (height, width) float, in the units of 1 / ``beta``.
        airlight: A, one number or one a channel, in [0, 1].
    """
    transmission = np.exp(-beta * depth).astype(np.float32)[:, :, None]
    return (image * transmission + np.float32(airlight) * (1 - transmission)).astype(np.float32)


def synthetic_depth(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A seeded landscape of distances: ground that recedes upwards, and bodies on it; float32 in [0.15, 1].

    The ground's slope and tilt are random; three octaves of smooth bumps stand for the bodies.
    """
    from scipy.ndimage import zoom

    y, x = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    depth = rng.uniform(0.2, 1.0) * (1 - y) + rng.uniform(-0.3, 0.3) * x
    for grid, height_of_bumps in ((3, 0.5), (6, 0.3), (12, 0.15)):
        bumps = rng.uniform(-height_of_bumps, height_of_bumps, (grid, grid))
        factors = (height / grid, width / grid)
        depth += zoom(bumps, factors, order=1, mode="nearest", grid_mode=True)[:height, :width]
    depth -= depth.min()
    return (0.15 + 0.85 * depth / max(depth.max(), 1e-6)).astype(np.float32)


# --------------------------------------------------------------------------- grey, and JPEG


def grey(image: np.ndarray) -> np.ndarray:
    """(height, width, 3) sRGB -> (height, width, 1): 0.299 R + 0.587 G + 0.114 B, rounded to 8 bits.

    A grey image, with three equal channels, stays what it is.
    """
    return stored(image @ np.array([[0.299], [0.587], [0.114]]))


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """An 8-bit image (height, width, 1 or 3) after JPEG compression by libjpeg, in the usual form.

    Baseline, with the standard's example tables scaled by ``quality`` (1 to 100), colour at half the resolution: what
    OpenCV's ``imencode`` writes, with which the literature's inputs are made.
    """
    from PIL import Image

    levels = np.round(image * 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels).save(file, "JPEG", quality=quality)
    with Image.open(file) as decoded:
        return np.asarray(decoded).reshape(levels.shape).astype(np.float32) / 255
