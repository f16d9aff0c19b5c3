"""Getting a download, checking it, and putting it in place: whole and right, or not at all.

Beside the target lies ``<target>.lock.json``: when and from where it came, and the SHA-256 of every file. Where this
project knows no checksum, what was fetched first is trusted, and everything later is held to the record.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pooch
from filelock import FileLock, Timeout

from nystra_bench.errors import UserError
from nystra_bench.fetch import packages
from nystra_bench.fetch.archives import unpack
from nystra_bench.fetch.catalogue import Download, Item, cache_folder
from nystra_bench.fetch.transfer import Resuming
from nystra_bench.models.checkpoints import read_state_dict, sha256

pooch.get_logger().setLevel("WARNING")  # it would advise to pass a known_hash

Say = Callable[[str], object]


def fetch(download: Download, source: Path | None = None, force: bool = False, say: Say = print) -> Path:
    """Have a download on this machine; nothing is done where it is there and right.

    Args:
        source: the file (or the folder of the files) that the user has got in another way.
        force: replace what is there and wrong, and forget what was recorded of it.
        say: called with each line for the user.

    Returns:
        Where it is: a file, or the folder of a data set.

    Raises:
        UserError: it has no address, cannot be fetched, is not what it should be, or something wrong is in its place.
    """
    target = download.target
    with _alone(download, say):
        record = _read_record(target)
        if target.exists():
            fault = _fault(download, record)
            if fault is None:
                if record is None:  # the user's own copy: trusted from now on
                    base = target if download.kind == "data" else target.parent
                    _record(download, {item.file: _origin(base / item.file) for item in download.items()}, say)
                say(f"{download.name} is there already: {target}")
                return target
            if not force:
                raise UserError(f"{target} is there but wrong ({fault}): move it away, or replace it with --force")
        if source is None and download.url is None:
            raise UserError(
                f"{download.name} has no direct address: get {download.what} from {download.page} and give it with "
                f"python -m nystra_bench.fetch {download.name} --from PATH"
            )
        _get(download, source, {} if force or record is None else record["sources"], say)
    say(f"{download.name} is fetched: {target}")
    return target


@contextlib.contextmanager
def _alone(download: Download, say: Say) -> Iterator[None]:
    """Hold other processes off this download."""
    folder = cache_folder() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{download.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"{download.name} is being fetched by another process: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


# --------------------------------------------------------------------------- getting


def _get(download: Download, source: Path | None, recorded: dict, say: Say) -> None:
    """Stage all files, check them, and move them to the target."""
    target = download.target
    staged = _staging(target)
    origins = {}
    for item in download.items():
        path = staged / item.file if _in_folder(download) else staged
        path.parent.mkdir(parents=True, exist_ok=True)
        came_from = _receive(item, path) if source is None else _take(item, path, source, download)
        try:
            _check(download, item, path, recorded.get(item.file, {}).get("sha256"), came_from)
        except UserError:
            path.unlink()
            raise
        origins[item.file] = {"from": came_from, **_origin(path)}
    if not download.unpack:
        _record(download, origins, say, known=recorded)
        _swap(staged, target)
        return
    unpacked = target.with_name(f".unpacked-{target.name}")
    _remove(unpacked)
    try:
        unpack(staged, unpacked, download.member)
    except UserError:
        staged.unlink()
        raise
    _record(download, origins, say, known=recorded, content=unpacked)
    _swap(unpacked, target)
    staged.unlink()


def _receive(item: Item, path: Path) -> str:
    """Download to ``path``; the partial file lies beside the target, or in the staged folder of several files."""
    assert item.url is not None, "where there is no address the user gives the file"
    if item.url.startswith(packages.SCHEME):
        packages.receive(item.url, item.package_sha256, path)
        return item.url
    part = path.with_name(f"{path.name.removeprefix('.new-')}.part")
    verified = item.sha256 is not None or item.sha256_prefix is not None
    # No known_hash: all that is known of the file is checked in one place, for files given by the user, too.
    pooch.retrieve(item.url, None, fname=path.name, path=path.parent, downloader=Resuming(part, verified))
    return item.url


def _take(item: Item, path: Path, source: Path, download: Download) -> str:
    """Copy the user's file to ``path``."""
    given = source / item.file if source.is_dir() and _in_folder(download) else source
    if not given.is_file() or (given == source and len(download.items()) > 1):
        accepted = f"a folder that holds {item.file} and the like" if download.files else f"the file {item.file}"
        raise UserError(f"--from={source} does not fit {download.name}: accepted is {accepted} from {download.page}")
    shutil.copyfile(given, path)
    return str(given.resolve())


def _swap(new: Path, target: Path) -> None:
    """Put the new in place; a folder in its way is set aside first, since folders cannot be replaced in one step."""
    aside = target.with_name(f".old-{target.name}")
    _remove(aside)
    if target.is_dir() or (target.exists() and new.is_dir()):
        os.replace(target, aside)
    os.replace(new, target)
    _remove(aside)


def _staging(target: Path) -> Path:
    return target.with_name(f".new-{target.name}")


def _in_folder(download: Download) -> bool:
    """Whether the files lie in the target, and are not the target or what it is unpacked from."""
    return download.kind == "data" and not download.unpack


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# --------------------------------------------------------------------------- checking


def _fault(download: Download, record: dict | None) -> str | None:
    """What is wrong with the files in place; None if nothing is."""
    if download.unpack and record is None:
        return "it was not put there by this command"
    sources = record["sources"] if record else {}
    if download.unpack and download.sha256 not in (None, sources.get(download.file, {}).get("sha256")):
        return "it was unpacked from another archive"
    recorded = record["files"] if record else {}
    items = [Item(file) for file in recorded] if download.unpack else download.items()
    for item in items:
        path = download.target / item.file if download.kind == "data" else download.target
        fault = _mismatch(item, path, recorded.get(item.file))
        if fault is None and record is None and download.kind == "weights":
            fault = _unreadable(path)
        if fault is not None:
            return fault
    return None


def _check(download: Download, item: Item, path: Path, recorded: str | None, came_from: str) -> None:
    """Hold a staged file to all that is known of it.

    Raises:
        UserError: it is not what it should be.
    """
    fault = _mismatch(item, path, recorded)
    if fault is None and download.kind == "weights":
        fault = _unreadable(path)
    if fault is not None:
        raise UserError(f"{came_from} is not {download.name} ({fault}): nothing was put in place")


def _mismatch(item: Item, path: Path, recorded: str | None) -> str | None:
    """How a file differs from what is known of it; None if it does not.

    The project's checksum decides alone; a prefix of it leaves room, which the record of the first fetch fills.
    """
    if not path.is_file():
        return f"{item.file} is missing"
    size = path.stat().st_size
    if item.size is not None and size != item.size:
        return f"{item.file} has {size} bytes, expected are {item.size}"
    actual = sha256(path)
    expected = item.sha256 or recorded
    if expected is not None and actual != expected:
        since = "" if item.sha256 else " as when it was first fetched"
        return f"the SHA-256 of {item.file} is {actual}, expected is {expected}{since}"
    if item.sha256_prefix is not None and not actual.startswith(item.sha256_prefix):
        return f"the SHA-256 of {item.file} is {actual}, expected is one that begins with {item.sha256_prefix}"
    return None


def _unreadable(path: Path) -> str | None:
    """Why a file is no checkpoint that can be read safely; None if it is one."""
    try:
        read_state_dict(path)
    except UserError:
        return "it is no checkpoint of tensors: damaged, or such that reading it would execute code"
    return None


# --------------------------------------------------------------------------- the record


def _record_path(target: Path) -> Path:
    return target.with_name(f"{target.name}.lock.json")


def _read_record(target: Path) -> dict | None:
    path = _record_path(target)
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text())
        if not all(isinstance(record[entry], dict) for entry in ("sources", "files")):
            raise ValueError("not a record")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no record of a fetch: move it away") from error
    return record


def _origin(path: Path) -> dict:
    return {"sha256": sha256(path), "size": path.stat().st_size}


def _record(
    download: Download, sources: dict, say: Say, known: dict | None = None, content: Path | None = None
) -> None:
    """Write down what came, and say which checksums had to be taken on trust.

    Written before the files are put in place: were it after, a crash between would leave files of unknown origin.
    """
    path = _record_path(download.target)
    for item in download.items():
        if item.sha256 is None and item.sha256_prefix is None and item.file not in (known or {}):
            say(
                f"the checksum of {item.file} is not known to this project: the SHA-256 obtained is "
                f"{sources[item.file]['sha256']}, recorded in {path}"
            )
    if content is None:
        files = {file: source["sha256"] for file, source in sources.items()}
    else:
        inside = sorted(file for file in content.rglob("*") if file.is_file())
        files = {file.relative_to(content).as_posix(): sha256(file) for file in inside}
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    record = {"name": download.name, "fetched": now, "sources": sources, "files": files}
    new = path.with_name(f".new-{path.name}")
    new.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(new, path)
