"""From the store to one table in memory. Reads what ``docs/SCHEMA.md`` describes; changes nothing."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nystra_bench.errors import UserError
from nystra_bench.instruments.statistics import Ratio, interquartile_range, paired_ratio
from nystra_bench.sweep.cell import Cell, assignments, canonical_json
from nystra_bench.sweep.planfile import read_cells
from nystra_bench.sweep.store import Store

logger = logging.getLogger("nystra_bench")

# The words of the schema for the attentions that every timing session measures besides the method itself.
ORIGINAL, FUSED, FLOOR, RELEASED = "exact", "sdpa", "identity", "native"
REFERENCES = (ORIGINAL, FUSED, FLOOR)

SEVERITY = ("done", "skipped", "unstable", "missing", "failed", "oom", "timeout", "crashed")
"""Statuses from best to worst; the worst of a row's measures is the row's."""

GROUP = ["model", "window", "bias", "task", "task_parameters", "dataset", "device", "dtype"]
"""The columns within which rows are compared with one another."""

RATIOS = [f"speedup_vs_{reference}" for reference in (ORIGINAL, FUSED, RELEASED)]

COLUMNS = [
    *["model", "window", "bias", "task", "dataset", "attention", "landmarks", "iterations", "parameters"],
    *["bias_use", "mask_use"],
    *["device", "dtype", "images", "psnr", "ssim", "input_psnr", "input_ssim"],
    *["deviation_psnr", "deviation_ssim", "deviation_rms", "deviation_max", "native_deviation_psnr"],
    *["latency_ms", "latency_iqr_ms", "first_ms", "setup_ms", *RATIOS],
    *[f"{ratio}_{end}" for ratio in RATIOS for end in ("low", "high")],
    *["floor_ms", "noise_low", "noise_high", "peak_memory_mb", "gflops", "attention_gflops", "status", "reason"],
]
"""The columns of table.csv, in the order of the schema; further metrics and ``task_parameters`` follow them."""

BOUNDS = ["row", "layer", "head", "window", "matrix_error"]
"""The columns of ``ReportData.bounds`` that are always there."""

INTEGERS = ["window", "landmarks", "iterations", "images"]
TEXTS = ["model", "bias", "task", "dataset", "attention", "parameters", "bias_use", "mask_use"]
TEXTS += ["device", "dtype", "status", "reason"]


@dataclass(frozen=True)
class TimingSession:
    """What one timing session says about itself.

    Attributes:
        group: the values of ``GROUP`` that its rows share.
        rounds: how many rounds were timed.
        noise: exact attention against itself (A/A), the ratio that should be 1; None where it was not measured.
        medians: companion -> median latency in ms.
    """

    name: str
    group: dict[str, Any]
    rounds: int
    noise: Ratio | None
    medians: dict[str, float]


@dataclass(frozen=True)
class Panel:
    """The stored pictures of one group, for one image; files are read when they are asked for.

    Attributes:
        group: the values of ``GROUP`` that its rows share.
        outputs: index in ``ReportData.frame`` -> file with the output of that row.
        source: file with the degraded and the clean image; None where it is not stored.
    """

    group: dict[str, Any]
    image: str
    outputs: dict[int, Path]
    source: Path | None

    def input(self) -> np.ndarray | None:
        """The degraded image in the clean one's size, (H, W, 3) float32, about [0, 1]; None where it is not stored."""
        return _array(self.source, "input") if self.source else None

    def clean(self) -> np.ndarray | None:
        """The clean image, (H, W, 3) float32 in [0, 1]; None where it is not stored."""
        return _array(self.source, "clean") if self.source else None

    def output(self, row: int) -> np.ndarray:
        """The restored image of a row, (H, W, 3) float32, about [0, 1], not clipped."""
        return _array(self.outputs[row], "output")


@dataclass(frozen=True)
class ReportData:
    """All that tables and figures are made from.

    Attributes:
        frame: one row per configuration, columns ``COLUMNS`` first.
        details: same index; ``params`` (dict), ``settings`` (those without a column of their own that differ between
            rows of one attention, as text), ``session``, quartiles ``latency_q1``, ``latency_q3`` and ``native_ms``.
        images: one row per configuration, image and metric: ``row, image, height, width, metric, value``.
        cells: one row per planned measurement: ``row, key, measure, status, reason``.
        bounds: one row per configuration, layer, head and window: ``BOUNDS``, and the other spectral errors.
        sessions: the timing sessions.
        environments: the distinct environments of the results.
        descriptions: metric -> ``unit``, ``higher_is_better``, ``convention``.
        unavailable: metric -> why it could not be computed.
        pictures: row -> file of its output, and what finds the file of the input by the image's id; see ``panels``.
    """

    sweep: str
    frame: pd.DataFrame
    details: pd.DataFrame
    images: pd.DataFrame
    cells: pd.DataFrame
    bounds: pd.DataFrame
    sessions: list[TimingSession] = field(default_factory=list)
    environments: list[dict] = field(default_factory=list)
    descriptions: dict[str, dict] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    pictures: dict[int, tuple[Path, Callable[[str], Path]]] = field(default_factory=dict)

    def panels(self) -> list[Panel]:
        """One panel per group and stored image, in the order of the rows."""
        found: dict[str, Panel] = {}
        for row, (output, source_of) in self.pictures.items():
            with np.load(output, allow_pickle=False) as arrays:
                image = str(arrays["id"])
            group = {column: self.frame.at[row, column] for column in GROUP}
            source = source_of(image)
            panel = Panel(group, image, {}, source if source.is_file() else None)
            panel = found.setdefault(f"{list(group.values())} {image}", panel)
            panel.outputs[row] = output
        return list(found.values())


@dataclass
class _Row:
    """One configuration while it is being put together."""

    cell: dict
    uses: dict = field(default_factory=dict)
    """what the attention makes of ``bias`` and ``mask``"""
    measures: dict[str, dict] = field(default_factory=dict)
    """measure -> ``key, status, reason`` and, where there is one, the ``result``"""


def load(results: Path, sweep: str) -> ReportData:
    """Read the sweep's plan and what the store has of it.

    Raises:
        UserError: the sweep was never planned, or its plan cannot be read.
    """
    plan = _plan(results, sweep)
    store = Store(results / "store")
    rows = _rows(store, plan)
    return _assemble(store, sweep, rows, _unique_names(rows))


def _plan(results: Path, sweep: str) -> list[dict]:
    path = results / sweep / "cells.json"
    if not path.is_file():
        raise UserError(f"name={sweep}: there is no {path}; run or plan the sweep first")
    return read_cells(path)


def _rows(store: Store, plan: list[dict]) -> list[_Row]:
    """The cells of the plan put together to configurations, those of one group beside each other."""
    rows: dict[tuple[str, int], _Row] = {}
    for planned in plan:
        cell = planned["cell"]
        shared = _identity(cell)
        # The same measurement twice (on other hardware, say) is another row, never an overwritten one.
        turn = 0
        while cell["measure"] in rows.get((shared, turn), _Row(cell)).measures:
            turn += 1
        row = rows.setdefault((shared, turn), _Row(cell, planned.get("uses") or {}))
        row.measures[cell["measure"]] = _measured(store, planned)
    groups: dict[str, list[_Row]] = defaultdict(list)
    for row in rows.values():
        groups[_identity(row.cell, "attention")].append(row)
    return [row for group in groups.values() for row in group]


def _identity(cell: dict, *without: str) -> str:
    """What tells one configuration from another, as text."""
    return canonical_json({k: v for k, v in cell.items() if k not in ("schema", "measure", "settings", *without)})


def _measured(store: Store, planned: dict) -> dict:
    """``key, status, reason`` of a planned cell, and its ``result`` where the store has one."""
    outcome = {"key": planned["key"], "status": "skipped", "reason": planned.get("reason")}
    if planned["status"] == "skipped":
        return outcome
    if result := store.result(planned["key"]):
        return outcome | {"status": result["status"], "reason": result.get("reason"), "result": result}
    if failure := store.failure(planned["key"]):
        return outcome | {"status": failure["status"], "reason": failure.get("reason")}
    return outcome | {"status": "missing", "reason": "not yet measured"}


def _unique_names(rows: list[_Row]) -> dict[str, dict[str, str]]:
    """Names of models (by weights) and data sets (by data): their own, with a digest where two share one."""
    names: dict[str, dict[str, str]] = {}
    for kind, digest, name in (("model", "weights", "name"), ("task", "data", "dataset")):
        found = {str(row.cell[kind].get(digest)): row.cell[kind][name] for row in rows}
        shared = {label for label in found.values() if list(found.values()).count(label) > 1}
        names[kind] = {key: f"{label}@{key[:8]}" if label in shared else label for key, label in found.items()}
    return names


def _assemble(store: Store, sweep: str, rows: list[_Row], names: dict[str, dict[str, str]]) -> ReportData:
    records, details, images, cells, bounds = [], [], [], [], []
    sessions: dict[str, TimingSession] = {}
    environments: dict[str, dict] = {}
    described: list[tuple[str, dict[str, dict]]] = []
    unavailable: dict[str, str] = {}
    pictures: dict[int, tuple[Path, Callable[[str], Path]]] = {}
    for index, row in enumerate(rows):
        record = _configuration(row.cell, names) | _status(row.measures)
        record |= {f"{what}_use": row.uses.get(what) for what in ("bias", "mask")}
        detail: dict[str, Any] = {"params": row.cell["attention"]["params"]}
        for measure, outcome in row.measures.items():
            cells.append({"row": index, "measure": measure} | {k: outcome[k] for k in ("key", "status", "reason")})
            result = outcome.get("result")
            if result is None:
                continue
            value = result["value"]
            environments.setdefault(canonical_json(result.get("environment") or {}), result.get("environment") or {})
            if measure == "quality":
                record |= _quality(value)
                images += _per_image(index, value)
                described.append((row.cell["task"]["name"], value.get("describe", {})))
                unavailable |= value.get("unavailable", {})
                output = store.folder / outcome["key"] / "output.npz"
                if output.is_file():
                    pictures[index] = (output, partial(store.panel_images, Cell.of(row.cell)))
            elif measure == "latency":
                record |= _latency(value, row.cell)
                session = _session(result, {column: record[column] for column in GROUP})
                sessions.setdefault(session.name, session)
                detail |= _spread(value, row.cell) | {"session": session.name}
            elif measure == "bound":
                bounds += _bounds(index, value)
            else:
                record |= _memory(value)
        records.append(record)
        details.append(detail)
    return ReportData(
        sweep=sweep,
        frame=_frame(records),
        details=_details(details, rows),
        images=pd.DataFrame(images, columns=["row", "image", "height", "width", "metric", "value"]),
        cells=pd.DataFrame(cells, columns=["row", "key", "measure", "status", "reason"]),
        bounds=pd.DataFrame(bounds) if bounds else pd.DataFrame(columns=BOUNDS),
        sessions=list(sessions.values()),
        environments=[environment for environment in environments.values() if environment],
        descriptions=_descriptions(described),
        unavailable=unavailable,
        pictures=pictures,
    )


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


def _frame(records: list[dict]) -> pd.DataFrame:
    further = sorted({name for record in records for name in record} - {*COLUMNS, "task_parameters"})
    frame = pd.DataFrame(records, columns=[*COLUMNS, *further, "task_parameters"])
    for column in frame.columns:
        if column in INTEGERS:
            frame[column] = _integers(frame[column])
        elif column not in (*TEXTS, "task_parameters"):
            frame[column] = frame[column].astype(float)
    return frame


def _details(details: list[dict], rows: list[_Row]) -> pd.DataFrame:
    differing: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for row in rows:
        for name, value in row.cell["attention"]["params"].items():
            differing[row.cell["attention"]["name"]][name].add(str(value))
    for detail, row in zip(details, rows, strict=True):
        values = differing[row.cell["attention"]["name"]]
        hidden = {k: v for k, v in detail["params"].items() if len(values[k]) > 1 and k not in COLUMNS}
        detail["settings"] = assignments(hidden)
    return pd.DataFrame(details, columns=["params", "settings", "session", "latency_q1", "latency_q3", "native_ms"])


def _integers(values: pd.Series) -> pd.Series:
    """Whole numbers, empty where there is none; left as they are where a method gives something else."""
    try:
        return pd.to_numeric(values).astype("Int64")
    except (ValueError, TypeError):
        return values.astype(object)


def _configuration(cell: dict, names: dict[str, dict[str, str]]) -> dict:
    task, attention = cell["task"], cell["attention"]
    return {
        "model": names["model"][str(cell["model"].get("weights"))],
        "window": cell["window"],
        "bias": cell["position_bias"],
        "task": task["name"],
        "task_parameters": assignments(task.get("params", {})),
        "dataset": names["task"][str(task.get("data"))],
        "attention": attention["name"],
        "landmarks": attention["params"].get("landmarks"),
        "iterations": attention["params"].get("iterations"),
        "parameters": assignments(attention["params"]),
        "device": cell["device"],
        "dtype": cell["dtype"],
    }


def _status(measures: dict[str, dict]) -> dict:
    """The worst status, and the reasons of all measures that are not simply done."""
    worst = max((outcome["status"] for outcome in measures.values()), key=SEVERITY.index)
    reasons: dict[str, list[str]] = defaultdict(list)
    for measure, outcome in measures.items():
        if outcome["status"] != "done":
            reasons[outcome["reason"] or outcome["status"]].append(measure)
    everywhere = len(reasons) == 1 and len(next(iter(reasons.values()))) == len(measures)
    said = [reason if everywhere else f"{', '.join(which)}: {reason}" for reason, which in reasons.items()]
    return {"status": worst, "reason": "; ".join(said) or None}


def _number(value: Any) -> float:
    """A float of what JSON can hold: numbers, the strings ``inf``, ``-inf``, ``nan``, or null."""
    return float("nan") if value is None else float(value)


def _quality(value: dict) -> dict:
    """Means over the images, and the numbers of the whole set; the degraded input's are called ``input_…``."""
    collected: dict[str, list[float]] = defaultdict(list)
    for image in value["images"]:
        for name, number in _metrics(image):
            collected[name].append(_number(number))
    of_set = {name: _number(number) for name, number in _metrics(value.get("set", {}))}
    return {"images": len(value["images"])} | {name: _mean(numbers) for name, numbers in collected.items()} | of_set


def _mean(numbers: list[float]) -> float:
    """The mean; infinite where a number is, ``nan`` where one is or where infinities of both signs meet."""
    with np.errstate(invalid="ignore"):
        return float(np.mean(numbers))


def _metrics(part: dict) -> list[tuple[str, Any]]:
    """Names of columns and numbers, of one image or of the set."""
    own = list(part.get("metrics", {}).items())
    return own + [(f"input_{name}", number) for name, number in part.get("input", {}).items()]


def _per_image(row: int, value: dict) -> list[dict]:
    return [
        {"row": row, "image": image["id"], "height": image.get("height"), "width": image.get("width")}
        | {"metric": name, "value": _number(number)}
        for image in value["images"]
        for name, number in _metrics(image)
    ]


def _companions(value: dict, cell: dict) -> dict[str, list[float]]:
    """The session's reference samples in ms; in a session of the released model, exact attention is that model."""
    companions = dict(value.get("companions", {}))
    if RELEASED not in companions and cell["position_bias"] == RELEASED and ORIGINAL in companions:
        companions[RELEASED] = companions[ORIGINAL]
    return companions


def _ratio(numerator: list[float] | None, denominator: list[float] | None) -> Ratio | None:
    """The paired ratio; None where one of the two was not measured, or not in the same rounds."""
    if not numerator or not denominator:
        return None
    try:
        return paired_ratio(numerator, denominator)
    except ValueError as error:
        logger.warning("a ratio of latencies is left out: %s", error)
        return None


def _noise(companions: dict[str, list[float]]) -> Ratio | None:
    """A/A: the reference that was timed twice (exact attention, where it runs), against itself."""
    twice = next((name for name in REFERENCES if f"{name}_again" in companions), ORIGINAL)
    return _ratio(companions.get(twice), companions.get(f"{twice}_again"))


def _latency(value: dict, cell: dict) -> dict:
    samples, companions = value["samples_ms"], _companions(value, cell)
    record = {"latency_ms": float(np.median(samples)), "latency_iqr_ms": interquartile_range(samples)}
    record |= {name: _number(value.get(name)) for name in ("first_ms", "setup_ms")}
    for column, reference in zip(RATIOS, (ORIGINAL, FUSED, RELEASED), strict=True):
        if ratio := _ratio(companions.get(reference), samples):
            record |= {column: ratio.median, f"{column}_low": ratio.low, f"{column}_high": ratio.high}
    if noise := _noise(companions):
        record |= {"noise_low": noise.low, "noise_high": noise.high}
    if companions.get(FLOOR):
        record["floor_ms"] = float(np.median(companions[FLOOR]))
    return record


def _spread(value: dict, cell: dict) -> dict:
    low, high = np.quantile(value["samples_ms"], [0.25, 0.75])
    released = _companions(value, cell).get(RELEASED)
    native = float(np.median(released)) if released else float("nan")
    return {"latency_q1": float(low), "latency_q3": float(high), "native_ms": native}


def _session(result: dict, group: dict) -> TimingSession:
    companions = result["value"].get("companions", {})
    return TimingSession(
        name=f"{result.get('session')} {canonical_json(group)}",
        group=group,
        rounds=len(result["value"]["samples_ms"]),
        noise=_noise(companions),
        medians={name: float(np.median(samples)) for name, samples in companions.items() if samples},
    )


def _memory(value: dict) -> dict:
    names = {"peak_memory_mb": "peak_mb", "gflops": "gflops", "attention_gflops": "attention_gflops"}
    return {column: _number(value.get(name)) for column, name in names.items()}


def _bounds(row: int, value: dict) -> list[dict]:
    """One record for each layer, head and window that was looked at."""
    return [
        {"row": row, "layer": layer["layer"], "head": head, "window": window}
        | {name: _number(numbers[head][place]) for name, numbers in layer["values"].items()}
        for layer in value["layers"]
        for head in range(len(layer["values"]["matrix_error"]))
        for place, window in enumerate(layer["windows"])
    ]


def _array(path: Path, name: str) -> np.ndarray:
    with np.load(path, allow_pickle=False) as arrays:
        return arrays[name].astype(np.float32)
