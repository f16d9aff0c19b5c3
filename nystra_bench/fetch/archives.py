"""Unpacking zip and tar archives from the network: regular files only, and none outside the folder."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from nystra_bench.errors import UserError

_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError)


def unpack(archive: Path, folder: Path, member: str | None = None) -> None:
    """Unpack into a new folder; links and devices are left out, no owners or modes are taken over.

    Args:
        member: the folder of the archive whose content is wanted; None takes everything.

    Raises:
        UserError: the archive is damaged, would write outside the folder, or has no such member.
    """
    folder.mkdir(parents=True)
    wanted = PurePosixPath(member or "")
    found = False
    for name, content in _members(archive):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in path.parts[0]:
            raise UserError(f"{archive} is not unpacked: its member {name} would lie outside the folder")
        if not path.is_relative_to(wanted):
            continue
        file = folder / path.relative_to(wanted)
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as out:
            _copy(content, out, archive)
        found = True
    if not found:
        raise UserError(f"{archive} holds no files{f' in {member}' if member else ''}")


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Names and contents of the regular files."""
    try:
        if tarfile.is_tarfile(archive):
            with tarfile.open(archive) as bundle:
                yield from ((info.name, bundle.extractfile(info)) for info in bundle if info.isfile())
        else:
            with zipfile.ZipFile(archive) as bundle:
                yield from ((info.filename, bundle.open(info)) for info in bundle.infolist() if not info.is_dir())
    except _DAMAGE as error:
        raise _damaged(archive, error) from error


def _copy(content: IO[bytes], out: IO[bytes], archive: Path) -> None:
    try:
        with content:
            shutil.copyfileobj(content, out)
    except OSError as error:
        if error.errno is not None:  # of the disk, not of the archive
            raise
        raise _damaged(archive, error) from error
    except _DAMAGE as error:
        raise _damaged(archive, error) from error


def _damaged(archive: Path, error: Exception) -> UserError:
    return UserError(f"{archive} is no whole zip or tar archive ({error or type(error).__name__})")
