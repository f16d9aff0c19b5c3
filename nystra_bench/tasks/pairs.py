"""Tasks on real pairs: data sets that hold the degraded image of each clean one."""

from __future__ import annotations

import glob
import re
from collections.abc import Container, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from nystra_bench.errors import Absent, UserError
from nystra_bench.fetch import data_folder
from nystra_bench.tasks.base import Sample, Task
from nystra_bench.tasks.datasets import (
    Box,
    Large,
    Picture,
    central,
    check_limits,
    cut_out,
    digest,
    frames_note,
    from_file,
)
from nystra_bench.tasks.image_files import ENDINGS, existing_folder, image_files, left_out, some
from nystra_bench.text import printable

HELP = "see docs/DATASETS.md and python -m nystra_bench.fetch"
PLACEHOLDER = "{name}"

Key = tuple[str, str]
"""What ``**`` stands for in an image's folder, and the image's name."""


@dataclass(frozen=True)
class Pair:
    """A degraded and a clean picture of one scene, both read when they are asked for."""

    id: str
    degraded: Picture
    clean: Picture


class PairedTask(Task):
    """Pairs of a data set on disk; subclasses say how it is laid out.

    Nothing is looked for before it is needed, so that a task without its data can be listed.

    Args:
        root: the folder of the data set, or of a fetched one, as ``reside-sots/SOTS/outdoor``.
        limit: number of pairs, the first by name; None takes all.
        crop: side in pixels of the clean image's central crop; None takes whole images. The degraded image's is the
            same place.

    Raises:
        UserError: a number is out of range; when the pairs are used, that they are not there or do not fit.
    """

    def __init__(self, root: str | None, limit: int | None = None, crop: int | None = None):
        check_limits(limit, crop)
        if crop is not None and crop < self.scale:
            raise UserError(f"task.crop={crop} is out of range: accepted are numbers from task.scale={self.scale} on")
        self.root, self.limit, self.crop = root, limit, crop

    @property
    def layout(self) -> str:
        """What the folder holds, in words for an error."""
        raise NotImplementedError

    def find(self) -> list[Pair]:
        """All pairs of the data set in the order of their names, uncropped."""
        raise NotImplementedError

    def available(self) -> str | None:
        if not self.root:
            return f"task.root=null: accepted is the data set's folder, {self.layout} ({HELP})"
        try:
            data_folder("task.root", str(self.root))
        except Absent as absent:
            return str(absent)
        return None

    @property
    def folder(self) -> Path:
        if reason := self.available():
            raise UserError(reason)
        folder = existing_folder(str(data_folder("task.root", str(self.root))))
        if folder is None:
            raise UserError(f"task.root={self.root} is no folder: accepted is one {self.layout} ({HELP})")
        return folder

    @cached_property
    def pairs(self) -> list[Pair]:
        found = (self._cropped(pair) for pair in self.find())
        chosen = self._large.first(found, lambda pair: pair.clean.size(), self.limit)
        if not chosen:
            raise self._large.nothing(self._given)
        return chosen

    @cached_property
    def _large(self) -> Large:
        return Large(self.least_side, self.scale, self.crop)

    @property
    def _given(self) -> str:
        return f"task.root={printable(str(self.root))}"

    def notes(self) -> list[str]:
        chosen = self.pairs
        sides = [replace(side, id=pair.id) for pair in chosen for side in (pair.degraded, pair.clean)]
        return frames_note(self._given, sides) + self._large.note(self._given)

    @property
    def dataset(self) -> str:
        return printable(self.folder.resolve().name) or "pairs"

    def samples(self) -> Iterator[Sample]:
        return map(_sample, self.pairs)

    def ids(self) -> list[str]:
        return [pair.id for pair in self.pairs]

    def chosen(self, ids: Container[str]) -> Iterator[Sample]:
        return (_sample(pair) for pair in self.pairs if pair.id in ids)

    def sizes(self) -> list[tuple[int, int]]:
        return [pair.degraded.size() for pair in self.pairs]

    def identity(self) -> dict:
        return {}

    def digest(self) -> str:
        return digest([replace(side, id=pair.id) for pair in self.pairs for side in (pair.degraded, pair.clean)])

    def _cropped(self, pair: Pair) -> Pair:
        """The pair's central crop: of whole pixels of the degraded image, and the same place in the clean one."""

        def of_degraded(size: tuple[int, int]) -> Box:
            self._check_sizes(pair, size)
            return central(size, self.crop and self.crop // self.scale)

        def of_clean(_: tuple[int, int]) -> Box:
            box = of_degraded(pair.degraded.size())
            rows, columns = (slice(side.start * self.scale, side.stop * self.scale) for side in box)
            return rows, columns

        return Pair(pair.id, cut_out(pair.degraded, of_degraded), cut_out(pair.clean, of_clean))

    def _check_sizes(self, pair: Pair, size: tuple[int, int]) -> None:
        height, width = pair.clean.size()
        if size == (height // self.scale, width // self.scale):
            return
        times = f" over task.scale={self.scale}, rounded down" if self.scale > 1 else ""
        raise UserError(
            f"task.root={self.root}: {pair.degraded.id} is {size[1]}x{size[0]}, {pair.clean.id} is {width}x{height}: "
            f"accepted are pairs with the size of the clean image{times}"
        )


def _sample(pair: Pair) -> Sample:
    degraded, clean = (side.read().astype(np.float32) / 255 for side in (pair.degraded, pair.clean))
    return Sample(pair.id, degraded, clean)


class FolderPairs(PairedTask):
    """Pairs of image files in two folders, or in one, matched by their names.

    A folder is named from ``root`` on. ``**/`` in it stands for any folders in between, or none, and for the same ones
    on both sides: ``**/blur`` and ``**/sharp``. In file names, without their endings, ``{name}`` stands for what both
    sides have in common and ``*`` in the degraded one's for anything: ``{name}_*`` are the images made from ``{name}``.
    Where several clean images fit, it is the one with the longest name. Other files are left aside; an image without
    its counterpart is an error.

    Args:
        root, limit, crop: see ``PairedTask``.
        degraded: folder of the degraded images.
        clean: folder of the clean images.
        degraded_name: how the degraded images are named.
        clean_name: how the clean images are named.

    Raises:
        UserError: see ``PairedTask``; a name is no such pattern.
    """

    def __init__(
        self,
        root: str | None = None,
        degraded: str = "lq",
        clean: str = "gt",
        degraded_name: str = PLACEHOLDER,
        clean_name: str = PLACEHOLDER,
        limit: int | None = None,
        crop: int | None = None,
    ):
        super().__init__(root, limit, crop)
        self.degraded, self.clean = str(degraded), str(clean)
        self.degraded_name, self.clean_name = str(degraded_name), str(clean_name)
        _check_pattern("task.degraded_name", self.degraded_name, "*{}")
        _check_pattern("task.clean_name", self.clean_name, "{}")

    @property
    def layout(self) -> str:
        degraded, clean = f"{self.degraded}/{self.degraded_name}", f"{self.clean}/{self.clean_name}"
        return f"which holds images {degraded} and {clean}"

    def notes(self) -> list[str]:
        sides = (_folders(self.folder, pattern).values() for pattern in (self.degraded, self.clean))
        others = left_out(*dict.fromkeys(folder for folders in sides for folder in folders))
        told = [f"{self._given}: left out are {others}; taken are {ENDINGS}"] if others else []
        if unnamed := self._unnamed():
            names = f"task.degraded_name={self.degraded_name} or task.clean_name={self.clean_name}"
            told.append(
                f"{self._given}: {len(unnamed)} images are left out that {names} does not fit ({some(unnamed)})"
            )
        return told + super().notes()

    def _unnamed(self) -> list[str]:
        """The names of images that are called like those of neither side."""
        fits = {"degraded": lambda stem: any(_names(self.degraded_name, stem)), "clean": self._clean_of}
        taken, found = set(), {}
        for side, fit in fits.items():
            for (_, stem), file in self._files(side).items():
                found[file] = file.name
                taken |= {file} if fit(stem) else set()
        return [name for file, name in found.items() if file not in taken]

    def _clean_of(self, stem: str) -> str:
        """What ``{name}`` stands for in a clean image's name; empty where it does not fit."""
        return _between(stem, *self.clean_name.split(PLACEHOLDER))

    def find(self) -> list[Pair]:
        clean = {
            (within, name): file
            for (within, stem), file in self._files("clean").items()
            if (name := self._clean_of(stem))
        }
        found = self._files("degraded")
        degraded = {key: file for key, file in found.items() if any(_names(self.degraded_name, key[1]))}
        if not degraded:
            named = f"{self.degraded}/{self.degraded_name}"
            raise UserError(f"task.root={self.root} holds no image {named}: {self._needed}")
        owners = {key: self._owner(key, file, clean) for key, file in degraded.items()}
        self._refuse_lonely(clean, {*owners.values()}, {*degraded.values()})
        return sorted((self._pair(key, file, owners[key], clean) for key, file in degraded.items()), key=lambda p: p.id)

    @property
    def _needed(self) -> str:
        return f"accepted is a folder {self.layout}, with endings {ENDINGS} ({HELP})"

    def _files(self, side: str) -> dict[Key, Path]:
        """The image files of a side by folder and name without ending."""
        pattern = getattr(self, side)
        folders = _folders(self.folder, pattern)
        if not folders:
            raise UserError(f"task.root={self.root} has no folder task.{side}={pattern}: {self._needed}")
        found: dict[Key, Path] = {}
        for within, folder in folders.items():
            for file in image_files(folder):
                other = found.setdefault((within, file.stem), file)
                if other is not file:
                    raise UserError(f"task.root={self.root}: {other} and {file} have one name: accepted is one of them")
        return found

    def _owner(self, key: Key, file: Path, clean: dict[Key, Path]) -> Key:
        """The clean image that a degraded one belongs to: of those that fit, the one with the longest name."""
        within, stem = key
        found = next((name for name in _names(self.degraded_name, stem) if (within, name) in clean), None)
        if found is None:
            raise self._unpaired(file, "clean", self.clean, self.clean_name)
        if clean[within, found] == file:
            raise UserError(
                f"task.degraded={self.degraded} and task.clean={self.clean} with their names both lead to {file}: "
                "accepted are different images"
            )
        return within, found

    def _refuse_lonely(self, clean: dict[Key, Path], owners: set[Key], degraded: set[Path]) -> None:
        for key, file in clean.items():
            if key not in owners and file not in degraded:
                raise self._unpaired(file, "degraded", self.degraded, self.degraded_name)

    def _unpaired(self, file: Path, other: str, folder: str, name: str) -> UserError:
        return UserError(
            f"task.root={self.root}: {file} has no {other} image (task.{other}={folder}, task.{other}_name={name}): "
            "accepted are complete pairs"
        )

    def _pair(self, key: Key, file: Path, owner: Key, clean: dict[Key, Path]) -> Pair:
        within, stem = key
        name = stem if "*" in self.degraded_name else owner[1]
        pictures = (from_file(str(path), path, "task.root") for path in (file, clean[owner]))
        return Pair(printable(f"{within}/{name}" if within else name), *pictures)


def _check_pattern(option: str, pattern: str, accepted: str) -> None:
    rest = pattern.replace(PLACEHOLDER, "", 1)
    if PLACEHOLDER not in pattern or any(c in rest for c in "{}/") or ("*" in rest and "*" not in accepted):
        star = ", and * for anything" if "*" in accepted else ""
        raise UserError(f"{option}={pattern} is no pattern: accepted are file names with {PLACEHOLDER} once{star}")


def _names(pattern: str, stem: str) -> Iterator[str]:
    """What ``{name}`` may stand for where a pattern names a file, the longest first."""
    before, after = pattern.split(PLACEHOLDER)
    starts = _prefixes(before, stem)
    ends = [len(stem) - length for length in _prefixes(after[::-1], stem[::-1])]
    spans = ((start, end) for start in starts for end in ends if start < end)
    for start, end in sorted(spans, key=lambda span: span[0] - span[1]):
        yield stem[start:end]


def _prefixes(pattern: str, text: str) -> list[int]:
    """The lengths of all beginnings of a text that a pattern, in which ``*`` is anything, stands for."""
    words = pattern.split("*")
    if len(words) == 1:
        return [len(pattern)] if text.startswith(pattern) else []
    expression = re.compile(".*".join(map(re.escape, words)))
    return [length for length in range(len(text) + 1) if expression.fullmatch(text, 0, length)]


def _between(stem: str, prefix: str, suffix: str) -> str:
    """What is between prefix and suffix; empty where these are not there."""
    fits = stem.startswith(prefix) and stem.endswith(suffix) and len(stem) > len(prefix) + len(suffix)
    return stem[len(prefix) : len(stem) - len(suffix)] if fits else ""


def _folders(root: Path, pattern: str) -> dict[str, Path]:
    """The folders that ``pattern`` stands for, by what its ``**`` stands for."""
    before, nested, after = pattern.rpartition("**/")
    base = root / before
    if not nested:
        return {"": root / pattern} if (root / pattern).is_dir() else {}
    found = sorted(folder for folder in base.glob(f"**/{glob.escape(after)}") if folder.is_dir())
    depth = len(Path(after).parts)
    within = [folder.relative_to(base).parts for folder in found]
    return {"/".join(parts[: len(parts) - depth]): folder for parts, folder in zip(within, found, strict=True)}
