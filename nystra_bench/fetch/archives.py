"""Unpacking zip and tar archives from the network: regular files only, and none outside the folder."""

from __future__ import annotations

import errno
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from nystra_bench.errors import UserError
from nystra_bench.text import printable

_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError)
_UNFIT = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)
"""What a file system answers to a name that it cannot hold."""

SHOWN = 80
"""Characters of a member's name that an error shows."""


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
        path = _checked(archive, name)
        if not path.is_relative_to(wanted) or path == wanted:
            continue
        with _new_file(archive, name, folder / path.relative_to(wanted)) as out:
            _copy(content, out, archive)
        found = True
    if not found:
        where = f" in {member}" if member else ""
        raise UserError(f"{archive} holds no files{where}: accepted are archives with some there")


def _checked(archive: Path, name: str) -> PurePosixPath:
    """The path of a member.

    Raises:
        UserError: it has none, or one that lies outside the folder.
    """
    path = PurePosixPath(name)
    if not path.parts:
        raise _refused(archive, name, "has no name")
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in path.parts[0]:
        raise _refused(archive, name, "would lie outside the folder")
    return path


def _new_file(archive: Path, name: str, file: Path) -> IO[bytes]:
    """A member's file, opened for writing.

    Raises:
        UserError: the folder cannot have such a file beside the members before it, or at all.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        return file.open("wb")
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise _refused(archive, name, "lies below another one that is a file, or has the name of a folder") from error
    except ValueError as error:
        raise _refused(archive, name, "has characters that no file's name can have") from error
    except OSError as error:
        if error.errno not in _UNFIT:
            raise
        raise _refused(archive, name, "has a name that no file can have here, of more than 255 bytes, say") from error


def _refused(archive: Path, name: str, why: str) -> UserError:
    shown = printable(name if len(name) <= SHOWN else f"{name[:SHOWN]}…")
    return UserError(f"{archive} is not unpacked: its member {shown!r} {why}; accepted are archives without it")


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Names and contents of the regular files."""
    try:
        if tarfile.is_tarfile(archive):
            with tarfile.open(archive) as bundle:
                for info in bundle:
                    content = bundle.extractfile(info) if info.isfile() else None
                    if content is not None:
                        yield info.name, content
        else:
            with zipfile.ZipFile(archive) as bundle:
                yield from ((info.filename, bundle.open(info)) for info in bundle.infolist() if _is_regular(info))
    except _DAMAGE as error:
        raise _damaged(archive, error) from error


def _is_regular(info: zipfile.ZipInfo) -> bool:
    """Whether a zip's member is a regular file; Unix keeps the mode, of links and devices too, in the upper half."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    return not info.filename.endswith("/") and kind in (0, stat.S_IFREG)


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
    told = str(error) or type(error).__name__
    return UserError(f"{archive} is no whole zip or tar archive ({told}): accepted is one that came whole")
