"""Bicubic resizing as MATLAB's ``imresize`` does it: the literature's low-resolution images are made by it."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache

import numpy as np

A = -0.5
"""Parameter of the cubic convolution kernel (Keys, 1981, eq. 15)."""


def bicubic(image: np.ndarray, scale: Fraction | float, via_double: bool = False) -> np.ndarray:
    """Resize (height, width, C) uint8 by ``scale``, with antialiasing where it shrinks.

    Rows first, then columns, the border continued symmetrically. The result has ``ceil(scale * side)`` pixels a side.

    Args:
        via_double: round and clip to 8 bits at the end alone, as where ``imresize`` is given a double image; else
            after each of the two passes, as where it is given uint8.

    Raises:
        ValueError: the image is not uint8.
    """
    if image.dtype != np.uint8:
        raise ValueError(f"bicubic resizing as MATLAB's is defined on uint8 images, not {image.dtype}")
    rows = _along(image, 0, Fraction(scale))
    return _to_uint8(_along(rows if via_double else _to_uint8(rows), 1, Fraction(scale)))


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.floor(values.clip(0, 255) + 0.5).astype(np.uint8))  # halves go up, as in MATLAB


def _along(image: np.ndarray, axis: int, scale: Fraction) -> np.ndarray:
    weights, taken = _contributions(image.shape[axis], scale)
    moved = np.moveaxis(image, axis, 0).astype(np.float64)
    total = sum(weights[:, tap, None, None] * moved[taken[:, tap]] for tap in range(weights.shape[1]))
    return np.moveaxis(total, 0, axis)


@lru_cache(maxsize=64)
def _contributions(length: int, scale: Fraction) -> tuple[np.ndarray, np.ndarray]:
    """Weights and indices (new length, taps) of the input samples that make each output sample."""
    shrink = min(float(scale), 1.0)  # the kernel widens where the image shrinks
    width = 4 / shrink
    new = math.ceil(length * scale)
    centre = (np.arange(1, new + 1) - 0.5) / float(scale) + 0.5
    first = np.floor(centre - width / 2)
    taps = first[:, None] + np.arange(math.ceil(width) + 2)[None]
    weights = _cubic((centre[:, None] - taps) * shrink)
    weights /= weights.sum(1, keepdims=True)
    mirrored = np.concatenate([np.arange(length), np.arange(length)[::-1]])
    taken = mirrored[(taps.astype(np.int64) - 1) % (2 * length)]
    used = weights.any(0)
    return weights[:, used], taken[:, used]


def _cubic(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    near = (A + 2) * x**3 - (A + 3) * x**2 + 1
    far = A * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
