"""What executors share whose jobs run elsewhere: jobs are files in the results folder, and tell their events by files.

A cluster has to start calls of Python functions (``ClusterExecutor.start``); all else is here. A job that its cluster
starts again, after a preemption say, goes on where it was ended. One that ends without having settled its cells is put
down to these.
"""

from __future__ import annotations

import os
import sys
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from nystra_bench.errors import UserError
from nystra_bench.sweep import inspection
from nystra_bench.sweep.durations import Durations
from nystra_bench.sweep.executors.base import Executor, Listener, SessionJob
from nystra_bench.sweep.executors.jobfile import JobFile, run_file
from nystra_bench.sweep.progress import duration
from nystra_bench.sweep.session import End, SessionRun
from nystra_bench.text import printable

FOLDER = "jobs"
"""The folder within a sweep's that has a folder for each run's jobs."""

LAG_S = 60.0
"""Seconds after which a network file system shows what another machine has written, at the latest."""


class Lost(Exception):
    """A call ended without a result; the text says how, as a clause."""


class Call(Protocol):
    """A call that a cluster was given."""

    @property
    def name(self) -> str:
        """What the cluster calls it."""

    def done(self) -> bool:
        """Whether it has ended, in whatever way."""

    def result(self) -> Any:
        """What the function gave, once it is done.

        Raises:
            Lost: it ended otherwise.
        """

    def cancel(self) -> None:
        """End it."""


@dataclass(frozen=True)
class Resources:
    """What a job asks for.

    Attributes:
        cpus: processors.
        gpus: GPUs.
        memory_gb: of main memory, in 10^9 bytes; None asks for none.
        alone: whether nothing else may run on its machine.
    """

    cpus: int
    gpus: int = 0
    memory_gb: float | None = None
    alone: bool = False

    def __str__(self) -> str:
        memory = f"{self.memory_gb:g} GB" if self.memory_gb else ""
        gpus = _counted(self.gpus, "GPU") if self.gpus else ""
        alone = "alone on its machine" if self.alone else ""
        return ", ".join(filter(None, [_counted(self.cpus, "CPU"), gpus, memory, alone]))


class ClusterExecutor(Executor):
    """Base class of executors whose jobs run elsewhere. ``start`` has to be written.

    Args:
        cpus, gpus, memory_gb: what each job asks for.
        parallel: jobs that run at a time, at most.

    Raises:
        ValueError: a number is out of range.
    """

    inspect_there = True
    """Whether a job asks the machines that the jobs run on what they are; else this machine answers for them."""

    poll_s = 1.0
    """Seconds between two looks at the jobs."""

    def __init__(self, cpus: int, gpus: int, memory_gb: float | None, parallel: int):
        for name, value, least in (("cpus", cpus, 1), ("gpus", gpus, 0), ("parallel", parallel, 1)):
            if value < least:
                raise ValueError(f"executor.{name}={value} is out of range: accepted are whole numbers from {least} on")
        if memory_gb is not None and not 0 < memory_gb < float("inf"):
            raise ValueError(f"executor.memory_gb={memory_gb} is out of range: accepted are numbers above 0, and null")
        self.cpus, self.gpus, self.memory_gb, self.parallel = cpus, gpus, memory_gb, parallel

    @abstractmethod
    def start(self, function: Callable[[Any], Any], calls: list[tuple[Any, Resources]], folder: Path) -> list[Call]:
        """Start calls of a function of this project, each with its argument and what it asks for.

        Args:
            folder: of the run, on a disk that all machines share, for what the cluster keeps.
        """

    @property
    def startable(self) -> int | None:
        """Jobs that may be given to the cluster at a time; None where it keeps to ``parallel`` itself."""
        return self.parallel

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Around all that a run starts."""
        yield

    def needs(self, job: SessionJob) -> Resources:
        return Resources(self.cpus, self.gpus, self.memory_gb, alone=job.quiet)

    # ----------------------------------------------------------------- planning

    def look(self, request: dict, folder: Path) -> dict:
        if not self.inspect_there:
            return super().look(request, folder)
        with self.connected():
            asked = (request, os.getcwd()), Resources(self.cpus, self.gpus)
            (call,) = self.start(look_there, [asked], _new(folder))
            self._tell(f"job {call.name} looks at the machine that the jobs are to run on")
            with _cancelled([call]):
                while not call.done():
                    time.sleep(self.poll_s)
                try:
                    answered = call.result()
                except Lost as lost:
                    raise UserError(f"the job {call.name}, which was to look at the machine, {lost}") from lost
        if "error" in answered:
            raise UserError(answered["error"])
        return answered

    def plan(self, jobs: list[SessionJob], results: Iterable[dict]) -> list[str]:
        durations = Durations(results)
        lines, seconds, unknown = [], [], 0
        for number, job in enumerate(jobs, 1):
            took, unlike = durations.total(job.cells)
            known = f"about {duration(took)}" if unlike < len(job.cells) else "no cell like these is measured yet"
            cells = _counted(len(job.cells), "cell")
            lines.append(f"job {number}: {cells} of {job.cells[0].describe_session()}; {self.needs(job)}; {known}")
            seconds.append(took)
            unknown += unlike
        return [*lines, self._estimate(seconds, unknown)] if jobs else []

    def _estimate(self, seconds: list[float], unknown: int) -> str:
        """The jobs together: no shorter than the longest of them, nor than what so many at a time can do."""
        jobs = f"{_counted(len(seconds), 'job')}, at most {self.parallel} at a time"
        took = max(max(seconds), sum(seconds) / self.parallel)
        told = f"about {duration(took)} besides waiting for machines" if took else "no estimate"
        unlike = f"; {unknown} cells are like none that is measured, and not in it" if unknown else ""
        return f"{jobs}: {told}{unlike}"

    # ----------------------------------------------------------------- running

    def run(self, jobs: list[SessionJob], folder: Path, on_event: Listener) -> None:
        here = _new(folder)
        files = [JobFile(here / f"{number}.json") for number in range(1, len(jobs) + 1)]
        for file, job in zip(files, jobs, strict=True):
            file.write(job)
        self._tell(f"{_counted(len(jobs), 'job')}, with logs in {here}")
        waiting = list(zip(files, jobs, strict=True))
        at_work: list[tuple[JobFile, SessionJob, Call]] = []
        with self.connected(), _cancelled(call for _, _, call in at_work):
            while waiting or at_work:
                room = len(waiting) if self.startable is None else self.startable - len(at_work)
                begun, waiting = waiting[:room], waiting[room:]
                if begun:
                    calls = self.start(run_file, [(str(file.path), self.needs(job)) for file, job in begun], here)
                    at_work += [(*one, call) for one, call in zip(begun, calls, strict=True)]
                at_work[:] = [one for one in at_work if not self._ended(*one, on_event)]
                if at_work:
                    time.sleep(self.poll_s)

    def _ended(self, file: JobFile, job: SessionJob, call: Call, on_event: Listener) -> bool:
        """Tell what is new of a job, and whether it has ended; what it has not settled is then a failure."""
        ended = call.done()
        for event in file.news():
            on_event(event)
        if ended:
            self._settle(file, job, call, on_event)
        return ended

    def _settle(self, file: JobFile, job: SessionJob, call: Call, on_event: Listener) -> None:
        try:
            call.result()
            how, patience = "ended without having measured the cell", LAG_S
        except Lost as lost:
            how, patience = str(lost), 0.0
        asked = time.monotonic()
        while (left := job.without(file.settled).cells) and time.monotonic() - asked < patience:
            time.sleep(self.poll_s)
            for event in file.news():
                on_event(event)
        reason = printable(f"the job {call.name} {how}; its log is {file.log}")
        run = SessionRun(job.store, job.timeout_s, file.log, on_event)
        for cell in left:
            run.fail(cell, End("crashed", reason))

    @staticmethod
    def _tell(said: str) -> None:
        print(f"nystra_bench: {printable(said)}", file=sys.stderr, flush=True)


def _counted(number: int, of: str) -> str:
    return f"{number} {of}" if number == 1 else f"{number} {of}s"


def look_there(asked: tuple[dict, str]) -> dict:
    """The facts that a request asks for (``inspection.look``), or ``error``, a mistake of the user's as a sentence.

    Args:
        asked: the request, and the folder that paths in it are relative to.
    """
    request, folder = asked
    os.chdir(folder)
    try:
        return inspection.look(request)
    except UserError as error:
        return {"error": str(error)}


def _new(folder: Path) -> Path:
    """A folder for this run's jobs, named by the time."""
    name = f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
    for number in range(1, 1000):
        path = folder / FOLDER / (name if number == 1 else f"{name}_{number}")
        try:
            path.mkdir(parents=True)
            return path.resolve()
        except FileExistsError:  # another one began in the same second
            continue
    raise FileExistsError(f"{folder / FOLDER} has a thousand folders of one second")


@contextmanager
def _cancelled(calls: Iterable[Call]) -> Iterator[None]:
    """End the calls that are not done, where what is inside does not end well: nobody would wait for them."""
    try:
        yield
    except BaseException:
        for call in calls:
            if not call.done():
                call.cancel()
        raise
