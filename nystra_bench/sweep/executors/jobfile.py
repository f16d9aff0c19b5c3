"""A session's job on the disk that the machines of a cluster share: what it is to do, what it tells, and its log."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from nystra_bench.sweep.executors.base import SessionJob, tell_user
from nystra_bench.sweep.files import write_atomically
from nystra_bench.sweep.locks import device_lock
from nystra_bench.sweep.session import event_of

SETTLED = ("done", "failed", "kept")
"""The events after which a cell has a result or a failure, or a job's part of its images is kept."""


class JobFile:
    """``<name>.json`` with the job; beside it ``.events`` and ``.log``, which the job's process writes.

    Args:
        path: of the first.
    """

    def __init__(self, path: Path):
        self.path = path
        self.log, self._events = path.with_suffix(".log"), path.with_suffix(".events")
        self._read = 0
        self.settled: set[str] = set()
        """Keys of the cells that ``news`` told the end of."""

    def write(self, job: SessionJob) -> None:
        # The paths that a user gives are relative to the folder that the command was started in.
        write_atomically(self.path, json.dumps(asdict(job) | {"folder": os.getcwd()}))

    def read(self) -> tuple[SessionJob, str]:
        """The job, and the folder that it is to be done in."""
        about = json.loads(self.path.read_text())
        folder = about.pop("folder")
        return SessionJob(**about), folder

    def tell(self, event: dict) -> None:
        """Add an event; one process does."""
        with self._events.open("a", encoding="utf-8") as file:
            file.write(f"\n{json.dumps(event)}\n")  # the line before may be torn, where its writer was killed

    def news(self) -> Iterator[dict]:
        """The events since the last call; a line that is being written is left for the next."""
        try:
            with self._events.open("rb") as file:
                file.seek(self._read)
                *lines, rest = file.read().split(b"\n")
                self._read = file.tell() - len(rest)
        except FileNotFoundError:  # the job has not begun
            return
        for event in filter(None, map(event_of, filter(None, lines))):
            if event["event"] in SETTLED:
                self.settled.add(event["key"])
            yield event


def run_file(path: str) -> None:
    """What a job does: the session in the file, less the cells that an earlier start of the same job has settled.

    The cell that was being measured when that one was ended goes on from its journal.
    """
    file = JobFile(Path(path))
    job, folder = file.read()
    os.chdir(folder)
    for _ in file.news():
        pass
    left = job.without(file.settled)
    if left.cells:
        with device_lock(left.device, left.quiet, wait=True, tell=tell_user):
            left.run(file.log, file.tell, apart=True)
