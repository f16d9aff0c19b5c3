"""A sweep from its configuration to its report: plan, measure what is missing, draw."""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from pathlib import Path

from omegaconf import OmegaConf

from nystra_bench.configuration import Catalogue
from nystra_bench.errors import UserError, unknown
from nystra_bench.measure.base import check_columns
from nystra_bench.sweep.cell import SCHEMA
from nystra_bench.sweep.execution import EXECUTION
from nystra_bench.sweep.executors.base import LOG, SessionJob, executor
from nystra_bench.sweep.files import unwritable
from nystra_bench.sweep.grid import Combination, Option, Overrides, expand, listed
from nystra_bench.sweep.plan import Planned, Run, plan, request_of
from nystra_bench.sweep.planfile import of_other_machines, read_cells
from nystra_bench.sweep.progress import Progress
from nystra_bench.sweep.session import group
from nystra_bench.sweep.store import FAILURES, MEASURED, Store, write_atomically
from nystra_bench.text import printable
from nystra_bench.words import IDENTITY, LAST, MACHINE, OUTCOME, REFERENCES

log = logging.getLogger("nystra_bench")

RETRIED = (*MEASURED[1:], *FAILURES[1:])


class Engine:
    """One sweep.

    Args:
        config: the composed settings (``configs/config.yaml``).
        catalogue: the options of all choices.
        overrides: what the user gave for axes and parameters.
    """

    def __init__(self, config: dict, catalogue: Catalogue, overrides: Overrides):
        self.config, self.catalogue, self.overrides = config, catalogue, overrides
        self.results = _absolute(config["results"])
        self.name = str(config["name"] or config["sweep_name"])
        self.folder = self.results / self.name
        self.store = Store(self.results / "store")
        self.retried = listed(config["retry"])
        for status in self.retried:
            if status not in RETRIED:
                raise unknown("retry", status, RETRIED)
        self.references = _references(config["references"], catalogue)
        self.metrics = catalogue.choose("metrics", "metric", config["metrics"])
        if not self.metrics:
            raise UserError(f"metrics=[] holds no metric: accepted are all, {', '.join(catalogue.names('metric'))}")
        self.notes: list[str] = []  # what the plan says of the images
        self.tiling = config["tile"] and {"tile": config["tile"], "overlap": config["tile_overlap"]}
        ((self.executor_name, option),) = config["executor"].items()
        self.executor = executor(self.executor_name, option)
        self.plugins = {f"{k}s": catalogue.choose(f"{k}s", k, config[f"{k}s"]) for k in ("table", "figure")}

    # ----------------------------------------------------------------- the three modes

    def run(self) -> int:
        """Plan, measure what is missing, report."""
        planned = self.plan()
        self._check_writable()
        with self.store.lock():
            self.start_log()
            self._say_what_is_replaced(planned)
            self.write_cells(planned)
            statuses = [self.status(p)[0] for p in planned]
            missing = self.missing(planned, statuses)
            print(f"{self.name}: {_summary(statuses)}; {len(missing)} to measure{self._takes(missing)}", flush=True)
            self.measure(missing)
        return self._report()

    def show_plan(self) -> int:
        """List the cells with status and reason."""
        planned = self.plan()
        self._say_what_is_replaced(planned)
        known = [self.status(p) for p in planned]
        for p, (status, reason) in zip(planned, known, strict=True):
            print(f"{status:9} {p.cell.describe()}{f'  ({reason})' if reason else ''}")
        statuses = [status for status, _ in known]
        missing = self.missing(planned, statuses)
        results = filter(None, (self.store.result(p.cell.key) for p in planned))
        for line in self.executor.plan(self.jobs(missing), results):
            print(line)
        print(f"{self.name}: {_summary(statuses)}; {len(missing)} to measure{self._takes(missing)}")
        return 0

    def _takes(self, missing: list[Planned]) -> str:
        """How long the whole sweep takes, where it says so and something is left of it."""
        told = self.config["sweep"].get("takes")
        return f"; all of it takes {told}" if told and missing else ""

    def report_again(self) -> int:
        """Draw again from the store; measures nothing.

        The cells are those of the last run, on whatever machine it was, unless the command line asks for others.
        """
        asked = self.overrides.axes or self.overrides.parameters
        planned = self.plan() if asked or not self.cells_file.is_file() else None
        self._check_writable()
        self.start_log()
        if planned is not None:
            self._say_what_is_replaced(planned)
            self.write_cells(planned)
        return self._report()

    # ----------------------------------------------------------------- planning

    def plan(self) -> list[Planned]:
        combinations = expand(self.config["sweep"]["blocks"], self.overrides, self.catalogue)
        self._check_columns(combinations)
        plugins, tf32 = tuple(self.config["plugins"]), self.config["tf32"]
        run = Run(self.metrics, self.references, self.config["timing"], plugins, self.tiling, tf32)
        if reason := self.executor.available():
            raise UserError(f"executor={self.executor_name} cannot be used: {reason}")
        facts = self.executor.look(request_of(combinations, run), self.folder)
        self.notes = list(dict.fromkeys(note for task in facts["tasks"].values() for note in task["notes"]))
        for note in self.notes:
            print(f"nystra_bench: {note}", file=sys.stderr)
        return plan(combinations, facts, self.catalogue, self.overrides, run)

    def _check_columns(self, combinations: list[Combination]) -> None:
        """Each column of table.csv belongs to one measurement, or to one metric."""
        measurements = {c.measure.name: c.measurement for c in combinations}
        given = {name for made in measurements.values() for name in made.names}
        taken = {name: f"metrics={name}" for name in self.metrics if name not in given}
        everywhere = [*IDENTITY, *EXECUTION, MACHINE, *OUTCOME, *LAST]
        check_columns(measurements, taken | dict.fromkeys(everywhere, "every table"))

    def _check_writable(self) -> None:
        """Before anything is measured: hours of it would be lost at the end otherwise."""
        for folder in (self.folder, self.store.folder):
            if reason := unwritable(folder):
                raise UserError(
                    f"results={self.config['results']} cannot be written ({reason}): accepted is another results=FOLDER"
                )

    def status(self, p: Planned) -> tuple[str, str | None]:
        """Of a cell, with its reason; a result that lacks what is asked for now is not done."""
        if p.reason:
            return "skipped", p.reason
        return self.store.outcome(p.cell.key, lambda value: p.combination.measurement.lacking(value, p.parts))[:2]

    def missing(self, planned: list[Planned], statuses: list[str]) -> list[Planned]:
        """The cells to measure now, of those with these statuses."""
        again = {"missing", *self.retried}
        return [p for p, status in zip(planned, statuses, strict=True) if status in again]

    @property
    def cells_file(self) -> Path:
        return self.folder / "cells.json"

    def _say_what_is_replaced(self, planned: list[Planned]) -> None:
        """A narrower run without a name of its own takes the place of the sweep's report: that is said before."""
        narrower = self.overrides.axes or self.overrides.parameters
        if self.config["name"] is not None or not narrower or not self.cells_file.is_file():
            return
        there = {cell["key"] for cell in read_cells(self.cells_file)}
        kept = {cell["key"] for cell in self._elsewhere(planned)}
        lost = len(there - kept - {p.cell.key for p in planned})
        if lost:
            print(
                f"nystra_bench: the report in {printable(str(self.folder))} has {len(there)} cells; {lost} of them are "
                "not in this run, whose report takes its place; name=FOLDER keeps both, and what was measured is kept "
                "in any case",
                file=sys.stderr,
            )

    def _elsewhere(self, planned: list[Planned]) -> list[dict]:
        """What other machines that share the results folder have planned of this sweep, which stays in its report."""
        found = of_other_machines(self.cells_file, [p.cell.content for p in planned])
        devices = {p.cell.content["device"] for p in planned} if "device" in self.overrides.axes else None
        return [cell for cell in found if devices is None or cell["cell"]["device"] in devices]

    def write_cells(self, planned: list[Planned]) -> None:
        cells = [
            {"key": p.cell.key, "cell": p.cell.content, "uses": p.uses, "parts": p.parts}
            | {"status": p.status, "reason": p.reason}
            for p in planned
        ]
        others = self._elsewhere(planned)
        if others:
            print(
                f"{self.name}: {len(others)} cells of other machines stay in its report; name=FOLDER, or removing "
                f"{printable(str(self.cells_file))} before, leaves them out"
            )
        content = {"schema": SCHEMA, "sweep": self.name, "cells": [*cells, *others]}
        write_atomically(self.cells_file, json.dumps(content, indent=1))

    # ----------------------------------------------------------------- measuring

    def measure(self, missing: list[Planned]) -> None:
        """Measure these cells; each has a result or a failure in the store afterwards."""
        if not missing:
            return
        cells = [planned.cell for planned in missing]
        names = {cell.key: cell.describe() for cell in cells}
        progress = Progress(names, kinds={cell.key: cell.measure for cell in cells})
        self.executor.run(self.jobs(missing), self.folder, progress)
        progress.close()

    def jobs(self, missing: list[Planned]) -> list[SessionJob]:
        """The sessions that measure these cells, as executors take them."""
        common = {
            "store": str(self.store.folder),
            "sys_path": self.config["plugins"],
            "metrics": self.metrics,
            "references": {role: option.config for role, option in self.references.items()},
            "reference_names": {role: option.name for role, option in self.references.items()},
            "timing": self.config["timing"],
            "tiling": self.tiling,
            "seed": self.config["seed"],
            "tf32": self.config["tf32"],
        }
        return [
            SessionJob(
                session.request(common),
                timeout_s=self.config["timeout_s"],
                quiet=any(p.combination.measurement.quiet for p in session.planned),
                images={p.cell.key: p.images for p in session.planned if p.combination.measurement.by_image},
            )
            for session in group(missing)
        ]

    @property
    def log_file(self) -> Path:
        return self.folder / LOG

    def start_log(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(self.log_file, encoding="utf-8", errors="backslashreplace")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.handlers = [handler]
        log.setLevel(logging.INFO)
        log.propagate = False
        log.info("command: %s", " ".join(sys.argv))
        for note in self.notes:
            log.warning("%s", note)

    # ----------------------------------------------------------------- reporting

    def _report(self) -> int:
        from nystra_bench.report.build import build_report

        settings = {key: value for key, value in self.config.items() if key != "sweep_name"}
        given = {"axes": self.overrides.axes, "parameters": self.overrides.parameters}
        told = OmegaConf.to_yaml({**settings, "given": given})
        report = build_report(self.results, self.name, self.plugins, told, self.catalogue)
        failed = [status for status in report.statuses if status in FAILURES]
        print(f"{self.name}: {_summary(report.statuses)}\n{report.page}")
        if failed:
            print(f"{len(failed)} cells failed: the reasons are in the table, tracebacks in {self.log_file}")
        return 2 if failed else 0


def _absolute(results: object) -> Path:
    try:
        return Path(str(results)).expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:  # links in circles, no such home
        raise UserError(f"results={results} is no folder ({error}): accepted is a path") from error


def _references(wanted: object, catalogue: Catalogue) -> dict[str, Option]:
    """What stands for exact, sdpa and identity in a run."""
    if not isinstance(wanted, dict) or set(wanted) != set(REFERENCES):
        raise UserError(f"references={wanted} does not fit: accepted are {', '.join(REFERENCES)}, each with a name")
    known = catalogue.names("attention")
    for role, name in wanted.items():
        if not isinstance(name, str) or name not in known:
            raise unknown(f"references.{role}", name, known)
    return {role: Option.of(name, catalogue.option("attention", name)) for role, name in wanted.items()}


def _summary(statuses: list[str]) -> str:
    return f"{len(statuses)} cells: " + ", ".join(f"{n} {status}" for status, n in Counter(statuses).items())
