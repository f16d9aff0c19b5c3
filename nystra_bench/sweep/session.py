"""Sessions: the missing cells that one worker process measures, and the parent's side of running it."""

from __future__ import annotations

import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from nystra_bench.instruments.environment import KEEP_MEMORY
from nystra_bench.sweep.cell import Cell
from nystra_bench.sweep.grid import Option
from nystra_bench.sweep.inspection import child_environment
from nystra_bench.sweep.plan import Planned
from nystra_bench.sweep.store import Store

log = logging.getLogger("nystra_bench")

LONGEST_WAIT = 1e6
"""Seconds; the system's calls refuse to wait longer."""

LOOK_AGAIN_S = 1.0
"""Seconds after which a worker's end is looked for where the system does not tell of it."""

SLICES = 10
"""So many times in its patience the parent looks whether it was stopped itself; more often would disturb timings."""

PIPE = 1 << 20
"""Bytes that a pipe holds at most."""


@dataclass(frozen=True)
class End:
    """How a worker ended, as the status and the reason of the cells that it was at."""

    status: str
    reason: str


@dataclass
class Session:
    """Cells that share model, task, window, bias mode, device, dtype and execution: what may be compared."""

    planned: list[Planned] = field(default_factory=list)

    def request(self, common: dict) -> dict:
        """What the worker is told, as plain data."""
        first = self.planned[0]
        c = first.combination
        return {
            **common,
            "model_name": c.model.name if c.model else None,
            "model": _config(c.model),
            "task": _config(c.task),
            "window": first.window,
            "position_bias": c.position_bias,
            "device": c.device.config,
            "dtype": c.dtype,
            "execution": dict(c.execution),
            "cells": [
                {
                    "cell": p.cell.text,
                    "measure": p.combination.measure.config,
                    "attention": _config(p.combination.attention),
                    "parts": p.parts,
                }
                for p in self.planned
            ],
        }


def group(planned: Iterable[Planned]) -> list[Session]:
    """Sessions for these cells, in the order in which they come."""
    sessions: dict[tuple, Session] = {}
    for p in planned:
        c = p.combination
        key = (_text(c.model), _text(c.task), p.window, c.position_bias, c.device.text, c.dtype, c.execution)
        sessions.setdefault(key, Session()).planned.append(p)
    return list(sessions.values())


def _config(option: Option | None) -> dict | None:
    return option.config if option else None


def _text(option: Option | None) -> str | None:
    return option.text if option else None


class SessionRun:
    """Runs a session in worker processes: one, and another for the cells that a dying one leaves.

    Args:
        timeout_s: seconds for which a worker may say nothing, besides the timings of which it tells how long they take.
        on_event: is told each event, for the progress display; while a timing runs there are none.
        apart: whether signals to this process's group, as clusters send them before they end a job, do not reach the
            workers: they would be taken for the workers' own ends. They end with this process in any case.
    """

    def __init__(
        self,
        store: Store,
        timeout_s: float,
        log_file: Path,
        on_event: Callable[[dict], None],
        apart: bool = False,
    ):
        self.store, self.timeout_s, self.log_file = store, timeout_s, log_file
        self.on_event, self.apart = on_event, apart

    def run(self, request: dict) -> None:
        """Measure the cells of a request (``Session.request``), or have a failure of each.

        A worker's end is put down to the cells that it was at, and another one goes on with the rest. One that dies
        before it is at any has another try; where that one dies, too, no cell can be measured.
        """
        left = {Cell(entry["cell"]).key: entry for entry in request["cells"]}
        tried_again = False
        while left:
            before = len(left)
            ended, current = self._one_worker(request | {"cells": list(left.values())}, left)
            moved = current or len(left) < before
            blamed = current
            if not moved and (tried_again or ended.status == "timeout"):
                blamed = list(left)
            tried_again = not moved
            for key in blamed:
                self.fail(Cell(left.pop(key)["cell"]), ended)

    def fail(self, cell: Cell, ended: End) -> None:
        """Put an end that is no error of the cell's own down to it."""
        log.error("%s: %s: %s", cell.describe(), ended.status, ended.reason)
        self.store.fail(cell, ended.status, ended.reason)
        self.on_event({"event": "failed", "key": cell.key, "status": ended.status, "reason": ended.reason})

    def _one_worker(self, request: dict, left: dict[str, dict]) -> tuple[End, list[str]]:
        """Run a worker to its end; takes what it has done out of ``left``.

        Returns:
            What to say of the cells that it was at when it ended, and their keys.
        """
        current: list[str] = []
        with self.store.scratch() as folder, self.log_file.open("ab") as errors:
            told = folder / "session.json"
            told.write_text(json.dumps(request))
            command = [sys.executable, "-m", "nystra_bench.sweep.worker", str(told)]
            # The worker ends itself when its standard input closes: also when this process is killed.
            environment = {**KEEP_MEMORY, **child_environment()}
            pipe = subprocess.PIPE
            with subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=errors, env=environment, start_new_session=self.apart
            ) as worker:
                try:
                    for event in events(worker, self.timeout_s):
                        if event["event"] == "start":
                            current = [key for key in event["keys"] if key in left]
                        elif event["event"] in ("done", "failed", "kept"):
                            left.pop(event["key"], None)
                            current = [key for key in current if key != event["key"]]
                        self.on_event(event)
                except TimeoutError:
                    return End("timeout", f"no sign of life for {self.timeout_s:g} s (timeout_s)"), current
                finally:
                    worker.kill()  # does nothing where it has ended
        return _how_it_ended(worker.returncode, self.log_file), current


def events(worker: subprocess.Popen, timeout_s: float) -> Iterator[dict]:
    """The worker's events until it ends. Waits without using the processor.

    Time for which this process was stopped (Ctrl-Z, a machine that slept) does not count: the worker was, too.

    Raises:
        TimeoutError: nothing came for ``timeout_s`` seconds, and as long again as the worker said it would be silent.
    """
    buffer, patience = b"", timeout_s
    assert worker.stdout is not None
    os.set_blocking(worker.stdout.fileno(), False)
    with selectors.DefaultSelector() as selector, _watched_end(worker, selector) as longest_wait:
        selector.register(worker.stdout, selectors.EVENT_READ)
        heard = time.monotonic()
        while True:
            # The end is asked for first: what the worker wrote before it is then in the pipe, and no end of the pipe
            # is waited for, which a grandchild that inherited it may hold open.
            ended = worker.poll() is not None
            chunk = _read(worker, selector)
            *lines, buffer = (buffer + chunk).split(b"\n")
            for event in filter(None, map(event_of, lines)):
                patience = timeout_s + event.get("silent_s", 0)
                yield event
            if ended:
                return
            if chunk:
                heard = time.monotonic()
            remaining = heard + patience - time.monotonic()
            if remaining <= 0:
                raise TimeoutError
            asked, since = min(remaining, longest_wait, patience / SLICES), time.monotonic()
            selector.select(asked)
            heard += max(0.0, time.monotonic() - since - asked)


def event_of(line: bytes) -> dict | None:
    """The event that a line tells; None where it is none, but the output of a process that the worker has forked."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict) and "event" in found:
        return found
    log.warning("the worker wrote what is no event: %.200r", line)
    return None


def _read(worker: subprocess.Popen, selector: selectors.BaseSelector) -> bytes:
    """All that is in the pipe now; once it is closed there is nothing to wait for in it."""
    assert worker.stdout is not None
    try:
        chunk = os.read(worker.stdout.fileno(), PIPE)
    except BlockingIOError:
        return b""
    if not chunk and worker.stdout in selector.get_map():
        selector.unregister(worker.stdout)
    return chunk


@contextmanager
def _watched_end(worker: subprocess.Popen, selector: selectors.BaseSelector) -> Iterator[float]:
    """Let the selector wake up at the process's end; gives the seconds after which one has to look for it otherwise."""
    try:
        descriptor = os.pidfd_open(worker.pid)
    except (AttributeError, OSError):  # not Linux, or an old one
        yield LOOK_AGAIN_S
        return
    try:
        selector.register(descriptor, selectors.EVENT_READ)
        yield LONGEST_WAIT
    finally:
        os.close(descriptor)


def _how_it_ended(code: int, log_file: Path) -> End:
    if code == 0:
        return End("crashed", "the worker ended without measuring the cell")
    if code < 0:
        name = signal.Signals(-code).name
        hint = ", as the system does when memory runs out" if -code == signal.SIGKILL else ""
        return End("crashed", f"the worker was ended by {name}{hint}")
    return End("crashed", f"the worker ended with exit code {code}; its traceback is in {log_file}")
