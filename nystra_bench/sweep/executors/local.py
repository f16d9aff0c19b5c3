"""Here and now: one session after the other, each in a process of its own."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from nystra_bench.sweep.executors.base import LOG, Executor, Listener, SessionJob, tell_user
from nystra_bench.sweep.locks import device_lock


class LocalExecutor(Executor):
    """The devices are held from the first session to the last.

    Timings are refused at once where another run has their device: they would come at a moment that nobody chose. What
    only computes waits for the end of another run's timings, since its numbers are the same later.
    """

    def run(self, jobs: list[SessionJob], folder: Path, on_event: Listener) -> None:
        timed = {job.device for job in jobs if job.quiet}
        with ExitStack() as locks:
            for device in sorted({job.device for job in jobs}):
                quiet = device in timed
                locks.enter_context(device_lock(device, quiet, wait=not quiet, tell=tell_user))
            for job in jobs:
                job.run(folder / LOG, on_event)
