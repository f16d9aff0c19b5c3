"""Clean images: those that come with installed packages, or a folder of the user's."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from nystra_bench.errors import UserError
from nystra_bench.tasks.image_files import (
    ENDINGS,
    existing_folder,
    frames,
    image_files,
    image_size,
    left_out,
    read_image,
    some,
)
from nystra_bench.text import printable

_PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket", "hubble_deep_field")
_BY_NAME_ALONE = ("retina",)  # 1,411² pixels, of the inside of an eye: large, and unlike what the models are used on
BUNDLED = {
    "bundled": _PHOTOGRAPHS,
    "stereo": ("motorcycle",),
    "stereo+bundled": ("motorcycle", *_PHOTOGRAPHS),
    **{name: (name,) for name in _PHOTOGRAPHS + _BY_NAME_ALONE},
}
"""Photographs inside the wheel of scikit-image (public domain or CC0), in the order in which ``limit`` takes them, and
each by its name; that of a stereo pair (Middlebury 2014, "Motorcycle") has the scene's depth."""


@dataclass(frozen=True)
class Picture:
    """An image that is read when it is asked for."""

    id: str
    read: Callable[[], np.ndarray]
    """Gives (height, width, 3) uint8."""

    size: Callable[[], tuple[int, int]]
    """Gives height and width; of a file by its header alone."""

    depth: Callable[[], np.ndarray] | None = None
    """Gives the distances (height, width) float32, the farthest 1; None where they are not known."""

    frames: Callable[[], int] = lambda: 1
    """Gives the number of frames or pages of the file, of which the picture is the first."""


def pictures(images: str, limit: int | None = None, crop: int | None = None) -> list[Picture]:
    """The pictures of ``images``: a name in ``BUNDLED``, or all image files of a folder in the order of their names.

    Args:
        limit: how many to take, from the first on; None takes all.
        crop: side in pixels of the central square to cut out; None, or a smaller side, leaves the image whole.

    Raises:
        Absent: it is a folder of a data set that was not fetched.
        UserError: the folder is absent or holds no image, or a number is out of range.
    """
    check_limits(limit, crop)
    found = _bundled(images) if images in BUNDLED else _in_folder(str(images))
    return [_cropped(picture, crop) for picture in found[:limit]]


def folder_of(images: str) -> Path:
    """The folder that ``task.images`` names: by its path, or as one of a fetched data set.

    Raises:
        Absent: that data set was not fetched.
    """
    from nystra_bench.fetch import data_folder

    return data_folder("task.images", str(images))


def check_limits(limit: int | None, crop: int | None) -> None:
    """Hold the two to whole numbers from 1 on, or None.

    Raises:
        UserError: one of them is something else.
    """
    for name, value in (("limit", limit), ("crop", crop)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise UserError(f"task.{name}={value} is out of range: accepted are whole numbers from 1 on, or null")


Box = tuple[slice, slice]
"""Rows and columns of a rectangle, each with a start and a stop."""


def central(size: tuple[int, int], crop: int | None) -> Box:
    """The central square of ``crop`` pixels a side, or as much of it as there is; None takes everything."""
    kept = [side if crop is None else min(side, crop) for side in size]
    starts = [(side - length) // 2 for side, length in zip(size, kept, strict=True)]
    rows, columns = (slice(start, start + length) for start, length in zip(starts, kept, strict=True))
    return rows, columns


def digest(chosen: list[Picture]) -> str:
    """SHA-256 over the ids, sizes and pixels of pictures."""
    total = hashlib.sha256()
    for picture in chosen:
        pixels = picture.read()
        total.update(f"{picture.id}\n{pixels.shape}\n".encode())
        total.update(pixels.tobytes())
        if picture.depth:
            total.update(picture.depth().tobytes())
    return total.hexdigest()


def _bundled(images: str) -> list[Picture]:
    import skimage.data

    found = {name: in_memory(name, getattr(skimage.data, name)) for name in _PHOTOGRAPHS + _BY_NAME_ALONE}
    found["motorcycle"] = in_memory("motorcycle", lambda: skimage.data.stereo_motorcycle()[0], motorcycle_depth)
    return [found[name] for name in BUNDLED[images]]


def in_memory(name: str, read: Callable[[], np.ndarray], depth: Callable[[], np.ndarray] | None = None) -> Picture:
    """A picture that has no header: its size is that of its pixels."""
    return Picture(name, read, cache(lambda: read().shape[:2]), depth)


def motorcycle_depth() -> np.ndarray:
    """Distances (500, 741) float32 of scikit-image's stereo pair, the farthest 1.

    depth = baseline * focal length / (disparity + difference of the principal points), with the pair's calibration;
    where the disparity is unknown (7 %), the farther of the nearest known ones to the left and right: what one camera
    does not see is mostly background.
    """
    import skimage.data

    disparity = skimage.data.stereo_motorcycle()[2].astype(np.float64)
    depth = np.where(np.isfinite(disparity), 193.001 * 994.978 / (disparity + 31.086), np.nan)
    sides = [_continued(depth), _continued(depth[:, ::-1])[:, ::-1]]
    filled = np.fmax(*sides)
    return (filled / filled.max()).astype(np.float32)


def _continued(rows: np.ndarray) -> np.ndarray:
    """Rows in which each unknown value (nan) is the last known one on its left."""
    known = np.where(np.isnan(rows), -1, np.arange(rows.shape[1]))
    last = np.maximum.accumulate(known, 1)
    return np.where(last >= 0, np.take_along_axis(rows, last.clip(0), 1), np.nan)


def _in_folder(images: str) -> list[Picture]:
    accepted = f"accepted are {', '.join(BUNDLED)}, or a folder with images ({ENDINGS})"
    folder, given = existing_folder(str(folder_of(images))), f"task.images={printable(images)}"
    if folder is None:
        raise UserError(f"{given} is no folder: {accepted}")
    files = image_files(folder)
    if not files:
        others = left_out(folder)
        raise UserError(f"{given} holds no image{f', but {others}' if others else ''}: {accepted}")
    stems = [file.stem for file in files]
    count = Counter(stems)
    ids = [stem if count[stem] == 1 else file.name for stem, file in zip(stems, files, strict=True)]
    return [from_file(printable(name), file, "task.images") for name, file in zip(ids, files, strict=True)]


def from_file(name: str, file: Path, option: str) -> Picture:
    """The picture in a file; ``option`` is what errors call the setting that led to it."""
    return Picture(
        name, lambda: read_image(file, option), lambda: image_size(file, option), frames=lambda: frames(file)
    )


def _cropped(picture: Picture, crop: int | None) -> Picture:
    return cut_out(picture, lambda size: central(size, crop)) if crop is not None else picture


def cut_out(picture: Picture, box: Callable[[tuple[int, int]], Box]) -> Picture:
    """A rectangle of a picture, and of its depth; ``box`` gives it for the picture's size."""

    def cut(read: Callable[[], np.ndarray]) -> Callable[[], np.ndarray]:
        def part() -> np.ndarray:
            pixels = read()
            return np.ascontiguousarray(pixels[box(pixels.shape[:2])])

        return part

    def size() -> tuple[int, int]:
        return tuple(side.stop - side.start for side in box(picture.size()))

    return replace(picture, read=cut(picture.read), size=size, depth=picture.depth and cut(picture.depth))


# --------------------------------------------------------------------------- what is not taken


def folder_note(given: str, folder: Path) -> list[str]:
    """A sentence on what of a folder is no image; ``given`` is the option with its value."""
    others = left_out(folder)
    return [f"{given}: left out are {others}; taken are images of this folder itself, {ENDINGS}"] if others else []


def frames_note(given: str, chosen: list[Picture]) -> list[str]:
    """A sentence on the pictures that are the first of several frames."""
    several = [picture.id for picture in chosen if picture.frames() > 1]
    told = f"{given}: of several frames or pages the first is taken, in {len(several)} files ({some(several)})"
    return [told] if several else []


@dataclass
class Large:
    """Lets through what has enough pixels a side for the metrics; the others are left out, and told.

    Args:
        least: pixels a side of the clean image.
        scale: side of the clean image over that of the degraded one.
        crop: the option ``task.crop``, which may be what makes the images small.
    """

    least: int
    scale: int = 1
    crop: int | None = None

    def __post_init__(self):
        self.small: dict[str, tuple[int, int]] = {}

    def first(self, found: Iterable, size_of: Callable[[Any], tuple[int, int]], limit: int | None) -> list:
        """The first ``limit`` of these that are large enough; those behind are not looked at.

        Args:
            size_of: gives height and width of the clean image, as far as it is used.
        """
        kept: list = []
        for one in found:
            if limit is not None and len(kept) == limit:
                break
            size = size_of(one)
            if min(side // self.scale * self.scale for side in size) >= self.least:
                kept.append(one)
            else:
                self.small[one.id] = size
        return kept

    def nothing(self, given: str) -> UserError:
        """The error where all images are too small."""
        crop = f"task.crop={self.crop}: " if self.crop is not None and self.crop < self.least else ""
        accepted = f"crops from {self.least} on, or null" if crop else "larger images"
        return UserError(
            f"{crop}{given} holds no image of the {self.least} pixels a side that the metrics need "
            f"({self._told()}): accepted are {accepted}"
        )

    def note(self, given: str) -> list[str]:
        """A sentence on what is left out."""
        if not self.small:
            return []
        told = f"{given}: left out for being smaller than the {self.least} pixels a side that the metrics need"
        return [f"{told}: {self._told()}"]

    def _told(self) -> str:
        return some([f"{name} is {width}x{height}" for name, (height, width) in self.small.items()])
