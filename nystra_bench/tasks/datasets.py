"""Clean images: those that come with installed packages, or a folder of the user's."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nystra_bench.errors import UserError

BUNDLED = ("astronaut", "coffee", "chelsea", "rocket", "hubble_deep_field")
"""Photographs inside the wheel of scikit-image (public domain or CC0), in the order in which ``limit`` takes them."""

SUFFIXES = (".png", ".webp", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
CONVERTED_MODES = ("RGB", "L", "P", "1")


@dataclass(frozen=True)
class Picture:
    """An image that is read when it is asked for."""

    id: str
    read: Callable[[], np.ndarray]
    """Gives (height, width, 3) uint8."""


def pictures(images: str, limit: int | None = None, crop: int | None = None) -> list[Picture]:
    """The pictures of ``images``: ``bundled``, or all image files of a folder in the order of their names.

    Args:
        limit: how many to take, from the first on; None takes all.
        crop: side in pixels of the central square to cut out; None, or a smaller side, leaves the image whole.

    Raises:
        UserError: the folder is absent or holds no image, or a number is out of range.
    """
    for name, value in (("limit", limit), ("crop", crop)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise UserError(f"task.{name}={value} is out of range: accepted are whole numbers from 1 on, or null")
    found = _bundled() if images == "bundled" else _in_folder(Path(str(images)).expanduser())
    return [Picture(p.id, _cropped(p.read, crop)) for p in found[:limit]]


def digest(chosen: list[Picture]) -> str:
    """SHA-256 over the ids, sizes and pixels of pictures."""
    total = hashlib.sha256()
    for picture in chosen:
        pixels = picture.read()
        total.update(f"{picture.id}\n{pixels.shape}\n".encode())
        total.update(pixels.tobytes())
    return total.hexdigest()


def _bundled() -> list[Picture]:
    import skimage.data

    return [Picture(name, getattr(skimage.data, name)) for name in BUNDLED]


def _in_folder(folder: Path) -> list[Picture]:
    accepted = f"accepted are bundled, or a folder with images ({', '.join(s[1:] for s in SUFFIXES)})"
    if not folder.is_dir():
        raise UserError(f"task.images={folder} is no folder: {accepted}")
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(f"task.images={folder} holds no image: {accepted}")
    ids = [file.stem for file in files]
    return [
        Picture(file.stem if ids.count(file.stem) == 1 else file.name, lambda file=file: read_image(file))
        for file in files
    ]


def read_image(file: Path) -> np.ndarray:
    """An 8-bit image as (height, width, 3) uint8; grey and palette images become RGB.

    Raises:
        UserError: the file is broken, or has transparency, 16 bits or CMYK colours, which no metric here is defined on.
    """
    from PIL import Image

    try:
        with Image.open(file) as image:
            # Pillow reads 16-bit RGB as 8-bit RGB without a word; only the raw mode of the stored data tells.
            deep = any(";16" in str(tile) for tile in image.tile)
            image.load()
            transparent = "transparency" in image.info
            mode = f"{image.mode}, 16 bits" if deep else image.mode
            pixels = np.asarray(image.convert("RGB")) if mode in CONVERTED_MODES else None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"task.images: {file} cannot be read as an image ({reason}): mend or remove it") from error
    if mode not in CONVERTED_MODES or transparent:
        kind = "transparency" if transparent else f"mode {mode}"
        raise UserError(f"task.images: {file} has {kind}: accepted are 8-bit RGB, grey and palette images")
    return pixels


def _cropped(read: Callable[[], np.ndarray], crop: int | None) -> Callable[[], np.ndarray]:
    def central() -> np.ndarray:
        pixels = read()
        if crop is None:
            return pixels
        top, left = (max(side - crop, 0) // 2 for side in pixels.shape[:2])
        return np.ascontiguousarray(pixels[top : top + crop, left : left + crop])

    return central
