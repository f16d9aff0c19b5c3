"""The store of measured cells: content-addressed and atomic, so that nothing measured is lost or written over."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from nystra_bench.errors import UserError
from nystra_bench.sweep.cell import SCHEMA, Cell, canonical_json, encode_numbers

FAILURES = ("failed", "oom", "timeout", "crashed")
UNFINISHED = ".new-"
"""How the names of files and folders begin that are not yet whole; what a killed run left of them is removed."""


def unfinished(folder: Path) -> Path:
    """A name of its own for something that is being written in ``folder``."""
    return folder / f"{UNFINISHED}{uuid.uuid4().hex}"


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that it is either there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = unfinished(path.parent)
    try:
        with temporary.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _read(path: Path) -> dict | None:
    """A JSON file of the store; None where it is absent or, after a crash of the disk, unreadable."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return None


class Store:
    """The folder ``results/store``; see docs/SCHEMA.md."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    def result(self, key: str) -> dict | None:
        return _read(self.folder / key / "result.json")

    def failure(self, key: str) -> dict | None:
        return _read(self.folder / key / "failure.json")

    def status(self, key: str) -> tuple[str, str | None]:
        """The status of a cell and its reason: of its result, else of its last failure, else ``missing``."""
        found = self.result(key) or self.failure(key)
        return (found["status"], found["reason"]) if found else ("missing", None)

    def save(self, cell: Cell, value: dict, *, attach: Callable[[Path], None] | None = None, **about: object) -> None:
        """Write a result once; a cell that has one keeps it, unless that one is unstable.

        Args:
            attach: writes further files into the folder that it is given.
            about: status, reason, seconds, session, environment.
        """
        content = {"schema": SCHEMA, "key": cell.key, "cell": cell.content, "value": value, "finished": _now(), **about}
        temporary = unfinished(self.folder)
        temporary.mkdir(parents=True)
        try:
            if attach:
                attach(temporary)
            write_atomically(temporary / "result.json", json.dumps(encode_numbers(content), indent=1))
            self._move(temporary, self.folder / cell.key)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    @staticmethod
    def _move(source: Path, target: Path) -> None:
        """Put a finished folder in place of a failure's or an unstable result's; one that is done stays."""
        found, aside = _read(target / "result.json"), unfinished(target.parent)
        if found and found["status"] == "done":
            return
        if target.exists():
            target.rename(aside)
        source.rename(target)
        shutil.rmtree(aside, ignore_errors=True)

    def panel_images(self, cell: Cell, image: str) -> Path:
        """The file with the input and clean image of a quality cell's panel; cells of one task share it."""
        digest = hashlib.sha256(canonical_json(cell.content["task"]).encode()).hexdigest()
        return self.folder / "images" / digest / f"{image}.npz"

    def write_arrays(self, path: Path, **arrays: object) -> None:
        import numpy as np

        content = io.BytesIO()
        np.savez_compressed(content, **arrays)
        write_atomically(path, content.getvalue())

    def fail(self, cell: Cell, status: str, reason: str, traceback: str = "") -> None:
        """Remember a failed attempt, for the table; it is no result, and the cell is tried again."""
        content = {"schema": SCHEMA, "key": cell.key, "cell": cell.content, "status": status, "reason": reason}
        content |= {"traceback": traceback, "finished": _now()}
        write_atomically(self.folder / cell.key / "failure.json", json.dumps(encode_numbers(content), indent=1))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep a second run from measuring beside this one, which would spoil the timings of both.

        Raises:
            UserError: another run holds it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                file.seek(0)
                raise UserError(
                    f"results={self.folder.parent} is in use by another run (process {file.read().strip()}): "
                    "wait for its end, or give another results=FOLDER"
                ) from error
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            self._sweep_leftovers()
            yield

    def _sweep_leftovers(self) -> None:
        """Remove what a killed run left half-written."""
        for depth in range(3):  # the store, a cell's folder, images/<digest>
            for path in self.folder.glob(f"{'*/' * depth}{UNFINISHED}*"):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
