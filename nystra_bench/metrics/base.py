"""A metric: one number an image, and the conventions under which it is meant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

TARGETS = {
    "truth": "the clean image",
    "exact": "the output of the exact attention in the same window and bias mode",
    "native": "the output of the model as released",
}


@dataclass(frozen=True)
class Convention:
    """How a task's literature prepares images before it compares them with the ground truth.

    Args:
        colour: ``rgb``.
        rounded: clip to [0, 1] and round to 8 bits first.
        border: pixels left out on each side.
    """

    colour: str = "rgb"
    rounded: bool = True
    border: int = 0

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """(height, width, C) float in [0, 1] -> float64 on the same scale."""
        image = image.astype(np.float64)
        if self.rounded:
            image = np.round(image.clip(0, 1) * 255) / 255
        b = self.border
        return image[b : image.shape[0] - b, b : image.shape[1] - b] if b else image

    def __str__(self) -> str:
        border = f"border of {self.border} pixels left out" if self.border else "whole image"
        return f"{self.colour.upper()}, {border}, {'clipped and rounded to 8 bits' if self.rounded else 'float'}"


RAW = Convention(rounded=False)
"""Deviations between two outputs: float, neither clipped nor rounded, which would hide small ones."""


class Metric:
    """Base class of metrics. A metric is one subclass and one file ``configs/metric/<name>.yaml``.

    Args:
        against: ``truth``, or for a deviation ``exact`` or ``native`` (see ``TARGETS``).
    """

    version: ClassVar[str] = "1"
    unit: ClassVar[str] = ""
    higher_is_better: ClassVar[bool] = True

    def __init__(self, against: str = "truth"):
        if against not in TARGETS:
            raise ValueError(f"against={against} is unknown: accepted are {', '.join(TARGETS)}")
        self.against = against

    def available(self) -> str | None:
        """Why the metric cannot be computed on this machine; None where it can."""
        return None

    def compare(self, output: np.ndarray, target: np.ndarray) -> float:
        """The number for two images (height, width, C) float64 in the convention's form, peak value 1."""
        raise NotImplementedError

    def __call__(self, output: np.ndarray, target: np.ndarray, convention: Convention) -> float:
        used = self.convention(convention)
        return float(self.compare(used.prepare(output), used.prepare(target)))

    def convention(self, of_task: Convention) -> Convention:
        return of_task if self.against == "truth" else RAW

    def describe(self, of_task: Convention) -> dict:
        """What a table's header says of the metric."""
        return {
            "unit": self.unit,
            "higher_is_better": self.higher_is_better,
            "convention": f"against {TARGETS[self.against]}; {self.convention(of_task)}",
        }
