"""What an executor is: it runs the sessions of a sweep somewhere. The store is all that sessions share.

An executor is one subclass and one file ``configs/executor/<name>.yaml`` that names it in ``_target_``; the file's
other entries are the constructor's arguments, given by ``executor.<name>=``. The engine knows none by name.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from nystra_bench.configuration import instantiate
from nystra_bench.errors import UserError
from nystra_bench.sweep import inspection
from nystra_bench.sweep.cell import Cell
from nystra_bench.sweep.session import SessionRun
from nystra_bench.sweep.store import Store
from nystra_bench.text import printable

LOG = "nystra_bench.log"
"""The file in a sweep's folder that has the log of its last run."""

Listener = Callable[[dict], None]
"""Is told each event of a session (``sweep/progress.py`` has them)."""


def tell_user(said: str) -> None:
    """A line for people beside what is measured."""
    print(f"nystra_bench: {printable(said)}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class SessionJob:
    """A session as plain data: all that is needed to run it, anywhere that sees its files.

    Attributes:
        request: what the worker is told (``Session.request``).
        timeout_s: seconds for which the worker may say nothing, besides the timings whose length it tells.
        quiet: whether it holds timings, beside which nothing else may run on the device.
        images: of the cells that can be spread over jobs (``Measurement.by_image``), by key, how many each has.
    """

    request: dict
    timeout_s: float
    quiet: bool
    images: dict[str, int] = field(default_factory=dict)

    @property
    def device(self) -> str:
        """The device's kind, ``cpu`` or ``cuda``."""
        return self.request["device"]["_type_"]

    @property
    def cells(self) -> list[Cell]:
        return [Cell(entry["cell"]) for entry in self.request["cells"]]

    @property
    def store(self) -> Store:
        return Store(Path(self.request["store"]))

    def without(self, keys: Collection[str]) -> SessionJob:
        """The same for the cells whose keys are not among these."""
        left = [entry for entry in self.request["cells"] if Cell(entry["cell"]).key not in keys]
        return replace(self, request=self.request | {"cells": left})

    @property
    def is_part(self) -> bool:
        """Whether it measures some of the images alone, which another job puts together."""
        return "images" in self.request

    def parts(self, most: int | None) -> list[SessionJob]:
        """Jobs that each measure so many images, at most, of the cells that can be spread, and keep what they find.

        They may run at a time. They settle no cell: this job, after them, puts together what they kept, and does what
        they left. There are none where one would do, or where ``most`` is None.
        """
        count = max(self.images.values(), default=0)
        if most is None or count <= most:
            return []
        cells = [entry for entry in self.request["cells"] if Cell(entry["cell"]).key in self.images]
        spans = [[first, min(first + most, count)] for first in range(0, count, most)]
        requests = (self.request | {"cells": cells, "images": span} for span in spans)
        return [replace(self, request=request, quiet=False, images={}) for request in requests]

    def run(self, log_file: Path, on_event: Listener, apart: bool = False) -> None:
        """Measure the cells in this process's children; each has a result or a failure in the store afterwards.

        Args:
            apart: whether signals to this process's group are kept from these (``SessionRun``).
        """
        SessionRun(self.store, self.timeout_s, log_file, on_event, apart).run(self.request)


class Executor:
    """Base class of executors. ``run`` has to be written, the rest may be."""

    def run(self, jobs: list[SessionJob], folder: Path, on_event: Listener) -> None:
        """Run all sessions to their ends; afterwards each cell has a result or a failure in the store.

        Timings are disturbed by nothing: a job that is ``quiet`` has its device to itself, by ``locks.device_lock`` on
        the machine that it runs on.

        Args:
            folder: that of the sweep, ``results/<sweep>``, for logs and for what the executor keeps.
            on_event: is told what happens, from one thread.

        Raises:
            UserError: nothing can be run, with the reason.
        """
        raise NotImplementedError

    def available(self) -> str | None:
        """Why it cannot be used here, as a clause that says what to do; None where it can."""
        return None

    def look(self, request: dict, folder: Path) -> dict:
        """Facts about options (``inspection.answer``), as the machines tell them that the sessions will run on."""
        return inspection.look(request)

    def plan(self, jobs: list[SessionJob], results: Iterable[dict]) -> list[str]:
        """What ``mode=plan`` shows beside the cells: a line for each job with its resources, and an estimate.

        Args:
            results: what is measured of the sweep (docs/SCHEMA.md), read from the store as it is gone through.
        """
        return []


def executor(name: str, config: Mapping) -> Executor:
    """The executor of an option ``executor/<name>.yaml``.

    Raises:
        UserError: it cannot be made, or is no executor.
    """
    made = instantiate(config)
    if not isinstance(made, Executor):
        raise UserError(
            f"executor={name}: {config['_target_']} is no executor: accepted are subclasses of "
            "nystra_bench.sweep.executors.base.Executor"
        )
    return made
