"""What executors share whose jobs run elsewhere: jobs are files in the results folder, and tell their events by files.

A cluster has to start calls of Python functions (``ClusterExecutor.start``); all else is here. A job that its cluster
starts again, after a preemption say, goes on where it was ended. One that ends without having settled its cells is put
down to these.
"""

from __future__ import annotations

import os
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from nystra_bench.errors import UserError
from nystra_bench.sweep import inspection
from nystra_bench.sweep.durations import Durations
from nystra_bench.sweep.executors.base import Executor, Listener, SessionJob, tell_user
from nystra_bench.sweep.executors.jobfile import SETTLED, JobFile, run_file
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


@dataclass(eq=False)
class Step:
    """A job of a run.

    Attributes:
        after: what has to be over before it begins.
        call: once it has begun.
    """

    job: SessionJob
    file: JobFile
    after: list[Step] = field(default_factory=list)
    call: Call | None = None
    over: bool = False

    @property
    def ready(self) -> bool:
        return all(step.over for step in self.after)


class ClusterExecutor(Executor):
    """Base class of executors whose jobs run elsewhere. ``start`` has to be written.

    Args:
        cpus, gpus, memory_gb: what each job asks for.
        parallel: jobs that run at a time, at most.
        images_per_job: a session with more images is spread, where its measurements allow that: jobs measure so many
            images each, and the session's own job puts them together; None leaves sessions whole.

    Raises:
        ValueError: a number is out of range.
    """

    inspect_there = True
    """Whether a job asks the machines that the jobs run on what they are; else this machine answers for them."""

    poll_s = 1.0
    """Seconds between two looks at the jobs."""

    def __init__(self, cpus: int, gpus: int, memory_gb: float | None, parallel: int, images_per_job: int | None = None):
        for name, value, least in (("cpus", cpus, 1), ("gpus", gpus, 0), ("parallel", parallel, 1)):
            if value < least:
                raise ValueError(f"executor.{name}={value} is out of range: accepted are whole numbers from {least} on")
        if memory_gb is not None and not 0 < memory_gb < float("inf"):
            raise ValueError(f"executor.memory_gb={memory_gb} is out of range: accepted are numbers above 0, and null")
        if images_per_job is not None and images_per_job < 1:
            raise ValueError(
                f"executor.images_per_job={images_per_job} is out of range: accepted are whole numbers from 1 on, and "
                "null"
            )
        self.cpus, self.gpus, self.memory_gb, self.parallel = cpus, gpus, memory_gb, parallel
        self.images_per_job = images_per_job

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
            tell_user(f"job {call.name} looks at the machine that the jobs are to run on")
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
        if not jobs:  # then nothing has to be read
            return []
        durations = Durations(results)
        lines, seconds, unknown = [], [], 0
        for number, job in enumerate(jobs, 1):
            took, unlike = durations.total(job.cells)
            known = f"about {duration(took)}" if unlike < len(job.cells) else "no cell like these is measured yet"
            cells, parts = _counted(len(job.cells), "cell"), len(job.parts(self.images_per_job))
            spread = f"; after {parts} jobs with up to {self.images_per_job} images each" if parts else ""
            line = f"job {number}: {cells} of {job.cells[0].describe_session()}; {self.needs(job)}; {known}{spread}"
            lines.append(line)
            seconds += [took / parts] * parts + [0.0] if parts else [took]
            unknown += unlike
        return [*lines, self._estimate(seconds, unknown)]

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
        waiting = self._steps(jobs, here)
        tell_user(f"{_counted(len(waiting), 'job')}, with logs in {here}")
        at_work: list[Step] = []
        with self.connected(), _cancelled(step.call for step in at_work if step.call):
            while waiting or at_work:
                ready = [step for step in waiting if step.ready]
                begun = ready if self.startable is None else ready[: self.startable - len(at_work)]
                if begun:
                    waiting = [step for step in waiting if step not in begun]
                    calls = self.start(run_file, [(str(s.file.path), self.needs(s.job)) for s in begun], here)
                    for step, call in zip(begun, calls, strict=True):
                        step.call = call
                    at_work += begun
                at_work[:] = [step for step in at_work if not self._ended(step, on_event)]
                if at_work:
                    time.sleep(self.poll_s)

    def _steps(self, jobs: list[SessionJob], here: Path) -> list[Step]:
        """Each session's job, behind those that measure parts of its images, with its file."""
        steps: list[Step] = []
        for job in jobs:
            first = len(steps)
            for one in (*job.parts(self.images_per_job), job):
                file = JobFile(here / f"{len(steps) + 1}.json")
                file.write(one)
                steps.append(Step(one, file, after=[] if one.is_part else steps[first:]))
        return steps

    def _ended(self, step: Step, on_event: Listener) -> bool:
        """Tell what is new of a job, and whether it has ended; what it has not settled is then a failure."""
        assert step.call, "the job has begun"
        step.over = step.call.done()
        for event in step.file.news():
            # The end of a part is none of the cell.
            if not (step.job.is_part and event["event"] in SETTLED):
                on_event(event)
        if step.over:
            self._settle(step.file, step.job, step.call, on_event)
        return step.over

    def _settle(self, file: JobFile, job: SessionJob, call: Call, on_event: Listener) -> None:
        try:
            call.result()
            how, patience = "ended without having measured the cell", LAG_S
        except Lost as lost:
            how, patience = str(lost), 0.0
        if job.is_part:  # the session's job does what is left
            if not patience:
                tell_user(f"the job {call.name} {how}; its log is {file.log}; what it left is measured after it")
            return
        asked = time.monotonic()
        while (left := job.without(file.settled).cells) and time.monotonic() - asked < patience:
            time.sleep(self.poll_s)
            for event in file.news():
                on_event(event)
        reason = printable(f"the job {call.name} {how}; its log is {file.log}")
        run = SessionRun(job.store, job.timeout_s, file.log, on_event)
        for cell in left:
            run.fail(cell, End("crashed", reason))


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
