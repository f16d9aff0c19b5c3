"""The store of measured cells: content-addressed and atomic, so that nothing measured is lost or written over."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from nystra_bench.sweep.cell import SCHEMA, Cell, canonical_json, encode_numbers
from nystra_bench.sweep.files import (
    UNFINISHED,
    Damaged,
    make_folder,
    make_room,
    read_object,
    remove,
    remove_leftovers,
    scratch,
    unfinished_below,
    write_atomically,
    writer,
)
from nystra_bench.sweep.journal import Journal
from nystra_bench.sweep.locks import results_lock
from nystra_bench.sweep.migrations import known_schema, migrated
from nystra_bench.text import printable

log = logging.getLogger("nystra_bench")

MEASURED = ("done", "unstable", "nonfinite")
"""The statuses of results."""

FAILURES = ("nonfinite", "failed", "oom", "timeout", "crashed")
"""Those of attempts that gave no number to be used; ``nonfinite`` may be a result, too."""

LONGEST = 240
"""Bytes of an image's id that the name of a file holds; a file system takes 255, with the ending."""

IMAGES, DEEPEST = "images", 32
"""The folder of panels' images, and how deep their ids may lead into folders in it."""

TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)
"""How a file system says that a folder's new name was taken since it was looked for: by another writer."""

RESULT, FAILURE, JOURNAL, JOURNALS = "result.json", "failure.json", "journal.jsonl", "journal*.jsonl"


class Store:
    """The folder ``results/store``; see docs/SCHEMA.md.

    What another version, another cell or a crash of the disk has left in the place of a file counts as missing, with a
    warning in the log.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self._warned: set[Path] = set()

    # ----------------------------------------------------------------- reading

    def result(self, key: str) -> dict | None:
        found = self._read(key, RESULT, MEASURED)
        if found is not None and not isinstance(found.get("value"), dict):
            self._warn(self.folder / key / RESULT, "no value")
            return None
        return found

    def failure(self, key: str) -> dict | None:
        return self._read(key, FAILURE, FAILURES)

    def status(self, key: str) -> tuple[str, str | None]:
        """The status of a cell and its reason: of its result, else of its last failure, else ``missing``."""
        return self.outcome(key)[:2]

    def outcome(
        self, key: str, lacking: Callable[[dict], list[str]] = lambda value: []
    ) -> tuple[str, str | None, dict | None]:
        """Status and reason of a cell, and its result where it has one.

        Args:
            lacking: names what a value does not hold of what is wanted; such a result is there, but not done.
        """
        result = self.result(key)
        if result and result["status"] == "done" and (absent := lacking(result["value"])):
            return "missing", f"not yet measured: {', '.join(absent)}", result
        found = result or self.failure(key)
        return (found["status"], found["reason"], result) if found else ("missing", None, None)

    def _read(self, key: str, name: str, statuses: tuple[str, ...]) -> dict | None:
        """A file of a cell that holds what it should, else None."""
        path = self.folder / key / name
        try:
            found = read_object(path)
            schema = known_schema(found)
            check_identity(found, key)
            found = migrated(found, schema)
            if found.get("status") not in statuses:
                raise Damaged(f"status {found.get('status')!r:.40}")
            if not isinstance(found.setdefault("reason", None), str | None):
                raise Damaged("its reason is no text")
        except FileNotFoundError:
            return None
        except Damaged as damage:
            self._warn(path, damage)
            return None
        return found | {"reason": found["reason"] and printable(found["reason"])}

    def _warn(self, path: Path, damage: object) -> None:
        """Say once that a file counts as missing."""
        if path not in self._warned and os.path.lexists(path.parent):
            self._warned.add(path)
            log.warning("%s counts as missing: %s", printable(str(path)), damage)

    # ----------------------------------------------------------------- writing

    def save(
        self,
        cell: Cell,
        value: dict,
        *,
        attach: Callable[[Path], None] | None = None,
        extends: bool = False,
        **about: object,
    ) -> None:
        """Write a result once; a cell that has one keeps it, unless that one is unstable, not finite, or extended.

        Args:
            attach: writes further files into the folder that it is given.
            extends: whether the value holds all of the value that is there, and more.
            about: status, reason, seconds, session, environment.
        """
        _check_status(about.get("status"), MEASURED)
        content = {"schema": SCHEMA, "key": cell.key, "cell": cell.content, "value": value, "finished": _now(), **about}
        with self.scratch() as folder:
            if attach:
                attach(folder)
            write_atomically(folder / RESULT, json.dumps(encode_numbers(content), indent=1))
            self._put(folder, cell.key, extends)

    def _put(self, source: Path, key: str, extends: bool) -> None:
        """Put a finished folder in place of a failure's, a journal's or an unstable result's; one that is done stays.

        A folder that is there takes the new files one by one, the result after those that belong to it and before what
        is removed: however this is broken off, the old result or the new one can be read. What others are just writing
        there is left to them.
        """
        target, found = self.folder / key, self.result(key)
        if found and found["status"] == "done" and not extends:
            return
        if not os.path.lexists(target):
            try:
                source.rename(target)
                return
            except OSError as error:
                if error.errno not in TAKEN:
                    raise
        make_folder(target)
        names = sorted((path.name for path in source.iterdir()), key=lambda name: (name == RESULT, name))
        for name in names:
            make_room(target / name)
            os.replace(source / name, target / name)
        for path in target.iterdir():
            if path.name not in names and not path.name.startswith(UNFINISHED):
                remove(path)

    def fail(self, cell: Cell, status: str, reason: str, traceback: str = "") -> None:
        """Remember a failed attempt, for the table; it is no result, and the cell is tried again."""
        _check_status(status, FAILURES)
        content = {"schema": SCHEMA, "key": cell.key, "cell": cell.content, "status": status}
        content |= {"reason": printable(reason), "traceback": printable(traceback), "finished": _now()}
        path = self.folder / cell.key / FAILURE
        make_room(path)
        write_atomically(path, json.dumps(encode_numbers(content), indent=1))

    def journal(self, cell: Cell, header: Mapping | None = None, part: str = "") -> Journal:
        """What is done of a cell that is not finished; kept until its result is saved, whatever happens to its process.

        Args:
            header: what the records depend on besides the cell; those kept under another one are discarded.
            part: of the cell that this process measures, where others measure the rest: each writes a journal of its
                own, and all are read.
        """
        # A result that is to be replaced may have its own journal beside it, where its writer was killed just then.
        replaced = self.result(cell.key)
        first = {"header": dict(header or {}), "replaces": replaced and replaced.get("finished")}
        own = self.folder / cell.key / (JOURNALS.replace("*", f"-{part}") if part else JOURNAL)
        return Journal(own, first, [file for file in sorted(own.parent.glob(JOURNALS)) if file != own])

    def panel_images(self, cell: Cell, image: str) -> Path:
        """The file with the input and clean image of a quality cell's panel; cells of one task share it."""
        folder = self.folder / IMAGES / _digest(canonical_json(cell.content["task"]))
        is_long = any(len(part.encode()) > LONGEST for part in image.split("/"))
        return folder / f"{_digest(image) if is_long else image}.npz"

    def write_arrays(self, path: Path, **arrays: object) -> None:
        import numpy as np

        content = io.BytesIO()
        np.savez_compressed(content, allow_pickle=False, **{name: np.asarray(array) for name, array in arrays.items()})
        write_atomically(path, content.getvalue())

    def scratch(self) -> AbstractContextManager[Path]:
        """A folder in the store for what is needed only now; the next run removes that of a killed process."""
        return scratch(self.folder)

    # ----------------------------------------------------------------- one run at a time

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep a second run out of this results folder, and remove what a killed one left half-written.

        Raises:
            UserError: another run holds it, or the folder cannot be written.
        """
        with results_lock(self.folder):
            remove_leftovers({*self._leftovers()})
            yield

    def _leftovers(self) -> Iterator[Path]:
        """What is called unfinished in the store, and in the sweeps' folders what has a writer's name besides."""
        yield from unfinished_below(self.folder, depth=2)  # in cells, and in their journals' folders
        yield from unfinished_below(self.folder / IMAGES, depth=DEEPEST)
        for sweep in self.folder.parent.iterdir():
            if sweep != self.folder and sweep.is_dir():  # the store has as many folders as cells: not once more
                yield from filter(writer, unfinished_below(sweep, depth=2))  # of paper/table2 with its figures, too


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def check_identity(found: dict, key: object) -> None:
    """Hold what was read to the cell that it is said to be of.

    Raises:
        Damaged: it is another cell's, or its cell is not what its key says.
    """
    cell = found.get("cell")
    if not isinstance(cell, dict):
        raise Damaged("no cell")
    try:
        own = Cell(canonical_json(cell)).key
    except (ValueError, RecursionError) as error:
        raise Damaged("no cell") from error
    if not found.get("key") == key == own:
        raise Damaged("it belongs to another cell")


def _check_status(status: object, accepted: tuple[str, ...]) -> None:
    if status not in accepted:
        raise ValueError(f"status {status!r} is none of {', '.join(accepted)}")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
