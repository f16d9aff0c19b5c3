"""Here and now: one session after the other, each in a process of its own."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from nystra_bench.sweep.executors.base import LOG, Executor, Listener, SessionJob
from nystra_bench.sweep.locks import device_lock


class LocalExecutor(Executor):
    """The devices are held from the first session to the last, so that another run is refused at once or not at all."""

    def run(self, jobs: list[SessionJob], folder: Path, on_event: Listener) -> None:
        timed = {job.device for job in jobs if job.quiet}
        with ExitStack() as locks:
            for device in sorted({job.device for job in jobs}):
                locks.enter_context(device_lock(device, quiet=device in timed))
            for job in jobs:
                job.run(folder / LOG, on_event)
