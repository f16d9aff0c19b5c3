"""Sessions: the missing cells that one worker process measures, and the parent's side of running it."""

from __future__ import annotations

import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
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


@dataclass
class Session:
    """Cells that share model, task, window, bias mode, device and dtype: what may be compared with one another."""

    planned: list[Planned] = field(default_factory=list)

    def request(self, common: dict) -> dict:
        """What the worker is told, as plain data."""
        first = self.planned[0]
        c = first.combination
        return {
            **common,
            "model": _config(c.model),
            "task": _config(c.task),
            "window": first.window,
            "position_bias": c.position_bias,
            "device": c.device.config,
            "dtype": c.dtype,
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
        key = (_text(c.model), _text(c.task), p.window, c.position_bias, c.device.text, c.dtype)
        sessions.setdefault(key, Session()).planned.append(p)
    return list(sessions.values())


def _config(option: Option | None) -> dict | None:
    return option.config if option else None


def _text(option: Option | None) -> str | None:
    return option.text if option else None


class SessionRun:
    """Runs a session in worker processes: one, and another for the cells that a dying one leaves.

    Args:
        common: what all sessions share (see ``worker.Worker``).
        timeout_s: seconds for which a worker may say nothing, besides the timings of which it tells how long they take.
        on_event: is told each event, for the progress display; while a timing runs there are none.
    """

    def __init__(self, store: Store, common: dict, timeout_s: float, log_file: Path, on_event: Callable[[dict], None]):
        self.store, self.common, self.timeout_s, self.log_file = store, common, timeout_s, log_file
        self.on_event = on_event

    def run(self, session: Session) -> None:
        left = {p.cell.key: p for p in session.planned}
        while left:
            ended, current = self._one_worker(Session(list(left.values())), left)
            if ended is None:
                break
            blamed = [left.pop(key).cell for key in current or list(left)]
            for cell in blamed:
                self._fail(cell, *ended)
        for p in left.values():
            self._fail(p.cell, "crashed", "the worker ended without measuring the cell")

    def _fail(self, cell: Cell, status: str, reason: str) -> None:
        log.error("%s: %s: %s", cell.describe(), status, reason)
        self.store.fail(cell, status, reason)
        self.on_event({"event": "failed", "key": cell.key, "status": status, "reason": reason})

    def _one_worker(self, session: Session, left: dict[str, Planned]) -> tuple[tuple[str, str] | None, list[str]]:
        """Run a worker to its end; takes what it has done out of ``left``.

        Returns:
            How it died (status, reason), or None where it ended well; and the keys of the cells it was at.
        """
        current: list[str] = []
        with tempfile.TemporaryDirectory() as folder, self.log_file.open("ab") as errors:
            request = Path(folder) / "session.json"
            request.write_text(json.dumps(session.request(self.common)))
            command = [sys.executable, "-m", "nystra_bench.sweep.worker", str(request)]
            # The worker ends itself when its standard input closes: also when this process is killed.
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
            with subprocess.Popen(command, **pipes, env={**KEEP_MEMORY, **child_environment()}) as worker:
                try:
                    for event in _events(worker, self.timeout_s):
                        if event["event"] == "start":
                            current = [key for key in event["keys"] if key in left]
                        elif event["event"] in ("done", "failed"):
                            left.pop(event["key"], None)
                            current = [key for key in current if key != event["key"]]
                        self.on_event(event)
                except TimeoutError:
                    return ("timeout", f"no sign of life for {self.timeout_s:g} s (timeout_s)"), current
                finally:
                    worker.kill()  # does nothing where it has ended
        return _how_it_ended(worker.returncode, self.log_file), current


def _events(worker: subprocess.Popen, timeout_s: float) -> Iterator[dict]:
    """The worker's events until it ends. Waits without using the processor.

    Raises:
        TimeoutError: nothing came for ``timeout_s`` seconds, and as long again as the worker said it would be silent.
    """
    buffer, patience = b"", timeout_s
    with selectors.DefaultSelector() as selector:
        selector.register(worker.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(min(patience, LONGEST_WAIT)):
                raise TimeoutError
            chunk = os.read(worker.stdout.fileno(), 65536)
            if not chunk:
                _wait(worker, timeout_s)
                return
            *lines, buffer = (buffer + chunk).split(b"\n")
            for event in map(json.loads, lines):
                patience = timeout_s + event.get("silent_s", 0)
                yield event


def _wait(worker: subprocess.Popen, timeout_s: float) -> None:
    try:
        worker.wait(min(timeout_s, LONGEST_WAIT))
    except subprocess.TimeoutExpired as error:
        raise TimeoutError from error


def _how_it_ended(code: int, log_file: Path) -> tuple[str, str] | None:
    if code == 0:
        return None
    if code < 0:
        name = signal.Signals(-code).name
        hint = ", as the system does when memory runs out" if -code == signal.SIGKILL else ""
        return "crashed", f"the worker was ended by {name}{hint}"
    return "crashed", f"the worker ended with exit code {code}; its traceback is in {log_file}"
