"""The faults: each is one entry of ``FAULTS``, which the tests and ``scripts/inject_faults.py`` inject one by one."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from faults.arena import Arena, Survival, gone

from nystra_bench.sweep.cell import SCHEMA
from nystra_bench.sweep.store import Store

INTERRUPTED = "nystra_bench: interrupted; what was measured is kept, the same command goes on"


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong with a sweep.

    Attributes:
        kind: what the table calls it.
        inject: runs or damages the sweep of an arena, and asserts that it ended in a way that people understand; gives
            how many cells the run said to be done.
        absent: why it cannot be injected on this machine; None where it can.
    """

    kind: str
    inject: Callable[[Arena, Random], int]
    absent: Callable[[], str | None] = lambda: None


def survive(fault: Fault, arena: Arena, chance: Random) -> Survival:
    """Inject a fault, and go on with the sweep afterwards."""
    return arena.survives(fault.inject(arena, chance))


# --------------------------------------------------------------------------- signals


def _no_processes() -> str | None:
    return None if os.path.isdir("/proc/self/task") else "the system has no /proc, by which processes are found"


def parent_is_killed(arena: Arena, chance: Random) -> int:
    with arena.running() as run:
        run.wait_for_a_moment(chance, least=0)
        worker = run.worker
        run.process.kill()
        assert run.ends().code == -signal.SIGKILL
        assert worker is None or gone(worker), "the worker outlived the run that started it"
    return run.told


def worker_is_killed(arena: Arena, chance: Random) -> int:
    """The run goes on with the other cells, and says of this one why it has no number."""
    with arena.running() as run:
        run.wait_for_a_moment(chance)
        worker = run.worker
        assert worker is not None
        os.kill(worker, signal.SIGKILL)
        ended = run.ends()
        assert ended.code == 2, ended.err  # the moment is within one of the slow cells
    reasons = [row["reason"] for row in arena.table().values() if row["status"] == "crashed"]
    assert len(reasons) == 1 and "the worker was ended by SIGKILL" in reasons[0]
    return run.told


def both_are_killed(arena: Arena, chance: Random) -> int:
    """As a machine is that loses its power, but for what its disk had not written.

    A process that is killed lives for a moment longer where the machine is busy, and then what it wrote is not yet
    left behind: the next run is not started before, as it is not on a machine that starts again.
    """
    with arena.running() as run:
        run.wait_for_a_moment(chance)
        worker = run.worker
        run.signal_all(signal.SIGKILL)
        run.ends()
        assert worker is None or gone(worker)
    return run.told


def asked_to_end_by(number: signal.Signals) -> Callable[[Arena, Random], int]:
    def inject(arena: Arena, chance: Random) -> int:
        with arena.running() as run:
            run.wait_for_a_moment(chance)
            worker = run.worker
            run.process.send_signal(number)
            ended = run.ends()
            assert ended.code == 1 and ended.err.splitlines()[-1] == INTERRUPTED, ended
            assert worker is None or gone(worker)
        return run.told

    return inject


def stopped_and_on(arena: Arena, chance: Random) -> int:
    """Ctrl-Z and ``fg``; a machine that sleeps."""
    with arena.running() as run:
        run.wait_for_a_moment(chance)
        run.signal_all(signal.SIGSTOP)
        time.sleep(chance.uniform(0.2, 1.5))
        run.signal_all(signal.SIGCONT)
        ended = run.ends()
        assert ended.code == 0, ended.err
    return run.told


# --------------------------------------------------------------------------- the disk


def _mount(*words: str) -> bool:
    return subprocess.run(["mount", *words], capture_output=True, check=False).returncode == 0


def _mount_read_only(folder: Path) -> None:
    """While a file under it is being written the kernel refuses (busy), so it is asked again."""
    assert _mount("--bind", str(folder), str(folder))
    assert any(_mount("-o", "remount,ro,bind", str(folder)) or time.sleep(0.01) for _ in range(500))


def _no_mounts() -> str | None:
    if os.geteuid() or shutil.which("mount") is None:
        return "file systems are mounted by root alone"
    command = ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"]
    unshared = subprocess.run(command, capture_output=True, check=False)
    return None if unshared.returncode == 0 else "root may not mount file systems here"


def _no_way_to_forbid() -> str | None:
    return _no_mounts() and ("root may write to any folder" if os.geteuid() == 0 else None)


def _said_what_cannot_be_written(code: int, said: str) -> bool:
    """Told in a sentence, by the whole run or by cells of it; or the disk was full when all was done."""
    last = said.splitlines()[-1] if said else ""
    told = last.startswith("nystra_bench: ") and ("cannot be" in last and "accepted" in last)
    return "Traceback" not in said and (code in (0, 2) or (code == 1 and told))


def disk_is_full(arena: Arena, chance: Random) -> int:
    """A small file system, which something else fills while the sweep runs."""
    arena.results.mkdir()
    assert _mount("-t", "tmpfs", "-o", "size=16m", "faults", str(arena.results))
    arena.after.callback(subprocess.run, ["umount", "-l", str(arena.results)], check=True)
    ballast = arena.results / "ballast"
    with arena.running() as run:
        run.wait_for_a_moment(chance)
        fill(ballast)
        ended = run.ends()
        assert _said_what_cannot_be_written(ended.code, ended.err), ended.err
    ballast.unlink()
    return run.told


def fill(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file:
        size = 1 << 20
        while size:
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2


def quota_is_met(arena: Arena, chance: Random) -> int:
    """No file may be larger than so many bytes, as by a quota: the plan, results or the report are."""
    bytes_ = chance.choice([1_000, 4_000, 16_000])

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, bytes_))

    with arena.running(preexec_fn=limit) as run:
        ended = run.ends()
        assert _said_what_cannot_be_written(ended.code, ended.err), ended.err
        assert ended.code
    return run.told


def store_becomes_read_only(arena: Arena, chance: Random) -> int:
    store = arena.results / "store"
    with arena.running() as run:
        run.wait_for_a_moment(chance)
        if os.geteuid() == 0:
            _mount_read_only(store)
        else:
            store.chmod(0o500)
        ended = run.ends()
        if os.geteuid() == 0:
            subprocess.run(["umount", "-l", str(store)], check=True)
        else:
            store.chmod(0o700)
        assert ended.code == 1 and _said_what_cannot_be_written(ended.code, ended.err), ended.err
    return run.told


# --------------------------------------------------------------------------- damaged files


def result_that(damage: Callable[[Path, Random, Arena], None]) -> Callable[[Arena, Random], int]:
    """One file of a finished sweep is damaged: that cell is missing, and no other."""

    def inject(arena: Arena, chance: Random) -> int:
        arena.copy_undisturbed()
        file = chance.choice(sorted(arena.results.glob("store/*/result.json")))
        damage(file, chance, arena)
        store = Store(arena.results / "store")
        statuses = {key: store.status(key)[0] for key in arena.ground.rows}
        assert statuses.pop(file.parent.name) == "missing"
        assert {*statuses.values()} == {"done"}
        return len(arena.ground.rows) - 1

    return inject


def truncated(file: Path, chance: Random, _: Arena) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: chance.randrange(1, len(content))])


def emptied(file: Path, *_: object) -> None:
    file.write_bytes(b"")


def another_cells(file: Path, chance: Random, arena: Arena) -> None:
    others = [other for other in sorted(arena.results.glob("store/*/result.json")) if other != file]
    shutil.copy(chance.choice(others), file)


def of_a_newer_schema(file: Path, *_: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema": SCHEMA + 1}))


def zeroed(file: Path, *_: object) -> None:
    """As some file systems leave what was being written when the power went."""
    file.write_bytes(bytes(file.stat().st_size))


# --------------------------------------------------------------------------- two runs, clocks, places


def two_runs(arena: Arena, chance: Random) -> int:
    """A second run into the same folder, of the same or of another sweep, is told to wait, and the first goes on."""
    with arena.running() as run:
        run.wait_for_a_moment(chance)
        for sweep in ("faulty", "misbehaving"):
            second = arena.here(sweep=sweep)
            (said,) = second.err.splitlines()
            assert second.code == 1 and f"results={arena.results} is in use by another run (process " in said, said
        ended = run.ends()
        assert ended.code == 0, ended.err
    return run.told


JUMPING = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long off(void) { /* seconds by which the wall clock is wrong: at each look back to 1995, or on to 2058 */
    static int looks;
    const char *file = getenv("CLOCK_JUMPS");
    return !file || access(file, F_OK) ? 0 : looks++ % 2 ? 1000000000L : -1000000000L;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, now);
    if (!failed && clock == CLOCK_REALTIME) now->tv_sec += off();
    return failed;
}

time_t time(time_t *seconds) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (seconds) *seconds = now.tv_sec;
    return now.tv_sec;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}
"""


def _no_shim() -> str | None:
    if not sys.platform.startswith("linux"):
        return "LD_PRELOAD, which makes the clock jump, is of Linux"
    return None if shutil.which("cc") else "there is no C compiler for what makes the clock jump"


def clock_jumps(arena: Arena, chance: Random) -> int:
    """Of all processes of the run: at each look it is decades off."""
    source, shim, jumps = (arena.folder / name for name in ("jumping.c", "jumping.so", "jumps"))
    source.write_text(JUMPING)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", shim, source, "-ldl"], check=True)
    with arena.running(env={"LD_PRELOAD": str(shim), "CLOCK_JUMPS": str(jumps)}) as run:
        run.wait_for_a_moment(chance)
        jumps.touch()
        ended = run.ends()
        assert ended.code == 0, ended.err
    finished = [json.loads(content)["finished"][:4] for content in arena.done().values()]
    assert {"1995", "2058"} & {*finished}, f"the clock did not jump: {finished}"
    return run.told


def odd_places(arena: Arena, chance: Random) -> int:
    """A locale of ASCII alone, and a folder whose name has blanks, quotes, commas and bytes that are no text."""
    arena.results = arena.folder / os.fsdecode("an 'odd' päth, {a}=[b] 風 ".encode() + b"\xe9")
    locale = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    with arena.running(composed=False, env=locale) as run:
        run.wait_for_a_moment(chance)
        run.process.send_signal(signal.SIGINT)
        ended = run.ends()
        assert ended.code == 1 and ended.err.splitlines()[-1] == INTERRUPTED, ended
    return run.told


FAULTS = [
    Fault("kill -9 of the run", parent_is_killed, _no_processes),
    Fault("kill -9 of the worker", worker_is_killed, _no_processes),
    Fault("kill -9 of both at once", both_are_killed, _no_processes),
    *(
        Fault(name, asked_to_end_by(signal.Signals[name]), _no_processes)
        for name in ("SIGINT", "SIGTERM", "SIGHUP")
    ),
    Fault("SIGSTOP and SIGCONT", stopped_and_on),
    Fault("full disk (tmpfs)", disk_is_full, _no_mounts),
    Fault("quota (file size limit)", quota_is_met),
    Fault("store becomes read-only", store_becomes_read_only, _no_way_to_forbid),
    Fault("result truncated", result_that(truncated)),
    Fault("result emptied", result_that(emptied)),
    Fault("result zeroed", result_that(zeroed)),
    Fault("result of another cell", result_that(another_cells)),
    Fault("result of a newer schema", result_that(of_a_newer_schema)),
    Fault("two runs at once, of one sweep and of two", two_runs),
    Fault("clock jumps by decades", clock_jumps, _no_shim),
    Fault("ASCII locale and an odd path", odd_places),
]
