"""Denoising of recorded noise: pairs of files, and SIDD's blocks."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from nystra_bench.errors import UserError
from nystra_bench.metrics.conventions import REAL_DENOISE
from nystra_bench.tasks.datasets import Picture
from nystra_bench.tasks.pairs import HELP, FolderPairs, Pair, PairedTask


class RealDenoise(FolderPairs):
    """Photographs with their noise and, as the clean image, the mean of many shots: PolyU, CC15 and others."""

    convention = REAL_DENOISE


class Sidd(PairedTask):
    """Blocks of SIDD (Abdelhamed et al., CVPR 2018) in MATLAB files, in sRGB.

    A file holds one array of uint8: (images, blocks, height, width, 3) as in the validation set, where it is
    (40, 32, 256, 256, 3), or one block (height, width, 3). A block's id is ``image_block``, counted from 0. The blocks
    that are used stay in memory once they are read: the whole validation set takes 0.5 GB.

    Args:
        root, limit, crop: see ``PairedTask``; ``limit`` counts blocks.
        degraded: file of the noisy blocks.
        clean: file of the ground truth.

    Raises:
        UserError: see ``PairedTask``; a file is none of MATLAB's, or is of version 7.3, or holds something else.
    """

    convention = REAL_DENOISE

    def __init__(
        self,
        root: str | None = None,
        degraded: str = "ValidationNoisyBlocksSrgb.mat",
        clean: str = "ValidationGtBlocksSrgb.mat",
        limit: int | None = None,
        crop: int | None = None,
    ):
        super().__init__(root, limit, crop)
        self.degraded, self.clean = str(degraded), str(clean)

    @property
    def layout(self) -> str:
        return f"which holds {self.degraded} and {self.clean}"

    def find(self) -> list[Pair]:
        files = [self._file("degraded"), self._file("clean")]
        shapes = [_shape(file) for file in files]
        counts = [shape[:2] for shape in shapes]
        if counts[0] != counts[1]:
            raise UserError(
                f"task.root={self.root}: {files[0]} holds {_text(counts[0])} images x blocks, {files[1]} "
                f"{_text(counts[1])}: accepted are files with the same blocks"
            )
        names = [f"{image:04d}_{block:02d}" for image, block in np.ndindex(*counts[0])]
        sides = [self._pictures(*side) for side in zip(("degraded", "clean"), files, shapes, strict=True)]
        return [Pair(name, *pictures) for name, *pictures in zip(names, *sides, strict=True)]

    def _file(self, side: str) -> Path:
        file = self.folder / getattr(self, side)
        if not file.is_file():
            held = f"task.root={self.root} has no file task.{side}={getattr(self, side)}"
            raise UserError(f"{held}: accepted is a folder {self.layout} ({HELP})")
        return file

    def _pictures(self, side: str, file: Path, shape: tuple[int, ...]) -> Iterator[Picture]:
        for index in range(shape[0] * shape[1]):
            yield Picture(str(file), partial(self._block, side, index), lambda: (shape[2], shape[3]))

    def _block(self, side: str, index: int) -> np.ndarray:
        return self._blocks[side][index]

    @cached_property
    def _blocks(self) -> dict[str, np.ndarray]:
        """The chosen blocks of both files, (blocks, height, width, 3) uint8."""
        return {side: self._read(self._file(side)) for side in ("degraded", "clean")}

    def _read(self, file: Path) -> np.ndarray:
        (blocks,) = (value for name, value in _loaded(file).items() if not name.startswith("__"))
        return blocks.reshape(-1, *blocks.shape[-3:])[: self.limit].copy()


def _shape(file: Path) -> tuple[int, ...]:
    """(images, blocks, height, width, 3) of a file, without reading its array.

    Raises:
        UserError: the file holds no such array.
    """
    from scipy.io import whosmat

    arrays = [(shape, kind) for _, shape, kind in _guarded(whosmat, file)]
    if len(arrays) != 1 or arrays[0][1] != "uint8" or len(arrays[0][0]) not in (3, 5) or arrays[0][0][-1] != 3:
        held = ", ".join(f"{_text(shape)} {kind}" for shape, kind in arrays) or "nothing"
        raise UserError(
            f"task.root: {file} holds {held}: accepted is one array of uint8, images x blocks x height x width x 3, or "
            "height x width x 3"
        )
    shape = arrays[0][0]
    return shape if len(shape) == 5 else (1, 1, *shape)


def _loaded(file: Path) -> dict[str, np.ndarray]:
    from scipy.io import loadmat

    return _guarded(loadmat, file)


def _guarded(read, file: Path):
    """What ``read`` finds in a file of MATLAB.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        return read(file)
    except NotImplementedError as error:
        raise UserError(
            f"task.root: {file} is of MATLAB's version 7.3 (HDF5): accepted are files of version 7 or older, which "
            "MATLAB writes by save(..., '-v7')"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # scipy raises what its parser stumbles over
        raise UserError(f"task.root: {file} cannot be read as a MATLAB file ({error}): mend or replace it") from error


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
