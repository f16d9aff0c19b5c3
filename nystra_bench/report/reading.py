"""From the store to frames in memory. Reads what ``docs/SCHEMA.md`` describes; changes nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from nystra_bench.configuration import Catalogue, configs_folder
from nystra_bench.errors import UserError
from nystra_bench.measure.base import Measurement, measurement
from nystra_bench.report.frame import SEVERITY, ReportData
from nystra_bench.sweep.cell import assignments, canonical_json
from nystra_bench.sweep.execution import EXECUTION
from nystra_bench.sweep.grid import DEFAULTS
from nystra_bench.sweep.planfile import read_cells
from nystra_bench.sweep.store import Store
from nystra_bench.words import FUSED, IDENTITY, LAST, MACHINE, ORIGINAL, OUTCOME

INTEGERS = ["window", "landmarks", "iterations", "images"]
TEXTS = ["model", "bias", "task", "dataset", "attention", "parameters", "bias_use", "mask_use", "kernel"]
TEXTS += ["device", "dtype", MACHINE, "status", "reason", "task_parameters", "measure_parameters"]
INTEGERS += [name for name, axis in EXECUTION.items() if not axis.words]
TEXTS += [name for name, axis in EXECUTION.items() if axis.words]


@dataclass
class _Row:
    """One configuration while it is being put together."""

    cell: dict
    execution: dict = field(default_factory=dict)
    """how the model was run, where not as usual, and on which hardware, where some cost of it is of one"""
    uses: dict = field(default_factory=dict)
    """what the attention makes of ``bias`` and ``mask``, and whether it is ``exact``"""
    measures: dict[str, dict] = field(default_factory=dict)
    """measure -> ``key, cell, status, reason`` and, where there is one, the ``result``"""


def load(results: Path, sweep: str, catalogue: Catalogue | None = None) -> ReportData:
    """Read the sweep's plan and what the store has of it.

    Args:
        catalogue: where the sweep's measurements are found; by default those of the project.

    Raises:
        UserError: the sweep was never planned, its plan cannot be read, or a measurement of it is not found.
    """
    catalogue = catalogue or Catalogue([configs_folder()])
    plan = _plan(results, sweep)
    store = Store(results / "store")
    known = _Measurements(catalogue)
    rows = _rows(store, plan, known)
    return _Assembly(store, sweep, known, _unique_names(rows)).of(rows)


class _Measurements:
    """The measurements of a sweep, each made with the parameters that its cells say."""

    def __init__(self, catalogue: Catalogue):
        self.catalogue = catalogue
        self._made: dict[str, Measurement] = {}

    def of(self, cell: Mapping) -> Measurement:
        said = cell["measure"]
        key = canonical_json(said)
        if key not in self._made:
            if said["name"] not in self.catalogue.names("measure"):
                raise UserError(
                    f"the sweep holds cells of measure={said['name']}, whose file measure/{said['name']}.yaml is not "
                    "found: accepted is plugins=[DIR] with the folder that has it"
                )
            config = self.catalogue.option("measure", said["name"])
            self._made[key] = measurement(said["name"], {**config, **said["params"]})
        return self._made[key]

    def usual(self) -> list[Measurement]:
        """Those whose columns a table always has."""
        return [measurement(name, self.catalogue.option("measure", name)) for name in DEFAULTS["measure"]]


def _plan(results: Path, sweep: str) -> list[dict]:
    path = results / sweep / "cells.json"
    if not path.is_file():
        raise UserError(f"name={sweep}: there is no {path}; run or plan the sweep first")
    return read_cells(path)


def _rows(store: Store, plan: list[dict], known: _Measurements) -> list[_Row]:
    """The cells of the plan put together to configurations, those of one group beside each other."""
    rows: dict[tuple[str, str, int], _Row] = {}
    ways = _ways(plan, known)
    for planned in plan:
        cell = planned["cell"]
        name, shared, obeyed = cell["measure"]["name"], _identity(cell), _obeyed(cell, known)
        outcome = _measured(store, planned, known)
        for way in ways[shared].values():
            if _restricted(way, obeyed) != _way(cell):
                continue
            # The same measurement twice (with other parameters, of other code) is another row, never written over.
            place, turn = canonical_json(way), 0
            while name in rows.get((shared, place, turn), _Row(cell)).measures:
                turn += 1
            row = rows.setdefault((shared, place, turn), _Row(cell, way, planned.get("uses") or {}))
            row.measures[name] = outcome
    groups: dict[tuple[str, str], list[_Row]] = defaultdict(list)
    for row in rows.values():
        groups[_identity(row.cell, "attention"), canonical_json(_restricted(row.execution, EXECUTION))].append(row)
    return [row for group in groups.values() for row in group]


def _ways(plan: list[dict], known: _Measurements) -> dict[str, dict[str, dict]]:
    """In which ways the model of each configuration was run, and on which hardware, each a row.

    A measurement that does not obey an axis (quality and the threads, or the hardware) is part of every row that agrees
    in those that it obeys; it makes a row of its own only where there is no other.
    """
    found: dict[str, list[tuple[set[str], dict]]] = defaultdict(list)
    for planned in plan:
        cell = planned["cell"]
        found[_identity(cell)].append((_obeyed(cell, known), _way(cell)))
    ways: dict[str, dict[str, dict]] = {}
    for shared, told in found.items():
        own = [
            way
            for obeyed, way in told
            if not any(obeyed < other and _restricted(further, obeyed) == way for other, further in told)
        ]
        ways[shared] = {canonical_json(way): way for way in own}
    return ways


def _way(cell: Mapping) -> dict:
    """How a cell's model was run, where not as usual, and the hardware that its numbers are of, if they are of one."""
    hardware = cell.get("settings", {}).get(MACHINE)
    return cell.get("execution", {}) | ({MACHINE: hardware} if hardware else {})


def _obeyed(cell: Mapping, known: _Measurements) -> set[str]:
    """What of that decides a cell's numbers."""
    return {*known.of(cell).execution, *({MACHINE} & {*_way(cell)})}


def _restricted(way: Mapping, obeyed: Iterable[str]) -> dict:
    return {name: value for name, value in way.items() if name in obeyed}


def _identity(cell: dict, *without: str) -> str:
    """What tells one configuration from another, as text, whatever way it was run."""
    left_out = ("schema", "measure", "settings", "execution", *without)
    return canonical_json({k: v for k, v in cell.items() if k not in left_out})


def _measured(store: Store, planned: dict, known: _Measurements) -> dict:
    """``key, cell, status, reason`` of a planned cell, and its ``result`` where the store has one."""
    outcome = {"key": planned["key"], "cell": planned["cell"], "parts": planned.get("parts") or {}}
    made = known.of(planned["cell"])
    status, reason, result = store.outcome(planned["key"], lambda value: made.lacking(value, outcome["parts"]))
    if planned["status"] == "skipped" and result is None:  # another machine may have what this one lacked
        return outcome | {"status": "skipped", "reason": planned.get("reason")}
    if status == "missing":
        reason = reason or "not yet measured"
    return outcome | {"status": status, "reason": reason, "result": result}


def _unique_names(rows: list[_Row]) -> dict[str, dict[str, str]]:
    """Names of models (by weights) and data sets (by data): their own, with a digest where two share one."""
    names: dict[str, dict[str, str]] = {}
    for kind, digest, name in (("model", "weights", "name"), ("task", "data", "dataset")):
        found = {_digest(row.cell, kind, digest): row.cell[kind][name] for row in rows if kind in row.cell}
        shared = {label for label in found.values() if list(found.values()).count(label) > 1}
        names[kind] = {key: f"{label}@{key[:8]}" if label in shared else label for key, label in found.items()}
    return names


def _digest(cell: Mapping, kind: str, digest: str) -> str:
    """What tells a model or a data set from others; one that is not on the machine has its name alone."""
    return str(cell[kind].get(digest) or f"absent {cell[kind]['name']}")


PIECE = 50_000
"""Records that a frame is made of at a time: 15 MB as dictionaries, where all of a large sweep are gigabytes."""


class _LongForm:
    """The long form of a measurement, while it is being put together."""

    def __init__(self) -> None:
        self._pieces: list[pd.DataFrame] = []
        self._records: list[dict] = []

    def add(self, row: int, records: list[dict]) -> None:
        self._records += [{"row": row} | record for record in records]
        if len(self._records) >= PIECE:
            self._pieces.append(pd.DataFrame(self._records))
            self._records = []

    def frame(self, columns: Iterable[str]) -> pd.DataFrame:
        """All of it; with these columns where there is nothing."""
        rest = [pd.DataFrame(self._records)] if self._records else []
        pieces = [*self._pieces, *rest] or [pd.DataFrame(columns=["row", *columns])]
        return pieces[0] if len(pieces) == 1 else pd.concat(pieces, ignore_index=True)


class _Assembly:
    """Joins what the measurements give of each row."""

    def __init__(self, store: Store, sweep: str, known: _Measurements, names: dict[str, dict[str, str]]):
        self.store, self.sweep, self.known, self.names = store, sweep, known, names
        self.records: list[dict] = []
        self.details: list[dict] = []
        self.cells: list[dict] = []
        self.long: dict[str, _LongForm] = {}
        self.measurements: dict[str, Measurement] = {}
        self.environments: dict[str, dict] = {}
        self.described: list[tuple[str, dict[str, dict]]] = []
        self.unavailable: dict[str, str] = {}

    def of(self, rows: list[_Row]) -> ReportData:
        for index, row in enumerate(rows):
            self._add(index, row)
        always = list({type(m): m for m in (*self.known.usual(), *self.measurements.values())}.values())
        executed = self._executed(rows)
        names = [*IDENTITY, *executed, *(name for made in always for name in made.names), *OUTCOME]
        frame = _frame(self.records, names)
        return ReportData(
            sweep=self.sweep,
            store=self.store,
            frame=frame,
            names=names,
            columns={column.name: column for made in always for column in made.columns},
            details=self._details(rows, names),
            cells=pd.DataFrame(self.cells, columns=["row", "key", "measure", "status", "reason"]),
            long={name: long.frame(self.measurements[name].row_columns) for name, long in self.long.items()},
            contents=[row.cell for row in rows],
            measurements=self.measurements,
            environments=[environment for environment in self.environments.values() if environment],
            descriptions=_descriptions(self.described),
            unavailable={name: why for name, why in self.unavailable.items() if name not in frame},
        )

    def _add(self, index: int, row: _Row) -> None:
        record = _configuration(row.cell, self.names) | _status(row.measures)
        record |= {f"{what}_use": row.uses.get(what) for what in ("bias", "mask")}
        exact = row.uses.get("exact", record["attention"] in (ORIGINAL, FUSED))
        detail: dict[str, Any] = {"params": _params(row.cell), "exact": bool(exact), "kept": row.uses.get("kept")}
        for name, outcome in row.measures.items():
            self.cells.append({"row": index, "measure": name} | {k: outcome[k] for k in ("key", "status", "reason")})
            long = self.long.setdefault(name, _LongForm())
            made = self.measurements.setdefault(name, self.known.of(outcome["cell"]))
            if result := outcome.get("result"):
                value = made.only(result["value"], _usable(made, result["value"], outcome["parts"]))
                record |= made.scalars(value, outcome["cell"]) | (result.get("attention") or {})
                detail |= made.details(value, outcome["cell"]) | {f"{name}_session": result.get("session")}
                long.add(index, made.rows(value, outcome["cell"]))
                self.described.append((str(record["task"]), made.describe(value)))
                self.unavailable |= made.unavailable(value)
                environment = result.get("environment") or {}
                self.environments.setdefault(canonical_json(environment), environment)
        told = {name: assignments(outcome["cell"]["measure"]["params"]) for name, outcome in row.measures.items()}
        record["measure_parameters"] = "; ".join(f"{name}: {params}" for name, params in told.items() if params)
        self.records.append(record)
        self.details.append(detail)

    def _executed(self, rows: list[_Row]) -> list[str]:
        """The axes of how models were run that are not as usual in some row; every row then says which it is.

        And the hardware, where costs are of several.
        """
        names = [name for name in EXECUTION if any(name in row.execution for row in rows)]
        for record, row in zip(self.records, rows, strict=True):
            cells = [outcome["cell"] for outcome in row.measures.values()]
            for name in names:
                costs = (cell["settings"].get(name) for cell in cells)  # they tell the machine's threads
                usual = next((said for said in costs if said is not None), EXECUTION[name].default)
                record[name] = row.execution.get(name, usual)
        machines = [row.execution.get(MACHINE) for row in rows]
        if len({*machines} - {None}) > 1:
            for record, machine in zip(self.records, machines, strict=True):
                record[MACHINE] = machine
            names.append(MACHINE)
        return names

    def _details(self, rows: list[_Row], names: list[str]) -> pd.DataFrame:
        """With ``settings``, the parameters beyond those with a column that differ between rows of one attention."""
        differing: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
        for row in rows:
            for name, value in _params(row.cell).items():
                differing[row.cell["attention"]["name"]][name].add(str(value))
        for detail, row in zip(self.details, rows, strict=True):
            params = detail["params"]
            values = differing[row.cell["attention"]["name"]] if params else {}
            hidden = {k: v for k, v in params.items() if len(values[k]) > 1 and k not in names}
            detail["settings"] = assignments(hidden)
        frame = pd.DataFrame(self.details)
        return frame.reindex(columns=list(dict.fromkeys([*DETAILS, *frame.columns])))


DETAILS = ["params", "settings", "exact", "kept"]
DETAILS += ["latency_session", "latency_q1", "latency_q3", "native_ms", "latency_input"]
"""The details that are always there."""


def _params(cell: Mapping) -> dict:
    return cell["attention"]["params"] if "attention" in cell else {}


def _usable(made: Measurement, value: Mapping, parts: Mapping[str, dict]) -> set[str] | None:
    """The parts of a value that the plan asks for and that are of its identity; None where all of it is."""
    return set(parts) - set(made.lacking(value, parts)) if parts else None


def _descriptions(described: list[tuple[str, dict[str, dict]]]) -> dict[str, dict]:
    """One description for each metric, from those of the results of a task; where conventions differ, all of them."""
    merged: dict[str, dict] = {}
    conventions: dict[str, dict[str, dict]] = defaultdict(lambda: defaultdict(dict))
    for task, metrics in described:
        merged |= metrics
        for name, about in metrics.items():
            conventions[name][str(about.get("convention"))][task] = None  # a set in the order of the rows
    for name, tasks_of in conventions.items():
        if len(tasks_of) > 1:
            said = "; ".join(f"{', '.join(tasks)}: {convention}" for convention, tasks in tasks_of.items())
            merged[name] = merged[name] | {"convention": said}
    return merged


def _frame(records: list[dict], names: list[str]) -> pd.DataFrame:
    further = sorted({name for record in records for name in record} - {*names, *LAST})
    frame = pd.DataFrame(records, columns=[*names, *further, *LAST])
    for column in frame.columns:
        if column in INTEGERS:
            frame[column] = _integers(frame[column])
        elif column not in TEXTS:
            frame[column] = _numbers(frame[column])
    return frame


def _integers(values: pd.Series) -> pd.Series:
    """Whole numbers, empty where there is none; left as they are where a method gives something else."""
    try:
        return pd.to_numeric(values).astype("Int64")
    except (ValueError, TypeError):
        return values.astype(object)


def _numbers(values: pd.Series) -> pd.Series:
    """Floats, nan where there is none; left as they are where a measurement gives text."""
    try:
        return values.astype(float)
    except (ValueError, TypeError):
        return values.astype(object)


def _configuration(cell: dict, names: dict[str, dict[str, str]]) -> dict:
    """What was measured; empty is what the measurement did not need."""
    task, attention, params = cell.get("task"), cell.get("attention"), _params(cell)
    return {
        "model": names["model"][_digest(cell, "model", "weights")] if "model" in cell else None,
        "window": cell.get("window"),
        "bias": cell.get("position_bias"),
        "task": task and task["name"],
        "task_parameters": assignments(task.get("params", {})) if task else None,
        "dataset": task and names["task"][_digest(cell, "task", "data")],
        "attention": attention and attention["name"],
        "landmarks": params.get("landmarks"),
        "iterations": params.get("iterations"),
        "parameters": assignments(params) if attention else None,
        "device": cell["device"],
        "dtype": cell["dtype"],
    }


def _status(measures: dict[str, dict]) -> dict:
    """The worst status, and the reasons of all measures that are not simply done, or done with something to say."""
    worst = max((outcome["status"] for outcome in measures.values()), key=SEVERITY.index)
    reasons: dict[str, list[str]] = defaultdict(list)
    for measure, outcome in measures.items():
        if outcome["status"] != "done" or outcome["reason"]:
            reasons[outcome["reason"] or outcome["status"]].append(measure)
    everywhere = len(reasons) == 1 and len(next(iter(reasons.values()))) == len(measures)
    said = [reason if everywhere else f"{', '.join(which)}: {reason}" for reason, which in reasons.items()]
    return {"status": worst, "reason": "; ".join(said) or None}
