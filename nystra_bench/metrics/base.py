"""A metric: one number an image, or one for a set of images, under a named convention."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import ClassVar

import numpy as np

from nystra_bench.metrics.conventions import CONVENTIONS, RAW, Convention

TARGETS = {
    "truth": "the clean image",
    "exact": "the output of the exact attention in the same window and bias mode",
    "native": "the output of the model as released",
}


class Metric:
    """Base class of metrics. A metric is one subclass and one file ``configs/metric/<name>.yaml``.

    Args:
        against: ``truth``, or for a deviation ``exact`` or ``native`` (see ``TARGETS``).
        convention: name of a convention (see ``CONVENTIONS``) to be used instead of the task's; the border stays the
            task's, and grey images stay grey.

    Raises:
        ValueError: one of them is unknown.
    """

    version: ClassVar[str] = "1"
    unit: ClassVar[str] = ""
    higher_is_better: ClassVar[bool] = True

    smallest: int = 1
    """Pixels a side that images must have, the convention's border left out; where one has fewer, the metric is n/a."""

    def __init__(self, against: str = "truth", convention: str | None = None):
        if against not in TARGETS:
            raise ValueError(f"against={against} is unknown: accepted are {', '.join(TARGETS)}")
        if convention not in (None, *CONVENTIONS):
            raise ValueError(f"convention={convention} is unknown: accepted are null, {', '.join(CONVENTIONS)}")
        self.against = against
        self._named = convention

    def available(self) -> str | None:
        """Why the metric cannot be computed on this machine; None where it can."""
        return None

    def too_large_for(self, sizes: Iterable[tuple[int, int]], of_task: Convention) -> str | None:
        """Why it cannot be computed on images of these heights and widths; None where it can."""
        height, width = min(sizes, key=min, default=(math.inf, math.inf))
        if min(height, width) - 2 * self.convention(of_task).border >= self.smallest:
            return None
        return f"it needs images of {self.smallest} pixels a side, and the smallest one is {width}x{height}"

    def compare(self, output: np.ndarray, target: np.ndarray) -> float:
        """The number for two images (height, width, C) float64 in the convention's form, peak value 1."""
        raise NotImplementedError

    def __call__(self, output: np.ndarray, target: np.ndarray, convention: Convention) -> float:
        if output.shape != target.shape:
            raise ValueError(f"images of shapes {output.shape} and {target.shape} cannot be compared")
        used = self.convention(convention).for_target(target)
        return float(self.compare(self.prepare(output, used), self.prepare(target, used)))

    def prepare(self, image: np.ndarray, convention: Convention) -> np.ndarray:
        """An image as :meth:`compare` takes it."""
        return convention.prepare(image)

    def convention(self, of_task: Convention) -> Convention:
        """The convention under which the metric looks at the images of a task with the convention ``of_task``."""
        if self._named and of_task.colour != "grey":
            return replace(CONVENTIONS[self._named], border=of_task.border)
        return of_task if self.against == "truth" else RAW

    def describe(self, of_task: Convention) -> dict:
        """What a table's header says of the metric."""
        return {
            "unit": self.unit,
            "higher_is_better": self.higher_is_better,
            "convention": f"against {TARGETS[self.against]}; {self.convention(of_task)}",
        }


class SetMetric(Metric):
    """Base class of metrics with one number for a set of images: a distance between two sets of feature vectors."""

    def features(self, image: np.ndarray) -> np.ndarray:
        """What is kept of an image (height, width, C) float64 in the convention's form: (n, D), n vectors."""
        raise NotImplementedError

    def compare(self, outputs: np.ndarray, targets: np.ndarray) -> float:
        """The number for the features of two sets, (N, D) and (M, D), all finite."""
        raise NotImplementedError

    def __call__(self, output: np.ndarray, target: np.ndarray, convention: Convention) -> float:
        """The number for sets of one image each."""
        sets = self.open(convention)
        sets.add(output, target)
        return sets.result()

    def open(self, convention: Convention) -> Accumulator:
        """What collects the images of a task with this convention."""
        return Accumulator(self, self.convention(convention))


class Accumulator:
    """Collects a set of outputs and one of targets, image by image; only features are kept."""

    def __init__(self, metric: SetMetric, convention: Convention):
        self._metric, self._convention = metric, convention
        self._outputs: list[np.ndarray] = []
        self._targets: list[np.ndarray] = []

    def add(self, output: np.ndarray, target: np.ndarray) -> None:
        """Two images (height, width, C) float, about [0, 1]."""
        self.take(*self.features(output, target))

    def features(self, output: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What is kept of two such images, of each (n, D)."""
        used = self._convention.for_target(target)
        of_output, of_target = (self._metric.features(self._metric.prepare(image, used)) for image in (output, target))
        return of_output, of_target

    def take(self, of_output: np.ndarray, of_target: np.ndarray) -> None:
        """What ``features`` gave of two images, perhaps in an earlier process."""
        self._outputs.append(of_output)
        self._targets.append(of_target)

    def result(self) -> float:
        """The number for all images so far; ``nan`` where an image is not finite."""
        outputs, targets = np.concatenate(self._outputs), np.concatenate(self._targets)
        if not (np.isfinite(outputs).all() and np.isfinite(targets).all()):
            return float("nan")
        return float(self._metric.compare(outputs, targets))
