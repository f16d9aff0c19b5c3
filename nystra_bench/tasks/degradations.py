"""Seeded degradations of clean images, on numpy arrays (height, width, channels) of float32 in [0, 1]."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(*identity: object) -> np.random.Generator:
    """A random generator that depends on what is named, and on nothing else: not on order, not on the process."""
    text = "\x1f".join(str(part) for part in identity)
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big"))


def add_gaussian_noise(image: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Add white Gaussian noise of standard deviation ``sigma`` / 255; neither clipped nor rounded."""
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    return image + noise * np.float32(sigma / 255)
