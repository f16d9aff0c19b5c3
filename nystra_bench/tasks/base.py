"""A task: images, a seeded degradation, and the conventions of its metrics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nystra_bench.metrics.base import Convention


@dataclass(frozen=True)
class Sample:
    """One image of a task; ``degraded`` and ``clean`` are (height, width, channels) float32, clean in [0, 1]."""

    id: str
    degraded: np.ndarray
    clean: np.ndarray


class Task:
    """Base class of tasks. A task is one subclass and one file ``configs/task/<name>.yaml``."""

    version: ClassVar[str] = "1"
    """Raised whenever the samples change for the same parameters."""

    scale: ClassVar[int] = 1
    """Side of the clean image over that of the degraded one."""

    channels: ClassVar[int] = 3

    convention: ClassVar[Convention] = Convention()
    """How the ground-truth metrics of this task's literature look at the images."""

    @property
    def dataset(self) -> str:
        """What the images are called in tables."""
        raise NotImplementedError

    def samples(self) -> Iterator[Sample]:
        """The samples, the same ones in whatever order and process they are made."""
        raise NotImplementedError

    def identity(self) -> dict:
        """The parameters that decide the samples, besides the pixels that :meth:`digest` covers."""
        raise NotImplementedError

    def digest(self) -> str:
        """SHA-256 of the images."""
        raise NotImplementedError
