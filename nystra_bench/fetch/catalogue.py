"""What can be fetched: one file ``configs/download/<name>.yaml`` each, and where on this machine it goes."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import platformdirs

from nystra_bench.configuration import Catalogue, configs_folder, instantiate
from nystra_bench.errors import Absent

KINDS = ("weights", "data", "backbone")
"""Checkpoints of models, data sets, and the networks inside metrics (LPIPS, FID)."""


@dataclass(frozen=True)
class Item:
    """One file to get: its name, and all that is known beforehand about its content."""

    file: str
    url: str | None = None
    sha256: str | None = None
    sha256_prefix: str | None = None
    size: int | None = None
    package_sha256: str | None = None


@dataclass(frozen=True)
class Download:
    """One entry of the catalogue.

    Args:
        kind: ``weights``, ``data`` or ``backbone``.
        what: what it is, in a line.
        page: where its authors offer it (https).
        licence: as stated there.
        paper: the publication.
        file: name of the file.
        url: its address (https), or ``pip:<name>==<version>/<path>`` for a file in a package
            that pip gets. None where there is no stable one: the user then gives the file with ``--from``.
        sha256: of the file, in hexadecimal; None where it is not known.
        sha256_prefix: the first digits of it, where no more is known (PyTorch's files carry them in their names).
        size: of the file, or of all ``files``, in bytes.
        files: of a data set of several files, instead of ``file``: {relative path: SHA-256 or None}. ``url`` is then
            the folder that they are in, and ends with a slash.
        unpack: ``file`` is an archive (zip, tar), and what is wanted is its content.
        member: the folder of the archive that is wanted; None takes everything.
        package_sha256: of the wheel that the file is taken from.
        name: of the YAML file.

    Raises:
        ValueError: entries are missing, do not fit together, or are malformed.
    """

    kind: str
    what: str
    page: str
    licence: str
    paper: str | None = None
    file: str | None = None
    url: str | None = None
    sha256: str | None = None
    sha256_prefix: str | None = None
    size: int | None = None
    files: dict[str, str | None] | None = None
    unpack: bool = False
    member: str | None = None
    package_sha256: str | None = None
    name: str = ""

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind} is unknown: accepted are {', '.join(KINDS)}")
        if (self.file is None) == (self.files is None):
            raise ValueError("either file or files is to be given")
        if self.files is not None and (self.kind != "data" or self.unpack):
            raise ValueError("files is for data sets of several files that are no archives")
        if self.files is not None and self.url is not None and not self.url.endswith("/"):
            raise ValueError(f"url={self.url} is of several files and must end with a slash")
        if self.unpack and self.kind != "data":
            raise ValueError("unpack is for data sets")
        for item in self.items():
            _check_path(item.file)
            _check_hex("sha256", item.sha256, 64, 64)
            _check_hex("sha256_prefix", item.sha256_prefix, 8, 64)
            _check_hex("package_sha256", item.package_sha256, 64, 64)

    def items(self) -> list[Item]:
        """The files to get."""
        if self.files is None:
            return [Item(self._only, self.url, self.sha256, self.sha256_prefix, self.size, self.package_sha256)]
        return [Item(file, self.url and self.url + file, sha256) for file, sha256 in self.files.items()]

    @property
    def _only(self) -> str:
        """The name of the file, where there are not several."""
        assert self.file is not None, "of a download without files it is checked"
        return self.file

    @property
    def remedy(self) -> str:
        """How to get it, as a clause."""
        command = f"python -m nystra_bench.fetch {shlex.quote(self.name)}"
        return f"run {command}" if self.url else f"get it from {self.page} and run {command} --from PATH"

    @property
    def target(self) -> Path:
        """Where it goes: a file for weights and backbones, a folder for data sets."""
        if self.kind == "data":
            return cache_folder() / "data" / self.name
        if self.kind == "weights":
            return cache_folder() / "weights" / self._only
        import torch  # where PyTorch itself looks for what lpips and torch-fidelity ask it for

        return Path(torch.hub.get_dir()) / "checkpoints" / self._only


def _check_path(file: str) -> None:
    path = PurePosixPath(file)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in file:
        raise ValueError(f"file={file} is no relative path")


def _check_hex(entry: str, value: str | None, shortest: int, longest: int) -> None:
    if value is not None and not re.fullmatch(f"[0-9a-f]{{{shortest},{longest}}}", str(value)):
        raise ValueError(f"{entry}={value} is no SHA-256 in lower-case hexadecimal")


def cache_folder() -> Path:
    """The folder of fetched files: ``NYSTRA_BENCH_CACHE``, or the user's cache folder."""
    given = os.environ.get("NYSTRA_BENCH_CACHE")
    return Path(given).expanduser() if given else platformdirs.user_cache_path("nystra_bench", appauthor=False)


def names() -> list[str]:
    """Everything that can be fetched, in alphabetical order."""
    return _catalogue().names("download")


def find(name: str) -> Download:
    """The entry of that name.

    Raises:
        UserError: there is none, or its file is malformed.
    """
    found: Download = instantiate(_catalogue().option("download", name))
    return replace(found, name=name)


def cached(name: str) -> Path | None:
    """Where the download of that name is on this machine; None if it is not, or if there is no such download."""
    if name not in names():
        return None
    target = find(name).target
    return target if target.exists() else None


def data_folder(option: str, given: str) -> Path:
    """A folder of images given by its path, or as ``NAME`` or ``NAME/folder/in/it`` of a data set of the catalogue.

    Args:
        option: what errors call the setting.

    Returns:
        The path; that of a folder which is neither is given back as it stands, for the caller to judge.

    Raises:
        Absent: the data set was not fetched, or holds no such folder.
    """
    name, _, inside = given.partition("/")
    if name not in names() or find(name).kind != "data" or Path(given).is_dir():
        with contextlib.suppress(RuntimeError):  # no such home: no folder either
            return Path(given).expanduser()
        return Path(given)
    download = find(name)
    folder = download.target / inside
    if folder.is_dir():
        return folder
    if download.target.exists():
        raise Absent(f"{option}={given} is not there: {download.target} holds no folder {inside}")
    raise Absent(f"{option}={given} is not on this machine: {download.remedy}")


def _catalogue() -> Catalogue:
    return Catalogue([configs_folder()])
