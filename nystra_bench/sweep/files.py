"""Files of the results folder: written whole or not at all, read without trust, swept where a killed process left them.

What is not yet whole has a name of its own that says who writes it, so that a later run, perhaps on another machine,
can tell what is left from what is being written.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nystra_bench.sweep.writers import Writer

UNFINISHED = ".new-"
"""How the names of files and folders begin that are not yet whole; what a killed run left of them is removed."""

ABANDONED_S = 7 * 86_400.0
"""Seconds after its last change that what a process of another machine writes is taken for left behind: more than any
writing takes, since there is no telling whether that process lives."""

DISK = {
    getattr(errno, name)
    for name in ("EACCES", "EPERM", "EROFS", "ENOSPC", "EDQUOT", "EFBIG", "EIO", "ENAMETOOLONG", "ELOOP", "ENOTDIR")
    + ("EISDIR", "ENOENT", "EEXIST", "EINVAL", "ESTALE", "EMFILE", "ENFILE")
    if hasattr(errno, name)
}
"""What a disk, a quota or a right says no with: the user's to mend, not a mistake of this program."""


class Damaged(Exception):
    """A file does not hold what it should; the message says in a few words why."""


def unfinished(folder: Path) -> Path:
    """A name of its own for something that is being written in ``folder``."""
    return folder / f"{UNFINISHED}{Writer.own()}-{uuid.uuid4().hex}"


def writer(path: Path) -> Writer | None:
    """Who an unfinished file or folder says to be written by; None where it does not say so."""
    return Writer.of(path.name.removeprefix(UNFINISHED)) if path.name.startswith(UNFINISHED) else None


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A folder inside ``folder`` that is removed at the end; that of a killed process is by the next run."""
    path = unfinished(folder)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def unwritable(folder: Path) -> str | None:
    """Why nothing can be written to a folder that is or will be made, as a clause; None where it can."""
    nearest = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        return f"{nearest} is no folder that this user may write to"
    try:
        for name in folder.relative_to(nearest).parts:
            with suppress(FileNotFoundError):
                (nearest / name).lstat()  # does the name fit?
        with tempfile.TemporaryFile(dir=nearest, buffering=0) as file:
            file.write(b"0")
    except OSError as error:
        return f"{nearest}: {error.strerror}"
    return None


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


def read_object(path: Path) -> dict:
    """The JSON object in a file.

    Raises:
        FileNotFoundError: there is no such file.
        Damaged: it cannot be read, or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Damaged(error.strerror or type(error).__name__) from error
    except (ValueError, RecursionError) as error:  # also: no UTF-8, brackets that never end
        raise Damaged("no JSON") from error
    if not isinstance(found, dict):
        raise Damaged("no JSON object")
    return found


def remove(path: Path) -> None:
    """Remove a file or a folder with all that it holds; a link, and not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder, also in the place of a file that has its name."""
    if os.path.lexists(path) and not path.is_dir():
        path.unlink()
    path.mkdir(parents=True, exist_ok=True)


def make_room(path: Path) -> None:
    """Make a file's folder, and remove what a file cannot be put in the place of."""
    make_folder(path.parent)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)


def unfinished_below(folder: Path, depth: int) -> Iterator[Path]:
    """What is called unfinished in a folder, and in the folders in it so many levels deep; each is looked into once."""
    try:
        with os.scandir(folder) as entries:
            found = list(entries)
    except OSError:  # it is gone, or leads in circles
        return
    for entry in found:
        if entry.name.startswith(UNFINISHED):
            yield Path(entry.path)
        elif depth and _is_folder(entry):
            yield from unfinished_below(Path(entry.path), depth - 1)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def remove_leftovers(paths: Iterable[Path]) -> None:
    """Remove those of these unfinished files and folders that nobody writes any more.

    Of what processes of this machine write it is known; of the others' that it was not changed for ``ABANDONED_S``.
    """
    for path in paths:
        by = writer(path)
        left = not by.is_at_work() if by and by.is_here else _unchanged_s(path) > ABANDONED_S
        if left:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _unchanged_s(path: Path) -> float:
    """Seconds since the last change of a file, or of a folder and what it holds; by the clock of their file system.

    Another machine's clock, or this one's, may be wrong. What vanishes meanwhile was changed just now.
    """
    try:
        with tempfile.TemporaryFile(dir=path.parent, buffering=0) as file:
            file.write(b"0")
            now = os.fstat(file.fileno()).st_mtime
        inside = path.iterdir() if path.is_dir() else ()
        return now - max(each.lstat().st_mtime for each in (path, *inside))
    except OSError:
        return 0.0
