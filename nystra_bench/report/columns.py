"""What the columns mean, and how their numbers are written for people. table.csv holds the raw numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from nystra_bench.measure.latency import RATIOS
from nystra_bench.report.column import Column
from nystra_bench.report.frame import ReportData
from nystra_bench.sweep.execution import EXECUTION
from nystra_bench.words import MACHINE


@dataclass(frozen=True)
class TableCell:
    """One cell, ready to be escaped and shown.

    Attributes:
        text: what is shown; an en dash where there is nothing.
        value: what it is sorted by; None sorts last in both directions.
        kind: ``text``, ``number``, ``unsure`` (a ratio not distinguishable from 1), ``empty``, or ``status-…``.
        hint: why it looks as it does; may be empty.
    """

    text: str
    value: float | str | None
    kind: str = "text"
    hint: str = ""


@dataclass(frozen=True)
class ReadableTable:
    """A readable table: only the columns that say something, and what all rows share in a sentence."""

    columns: list[Column]
    rows: list[list[TableCell]]
    shared: str = ""


_KNOWN = [
    Column("model", "model", "The restoration model, by the name of its configuration."),
    Column("window", "window (tokens)", "Side of the attention window, or height×width.", 0),
    Column("bias", "bias", "Position bias: native (window as released), interpolate (other window, bias table "
           "stretched, shift mask kept) or drop (bias and shift mask left out)."),
    Column("task", "task", "The restoration task."),
    Column("task_parameters", "task parameters", "The parameters of the degradation."),
    Column("dataset", "data", "Where the clean images come from."),
    Column("attention", "attention", "The method put in the place of the model's attention."),
    Column("landmarks", "landmarks", "Number of landmarks; empty where the method takes none.", 0),
    Column("iterations", "iterations", "Iterations of the pseudo-inverse; empty where the method takes none.", 0),
    Column("parameters", "parameters", "All parameters of the attention."),
    Column("bias_use", "method's bias", "What the method does with the position bias: used, folded (as features of a "
           "low rank) or ignored."),
    Column("mask_use", "method's mask", "What the method does with the mask of shifted windows: used or ignored."),
    Column("settings", "settings", "Parameters of the attention, beyond landmarks and iterations, that differ here."),
    Column("device", "device", "Where it was measured."),
    Column("dtype", "dtype", "Precision of the computation."),
    *(axis.column for axis in EXECUTION.values()),
    Column(MACHINE, "hardware", "The processor or GPU that the costs are of; quality is the same on all."),
    Column("compile_ms", "compiling (ms)", "Time for tracing and compiling the model, or for recording its CUDA graph, "
           "before the first call; it is part of the set-up.", 0),
    Column("kernel", "kernel", "Which kernel computed the attention, where there is a choice: one of PyTorch's, "
           "fused (ours) or eager (separate operations; in brackets why)."),
    Column("measure_parameters", "measured", "Parameters of the measurements that have any."),
    Column("psnr_lost", "PSNR lost (dB)", "PSNR on RGB of exact attention in the same model, window and bias mode, "
           "less the method's; below 0 the method is better.", 2),
    Column("ssim_lost", "SSIM lost", "The same of SSIM.", 4),
    Column("status", "status", "The worst of the row's measures: done, skipped, unstable, nonfinite (NaN or "
           "infinite outputs), missing or a failure."),
    Column("reason", "reason", "Why a row is not done."),
]  # fmt: skip
_BY_NAME = {column.name: column for column in _KNOWN}

_DIGITS = {"dB": 2}
_AGAINST = {
    "deviation_": "Distance from the output of exact attention in the same model, window and bias mode.",
    "native_": "Distance from the output of the model as released.",
    "input_": "Of the degraded input itself.",
}
_TITLES = {"psnr": "PSNR", "ssim": "SSIM", "lpips": "LPIPS", "rms": "RMS", "max": "maximum",
           "fid": "FID", "kid": "KID", "rgb": "RGB"}  # fmt: skip


def column(name: str, data: ReportData) -> Column:
    """The column of a name: one of every table, of a measurement, or a metric as it describes itself."""
    if known := _BY_NAME.get(name) or data.columns.get(name):
        return known
    described = data.descriptions.get(name) or data.descriptions.get(name.removeprefix("input_")) or {}
    return metric_column(name, described)


def metric_column(name: str, described: Mapping[str, Any]) -> Column:
    """The column of a metric; ``described`` has its ``unit``, ``higher_is_better`` and ``convention``, or is empty."""
    unit = str(described.get("unit") or "")
    header = " ".join(_TITLES.get(word, word) for word in name.split("_"))
    meaning = [text for prefix, text in _AGAINST.items() if name.startswith(prefix)]
    meaning += [f"Convention: {described['convention']}."] if described.get("convention") else []
    if "higher_is_better" in described:
        meaning.append("Higher is better." if described["higher_is_better"] else "Lower is better.")
    header += f" ({unit})" if unit not in ("", "1") else ""
    return Column(name, header, " ".join(meaning), _DIGITS.get(unit, 4))


def plain(value: Any) -> str:
    """A value of the frame as text; empty for none."""
    return "" if pd.isna(value) else str(value)


def number(value: float, digits: int) -> str:
    """Fixed decimals; an infinity as its sign, a number too small for them in scientific notation."""
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value and abs(value) < 0.5 * 10**-digits:
        return ("−" if value < 0 else "") + f"{abs(value):.1e}"
    return f"{value:.{digits}f}".replace("-", "−")


EMPTY = TableCell("–", None, "empty")


def table_cell(row: pd.Series, column: Column) -> TableCell:
    """The cell of a row of the frame."""
    value = row.get(column.name)
    if value is None or pd.isna(value) or value == "":
        return EMPTY
    if column.name == "status":
        return TableCell(str(value), str(value), f"status-{value}", plain(row.get("reason")))
    if column.name in RATIOS:
        return ratio(row, column)
    if column.digits is None or isinstance(value, str):
        return TableCell(str(value), str(value))
    text = number(float(value), column.digits)
    if column.spread and not pd.isna(row.get(column.spread)):
        text += f" ({number(row[column.spread], column.digits)})"
    hint = "Identical to what it is compared with." if math.isinf(value) and "deviation" in column.name else ""
    return TableCell(text, float(value), "number", hint)


def ratio(row: pd.Series, column: Column) -> TableCell:
    """A speed-up with its interval; hidden without a deviation beside it, and ≈1 where it cannot be told from 1."""
    if row.filter(like="deviation_").isna().all():
        return replace(EMPTY, hint="Not shown: no deviation was measured, and a speed-up means nothing without one.")
    return interval_cell(row, column)


def interval_cell(row: pd.Series, column: Column) -> TableCell:
    """A ratio of latencies with its interval; ≈1 where it cannot be told from 1."""
    value, low, high = (float(row[column.name + end]) for end in ("", "_low", "_high"))
    digits = column.digits or 0
    if math.isnan(low):
        return TableCell(f"{number(value, digits)} (1 round)", value, "number", "Of one round: there is no interval.")
    interval = f"{number(low, digits)}–{number(high, digits)}"
    if low <= 1 <= high:
        return TableCell(f"≈1 ({interval})", value, "unsure", "Not distinguishable from 1: the interval contains it.")
    text = f"{number(value, digits)} ({interval})"
    return TableCell(text, value, "number", "In brackets the interval of the median over rounds.")


IDENTIFYING = ["model", "window", "bias", "task", "task_parameters", "dataset", "device", "dtype", "images", *EXECUTION]


MOST_ROWS = 2_000
"""Rows that a readable table shows: a page with more is slow to open, and nobody reads them. The CSV file has all."""


def readable_table(data: ReportData, frame: pd.DataFrame, names: list[str]) -> ReadableTable:
    """The readable form of a frame: columns without any content are left out, constant ones said once.

    Of very many rows it has the first.
    """
    frame = frame.assign(settings=data.details["settings"])
    columns = [column(name, data) for name in names if name in frame and _says_something(frame[name])]
    same = [c for c in columns if len(frame) > 1 and frame[c.name].nunique(dropna=False) == 1]
    constant = [c for c in same if c.name in IDENTIFYING]
    shared = "; ".join(f"{c.header} {plain(frame[c.name].iloc[0])}" for c in constant)
    columns = [c for c in columns if c not in constant]
    rows = [[table_cell(row, c) for c in columns] for _, row in frame.head(MOST_ROWS).iterrows()]
    left_out = f"The first {MOST_ROWS} of {len(frame)} rows; the CSV file has all." if len(frame) > MOST_ROWS else ""
    return ReadableTable(columns, rows, " ".join(filter(None, [left_out, shared and f"In all rows: {shared}."])))


def _says_something(values: pd.Series) -> bool:
    return bool((values.notna() & (values.astype(object) != "")).any())
