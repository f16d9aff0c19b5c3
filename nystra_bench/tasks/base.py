"""A task: images, a seeded degradation, and the conventions of its metrics."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import ClassVar

import numpy as np

from nystra_bench.errors import Absent
from nystra_bench.metrics.conventions import RGB8, Convention
from nystra_bench.metrics.ssim import SMALLEST
from nystra_bench.tasks.datasets import (
    BUNDLED,
    Large,
    Picture,
    central,
    check_limits,
    digest,
    folder_note,
    folder_of,
    frames_note,
    pictures,
)
from nystra_bench.tasks.degradations import generator
from nystra_bench.text import printable


@dataclass(frozen=True)
class Sample:
    """One image of a task; ``degraded`` and ``clean`` are (height, width, channels) float32, clean in [0, 1]."""

    id: str
    degraded: np.ndarray
    clean: np.ndarray


CALIBRATION_CROP = 128
"""Side in pixels of the images that methods are calibrated on."""


class Task:
    """Base class of tasks. A task is one subclass and one file ``configs/task/<name>.yaml``."""

    version: ClassVar[str] = "1"
    """Raised whenever the samples change for the same parameters."""

    scale: int = 1
    """Side of the clean image over that of the degraded one."""

    channels: ClassVar[int] = 3

    convention: Convention = RGB8
    """How the ground-truth metrics of this task's literature look at the images."""

    @property
    def dataset(self) -> str:
        """What the images are called in tables."""
        raise NotImplementedError

    def available(self) -> str | None:
        """Why the task has no images on this machine; None where it has. Its cells are then skipped."""
        return None

    def samples(self) -> Iterator[Sample]:
        """The samples, the same ones in whatever order and process they are made."""
        raise NotImplementedError

    def ids(self) -> list[str]:
        """The ids of the samples, each another, in their order; tasks that can tell them without making samples do."""
        return [sample.id for sample in self.samples()]

    def chosen(self, ids: Container[str]) -> Iterator[Sample]:
        """The samples that have these ids, in their order; tasks that make samples one by one make no others."""
        return (sample for sample in self.samples() if sample.id in ids)

    def calibration(self, count: int) -> tuple[list[Sample], bool]:
        """Samples, at most ``count``, that a method may be calibrated on, and whether they are measured, too.

        They are central squares, small, and not among the task's samples where there are others.
        """
        return [_small(sample, self.scale) for sample in islice(self.samples(), count)], True

    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of each sample's degraded image; tasks that can tell without making it say so."""
        return [sample.degraded.shape[:2] for sample in self.samples()]

    def identity(self) -> dict:
        """The parameters that decide the samples, besides the pixels that :meth:`digest` covers."""
        raise NotImplementedError

    def digest(self) -> str:
        """SHA-256 of the images."""
        raise NotImplementedError

    def notes(self) -> list[str]:
        """What a user should know of the images, a sentence each: what of a folder is left out, and why."""
        return []

    @property
    def least_side(self) -> int:
        """Pixels a side that a clean image must have for SSIM, the border left out; a smaller one is no sample."""
        return SMALLEST + 2 * self.convention.border

    def as_output(self, degraded: np.ndarray) -> np.ndarray:
        """The degraded image in the clean image's size: what stands for "nothing done" beside the outputs."""
        return degraded


class SyntheticTask(Task):
    """A seeded degradation of clean images; subclasses say which.

    Args:
        images: ``bundled``, one of the bundled images by name, a folder of clean images, or one of a fetched data set,
            as ``set5/HR``.
        limit: number of images; None takes all.
        crop: side of the central crop in pixels; None takes whole images.
        seed: of the degradation; an image's depends on the task, its id and the seed alone.

    Raises:
        UserError: a parameter is out of range, or the folder holds no images; when these are used, that all of them are
            too small to be compared.
    """

    seeded_as: ClassVar[str]
    """The task's name in the seeds of its degradations."""

    def __init__(self, images: str = "bundled", limit: int | None = None, crop: int | None = None, seed: int = 0):
        check_limits(limit, crop)
        self.seed = seed
        self.images = str(images)
        self._limit, self._crop = limit, crop
        self._absent: str | None = None
        try:
            self._all = pictures(self.images, crop=crop, limit=limit if self.images in BUNDLED else None)
        except Absent as absent:
            self._all, self._absent = [], str(absent)

    def available(self) -> str | None:
        return self._absent

    @cached_property
    def pictures(self) -> list[Picture]:
        """Those that are large enough, the first ``limit`` of them; none where the data set is absent."""
        chosen = self._large.first(self._all, lambda picture: picture.size(), self._limit)
        if not chosen and not self._absent:
            raise self._large.nothing(self._given)
        return chosen

    @cached_property
    def _large(self) -> Large:
        return Large(self.least_side, self.scale, self._crop)

    @property
    def _given(self) -> str:
        return f"task.images={printable(self.images)}"

    def notes(self) -> list[str]:
        chosen = self.pictures
        folder = [] if self.images in BUNDLED else folder_note(self._given, folder_of(self.images))
        return folder + frames_note(self._given, chosen) + self._large.note(self._given)

    def prepare(self, clean: np.ndarray) -> np.ndarray:
        """The clean image as it is restored and compared: cut to a size that the degradation needs."""
        return clean

    def degraded_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the degraded image that a picture of this size gives."""
        return height, width

    def degrade(self, clean: np.ndarray, rng: np.random.Generator, depth: np.ndarray | None = None) -> np.ndarray:
        """Degrade (height, width, 3) float32 in [0, 1]; ``depth`` is the scene's (height, width), where it is known."""
        raise NotImplementedError

    @property
    def dataset(self) -> str:
        return self.images if self.images in BUNDLED else printable(folder_of(self.images).resolve().name)

    def samples(self) -> Iterator[Sample]:
        return map(self._sample, self.pictures)

    def ids(self) -> list[str]:
        return [picture.id for picture in self.pictures]

    def chosen(self, ids: Container[str]) -> Iterator[Sample]:
        return (self._sample(picture) for picture in self.pictures if picture.id in ids)

    def _sample(self, picture: Picture) -> Sample:
        clean = self.prepare(picture.read().astype(np.float32) / 255)
        rng = generator(self.seeded_as, picture.id, self.seed)
        depth = picture.depth() if picture.depth else None
        return Sample(picture.id, self.degrade(clean, rng, depth), clean)

    def calibration(self, count: int) -> tuple[list[Sample], bool]:
        measured = {picture.id for picture in self.pictures}
        others = [p for p in pictures(self.images, None, CALIBRATION_CROP) if p.id not in measured]
        others = Large(self.least_side, self.scale).first(others, lambda picture: picture.size(), count)
        return ([self._sample(picture) for picture in others], False) if others else super().calibration(count)

    def sizes(self) -> list[tuple[int, int]]:
        return [self.degraded_size(*picture.size()) for picture in self.pictures]

    def identity(self) -> dict:
        return {"seed": self.seed}

    def digest(self) -> str:
        return digest(self.pictures)


def _small(sample: Sample, scale: int) -> Sample:
    """The central square of a sample, with the part of the clean image that belongs to it."""
    box = central(sample.degraded.shape[:2], CALIBRATION_CROP // scale)
    clean = tuple(slice(part.start * scale, part.stop * scale) for part in box)
    return Sample(sample.id, sample.degraded[box], sample.clean[clean])
