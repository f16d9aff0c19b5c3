"""Clean images: those that come with installed packages, or a folder of the user's."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nystra_bench.errors import UserError
from nystra_bench.text import printable

if TYPE_CHECKING:
    from PIL import Image

_PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket", "hubble_deep_field")
BUNDLED = {
    "bundled": _PHOTOGRAPHS,
    "stereo": ("motorcycle",),
    "stereo+bundled": ("motorcycle", *_PHOTOGRAPHS),
    **{name: (name,) for name in _PHOTOGRAPHS},
}
"""Photographs inside the wheel of scikit-image (public domain or CC0), in the order in which ``limit`` takes them, and
each by its name; that of a stereo pair (Middlebury 2014, "Motorcycle") has the scene's depth."""

SUFFIXES = (".png", ".webp", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
CONVERTED_MODES = ("RGB", "L", "P", "1")


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
    found = _bundled(images) if images in BUNDLED else _in_folder(folder_of(images))
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
    return tuple(slice(start, start + length) for start, length in zip(starts, kept, strict=True))


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

    found = {name: in_memory(name, getattr(skimage.data, name)) for name in _PHOTOGRAPHS}
    found["motorcycle"] = in_memory("motorcycle", lambda: skimage.data.stereo_motorcycle()[0], motorcycle_depth)
    return [found[name] for name in BUNDLED[images]]


def in_memory(name: str, read: Callable[[], np.ndarray], depth: Callable[[], np.ndarray] | None = None) -> Picture:
    """A picture that has no header: its size is that of its pixels."""
    return Picture(name, read, lambda: read().shape[:2], depth)


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


def _in_folder(folder: Path) -> list[Picture]:
    accepted = f"accepted are {', '.join(BUNDLED)}, or a folder with images ({', '.join(s[1:] for s in SUFFIXES)})"
    if not folder.is_dir():
        raise UserError(f"task.images={folder} is no folder: {accepted}")
    files = image_files(folder)
    if not files:
        raise UserError(f"task.images={folder} holds no image: {accepted}")
    stems = [file.stem for file in files]
    count = Counter(stems)
    ids = [stem if count[stem] == 1 else file.name for stem, file in zip(stems, files, strict=True)]
    return [from_file(printable(name), file, "task.images") for name, file in zip(ids, files, strict=True)]


def image_files(folder: Path) -> list[Path]:
    """The image files of a folder in the order of their names, hidden ones left out."""
    found = (f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and not f.name.startswith("."))
    return sorted(found, key=lambda file: file.name)


def from_file(name: str, file: Path, option: str) -> Picture:
    """The picture in a file; ``option`` is what errors call the setting that led to it."""
    return Picture(name, lambda: read_image(file, option), lambda: image_size(file, option))


def read_image(file: Path, option: str = "task.images") -> np.ndarray:
    """An 8-bit image as (height, width, 3) uint8; grey and palette images become RGB.

    Raises:
        UserError: the file is broken, or has transparency, 16 bits or CMYK colours, which no metric here is defined on.
    """
    with _opened(file, option) as image:
        # Pillow reads 16-bit RGB as 8-bit RGB without a word; only the raw mode of the stored data tells.
        deep = any(";16" in str(tile) for tile in image.tile)
        image.load()
        transparent = "transparency" in image.info
        mode = f"{image.mode}, 16 bits" if deep else image.mode
        pixels = np.asarray(image.convert("RGB")) if mode in CONVERTED_MODES else None
    if mode not in CONVERTED_MODES or transparent:
        kind = "transparency" if transparent else f"mode {mode}"
        raise UserError(f"{option}: {file} has {kind}: accepted are 8-bit RGB, grey and palette images")
    return pixels


def image_size(file: Path, option: str = "task.images") -> tuple[int, int]:
    """Height and width by the file's header, without reading the pixels.

    Raises:
        UserError: the file is no image.
    """
    with _opened(file, option) as image:
        return image.height, image.width


@contextmanager
def _opened(file: Path, option: str) -> Iterator[Image.Image]:
    from PIL import Image

    try:
        with Image.open(file) as image:
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{option}: {file} cannot be read as an image ({reason}): mend or remove it") from error


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

    return Picture(picture.id, cut(picture.read), size, picture.depth and cut(picture.depth))
