"""Image files: which of a folder's are taken and what is left out, and reading them as 8-bit RGB."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nystra_bench.errors import UserError
from nystra_bench.text import printable

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (
    *(".png", ".webp", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
ENDINGS = ", ".join(suffix[1:] for suffix in SUFFIXES)
CONVERTED_MODES = ("RGB", "L", "P", "1")

ORIENTATION = 0x0112
"""EXIF's tag of how a camera was held; from ``TRANSPOSED`` on rows and columns change places."""
TRANSPOSED = 5


# --------------------------------------------------------------------------- folders


def image_files(folder: Path) -> list[Path]:
    """The image files of a folder in the order of their names; hidden ones, and what is no regular file, left out."""
    return sorted((Path(entry) for entry in _entries(folder) if _is_image(entry)), key=lambda file: file.name)


def left_out(*folders: Path) -> str:
    """What of folders is not taken, in words; empty where everything is. Hidden files are not told, nor is what leads
    to another one of the folders."""
    within = {parent for folder in folders for parent in (folder, *folder.parents)}
    kinds: dict[str, list[str]] = defaultdict(list)
    for entry in (entry for folder in folders for entry in _entries(folder)):
        if not _is_image(entry) and Path(entry) not in within:
            kinds[_kind(entry)].append(entry.name)
    return ", ".join(f"{len(names)} {kind} ({some(names)})" for kind, names in sorted(kinds.items()))


def some(names: list[str], count: int = 3) -> str:
    """The first of these names, for a sentence."""
    shown = [printable(name) for name in sorted(names)[:count]]
    return ", ".join(shown) + (", …" if len(names) > count else "")


def existing_folder(text: str) -> Path | None:
    """The folder of that path; None where there is none, or can be none: links in circles, a name that is too long."""
    try:
        folder = Path(text).expanduser()
        return folder if folder.is_dir() else None
    except (OSError, RuntimeError, ValueError):
        return None


def _entries(folder: Path) -> Iterator[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        raise UserError(
            f"the images' folder {printable(str(folder))} cannot be read ({error.strerror}): accepted is one that this "
            "user may read"
        ) from error


def _is_image(entry: os.DirEntry) -> bool:
    """Whether it ends as images do and is a regular file: opening a pipe would wait for ever."""
    return Path(entry.name).suffix.lower() in SUFFIXES and _answers(entry.is_file)


def _kind(entry: os.DirEntry) -> str:
    if _answers(entry.is_dir):
        return "in a folder of its own"
    if not _answers(entry.is_file):
        return "no regular file"
    suffix = printable(Path(entry.name).suffix.lower())
    return f"in {suffix}" if suffix else "without an ending"


def _answers(question) -> bool:
    """What an entry says of itself; False where it is a link that leads nowhere, or in circles."""
    try:
        return question()
    except OSError:
        return False


# --------------------------------------------------------------------------- files


def read_image(file: Path, option: str = "task.images") -> np.ndarray:
    """An 8-bit image as (height, width, 3) uint8, upright as EXIF says; grey and palette images become RGB.

    Of a file with several frames it is the first.

    Raises:
        UserError: the file is broken, or has transparency, 16 bits or CMYK colours, which no metric here is defined on.
    """
    from PIL import ImageOps

    with _opened(file, option) as image:
        deep = any(map(_is_deep, getattr(image, "tile", ())))
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        transparent = "transparency" in image.info
        mode = f"{image.mode}, 16 bits" if deep else image.mode
        pixels = np.asarray(image.convert("RGB")) if mode in CONVERTED_MODES else None
    if pixels is None or transparent:
        kind = "transparency" if transparent else f"mode {mode}"
        raise UserError(f"{option}: {file} has {kind}: accepted are 8-bit RGB, grey and palette images")
    return pixels


def _is_deep(tile: tuple) -> bool:
    """Whether stored data have 16 bits: Pillow gives 16-bit RGB as 8-bit RGB without a word."""
    codec, arguments = tile[0], tile[3]
    largest = arguments[-1] if codec.startswith("ppm") and isinstance(arguments, tuple) else 0
    return ";16" in str(tile) or (isinstance(largest, int) and largest > 255)


def image_size(file: Path, option: str = "task.images") -> tuple[int, int]:
    """Height and width of what ``read_image`` gives, by the file's header, without reading the pixels.

    Raises:
        UserError: the file is no image.
    """
    with _opened(file, option) as image:
        size = image.height, image.width
        turned = _orientation(image, file) in range(TRANSPOSED, 9)
    return size[::-1] if turned else size


def _orientation(image: Image.Image, file: Path) -> int:
    """EXIF's, as far as it still has to be applied to the size."""
    if image.format == "TIFF":  # Pillow turns its size itself
        return 1
    # Of a PNG Pillow would read the pixels to see whether EXIF stands behind them.
    about = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}
    if image.format == "PNG" and not about & {*image.info} and not _tells_late(file):
        return 1
    return image.getexif().get(ORIENTATION, 1)


def _tells_late(png: Path) -> bool:
    """Whether a PNG has chunks that may hold EXIF behind its pixels."""
    behind = False
    with png.open("rb") as file:
        file.seek(8)
        while len(header := file.read(8)) == 8:
            kind = header[4:]
            behind |= kind == b"IDAT"
            if behind and kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
                return True
            file.seek(int.from_bytes(header[:4], "big") + 4, os.SEEK_CUR)
    return False


def frames(file: Path) -> int:
    """How many frames (of an animation) or pages a file holds; 1 where it does not say."""
    try:
        with _opened(file, "") as image:
            return getattr(image, "n_frames", 1)
    except UserError:  # it is told where the pixels are read
        return 1


@contextmanager
def _opened(file: Path, option: str) -> Iterator[Image.Image]:
    from PIL import Image

    try:
        with Image.open(file) as image:
            yield image
    except MemoryError:
        raise
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise UserError(
            f"{option}: {file} says to have more than {most} pixels, and is not decoded: accepted are smaller images"
        ) from error
    except Exception as error:  # Pillow raises what its parsers stumble over: TypeError, struct.error, …
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{option}: {file} cannot be read as an image ({reason}): mend or remove it") from error
