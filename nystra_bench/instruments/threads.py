"""How many threads PyTorch uses on the CPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from nystra_bench.errors import UserError
from nystra_bench.instruments.environment import usable_cores

PROCESS = Path("/proc/self")


def thread_count(wanted: object = None) -> int:
    """The threads for ``device.threads``: as many as it says, or ``default_threads``.

    Raises:
        UserError: it is no whole number from 1 to the number of cores of the machine.
    """
    if wanted is None:
        return default_threads()
    if type(wanted) is not int or not 1 <= wanted <= _cores():
        raise UserError(
            f"device.threads={wanted} is out of range: accepted are whole numbers from 1 on, up to the {_cores()} "
            "cores of this machine, or null"
        )
    return wanted


def default_threads() -> int:
    """``OMP_NUM_THREADS`` where it is set, else one thread for each core that this process may use.

    Where a control group has a quota of processor time, no more than it pays for: further threads would be stopped for
    a part of each period, which spoils timings.
    """
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # further numbers are for nested threads
    if given.isdecimal() and int(given) >= 1:
        return min(int(given), _cores())
    quota = cpu_quota()
    return usable_cores() if quota is None else max(1, min(usable_cores(), int(quota)))


def cpu_quota(process: Path = PROCESS) -> float | None:
    """The cores that the control groups of this process pay for; None where they set no bound, and outside of Linux.

    Source: the kernel's documentation, Control Group v2 (``cpu.max``) and CFS Bandwidth Control (``cpu.cfs_quota_us``).
    """
    try:
        found = [quota for folder in _groups(process) if (quota := _quota(folder)) is not None]
    except (OSError, ValueError):  # no such system
        return None
    return min(found, default=None)


def _groups(process: Path) -> Iterator[Path]:
    """The folders of the control groups that bound this process's time: its own and all above."""
    paths: dict[str, str] = {}
    for line in (process / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        paths |= {name: path for name in controllers.split(",")}  # version 2 names no controllers
    for line in (process / "mountinfo").read_text().splitlines():
        mount, _, system = line.partition(" - ")
        kind, _, options = system.split(" ")[:3]
        root, point = mount.split(" ")[3:5]
        controller = {"cgroup": "cpu", "cgroup2": ""}.get(kind)
        if controller not in paths or (controller and controller not in options.split(",")):
            continue
        own = Path(paths[controller])
        below = own.relative_to(root) if own.is_relative_to(root) else Path()
        top = Path(point)
        yield from (top / part for part in (below, *below.parents))


def _quota(folder: Path) -> float | None:
    """The quota of one control group, in cores."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        except OSError:
            return None
    return None if quota in ("max", "-1") else int(quota) / int(period)


def _cores() -> int:
    return os.cpu_count() or 1
