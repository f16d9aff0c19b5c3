"""Locks between runs: of a results folder, and of a device while it is timed. A killed process holds none."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from nystra_bench.errors import UserError
from nystra_bench.sweep.files import write_atomically
from nystra_bench.sweep.progress import duration
from nystra_bench.text import printable

LOCKS = "NYSTRA_BENCH_LOCKS"
"""The environment variable that names the folder with the devices' locks."""

SHARED_FILE, SHARED_FOLDER = 0o666, 0o777
"""Modes: whoever may use the machine or the results folder may lock it, too."""


@contextmanager
def results_lock(store: Path) -> Iterator[None]:
    """Keep a second run from measuring into the same results folder.

    Args:
        store: the folder ``results/store``, made where it is absent.

    Raises:
        UserError: another run holds the lock, or the folder cannot be written.
    """
    option = f"results={store.parent}"
    with _held(store / ".lock", option, f"{option} is in use by another run", "wait for its end"):
        yield


@contextmanager
def device_lock(
    device: str, quiet: bool, wait: bool = False, tell: Callable[[str], None] = lambda said: None
) -> Iterator[None]:
    """Keep timings of a device of this machine undisturbed by other runs, whatever their results folders.

    A run that times holds all of the device's places, one that only computes holds one of them: so runs that compute
    share the device, and one that times has it to itself. The locks lie in the folder ``NYSTRA_BENCH_LOCKS``, by
    default ``/tmp/nystra_bench-locks``, and hold off the processes of all users that see that folder.

    Args:
        device: the device's kind, ``cpu`` or ``cuda``.
        quiet: whether nothing else may run on the device.
        wait: whether to wait for other runs to end, as jobs of a cluster do whose machine was chosen for them.
        tell: is told, where a run that does not time waits, for whom and how long, now and then.

    Raises:
        UserError: other runs hold what is needed and are not waited for, or the folder cannot be written.
    """
    folder = _locks_folder()
    busy = f"device={device} is in use by another run, and {_WHY[quiet]}"

    def held(place: int) -> AbstractContextManager:
        file = folder / f"nystra_bench-{device}-{place}.lock"
        # Who needs all places keeps those that it has, and has the others as they become free.
        return _held(file, f"{LOCKS}={folder}", busy, "wait for its end", wait and quiet)

    with ExitStack() as stack:
        if quiet:
            for place in range(PLACES):
                stack.enter_context(held(place))
        else:
            stack.enter_context(_any_of(held, wait, tell))
        yield


def _any_of(held: Callable[[int], AbstractContextManager], wait: bool, tell: Callable[[str], None]) -> ExitStack:
    """Hold one of a device's places.

    Raises:
        Busy: none is free, and none is waited for.
    """
    began = time.monotonic()
    told: float | None = None
    while True:
        for place in range(PLACES):
            stack = ExitStack()
            try:
                stack.enter_context(held(place))
                return stack
            except Busy as busy:
                if place < PLACES - 1:
                    continue
                if not wait:
                    raise
                waited = time.monotonic() - began
                if told is None or waited - told >= TELL_S:
                    tell(f"{busy.what}: waiting for its end" + ("" if told is None else f" for {duration(waited)} now"))
                    told = waited
        time.sleep(LOOK_AGAIN_S)


PLACES = 8
"""So many runs that do not time may share a device."""

LOOK_AGAIN_S = 1.0
"""How often a lock that is waited for is tried; more often would disturb what is timed."""

TELL_S = 300.0
"""How often it is told that a lock is waited for."""

_WHY = {True: "timings need it to themselves", False: "it is being timed"}


class Busy(UserError):
    """Another process holds a lock.

    Args:
        what: what is in use, and by whom.
        accepted: what to do about it.
    """

    def __init__(self, what: str, accepted: str):
        super().__init__(f"{what}: accepted is to {accepted}")
        self.what = what


def _locks_folder() -> Path:
    """The folder with the devices' locks; the usual one is made for all users."""
    given = os.environ.get(LOCKS)
    if given:
        return Path(given).expanduser()
    # Not TMPDIR, which differs between users and jobs of one machine. A folder of its own, since Linux may let nobody
    # open the files of others for writing in a folder that is sticky, as /tmp is.
    common = Path("/tmp")
    folder = (common if common.is_dir() else Path(tempfile.gettempdir())) / "nystra_bench-locks"
    with suppress(OSError):  # it is there, or locking will say why it cannot be
        folder.mkdir()
        folder.chmod(SHARED_FOLDER)
    return folder


@contextmanager
def _held(file: Path, place: str, busy: str, accepted: str, wait: bool = False) -> Iterator[None]:
    """Hold a lock.

    Args:
        place: what errors call its folder.
        busy, accepted: what they say where another process holds it.
        wait: whether to wait for that one instead.
    """
    lock = FileLock(file, mode=SHARED_FILE)
    holder = file.with_name(f"{file.name}.holder")  # not in the lock's file: older filelocks empty the one they try
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=-1 if wait else 0, poll_interval=LOOK_AGAIN_S)
        write_atomically(holder, f"{os.getpid()} {socket.gethostname()}")
    except Timeout as error:
        raise Busy(f"{busy} ({_named(holder)})", accepted) from error
    except OSError as error:
        lock.release()
        reason = error.strerror or type(error).__name__
        raise UserError(
            f"{place} cannot be used ({file}: {reason}): accepted is a folder that this user may write to"
        ) from error
    try:
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _named(holder: Path) -> str:
    """Who holds a lock; of another machine, where the folder is shared, which one."""
    try:
        process, _, machine = holder.read_text(errors="replace").partition(" ")
        there = f" on {printable(machine)}" if machine not in ("", socket.gethostname()) else ""
        return f"process {int(process)}{there}"
    except (OSError, ValueError):  # it is just about to write its id, or keeps it to its user
        return "a process that does not tell its id"
