"""The report's sentences, each made from the data and claiming no more than it holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from nystra_bench.report.columns import number
from nystra_bench.report.frame import GROUP, SEVERITY, ReportData, TimingSession
from nystra_bench.words import FLOOR, FUSED, ORIGINAL, REFERENCES, RELEASED

ORIGINALS = (
    "Three originals: “native” is the model as released; “interpolate” is exact attention in another window with the "
    "position bias stretched and the shift mask kept; “drop” is exact attention in another window without position "
    "bias and shift mask, the original of the PnP-Nystra paper. A deviation compares with exact attention in the same "
    "window and bias mode; a native deviation with the model as released."
)
TIMING = (
    "All attentions of a session run in one process, once in each round and in random order, after a warm-up; the "
    "latency is the median over rounds. A speed-up is the median of the ratios within a round, with a bootstrap 95 % "
    "interval, and is written ≈1 where that interval contains 1. Two references are always timed: exact (separate "
    "operations) and sdpa (PyTorch's fused exact attention); identity (no attention at all) is the floor that no "
    "replacement can beat, and native is the model as released."
)


def group_label(group: dict | pd.Series, columns: list[str] = GROUP) -> str:
    """The values of a group in words: ``swinir_w8, window 32, bias drop, denoise (sigma=25), bundled, cpu float32``."""
    words = {name: str(group[name]) for name in columns}
    for name in ("window", "bias"):
        if name in words:
            words[name] = f"{name} {words[name]}"
    parameters = words.pop("task_parameters", "")
    if parameters and "task" in words:
        words["task"] += f" ({parameters})"
    if {"device", "dtype"} <= words.keys():
        words["device"] += f" {words.pop('dtype')}"
    return ", ".join(words.values())


def shared_columns(data: ReportData) -> list[str]:
    """The columns of ``GROUP`` in which all rows agree."""
    return [name for name in GROUP if data.frame[name].nunique(dropna=False) == 1]


def shared(data: ReportData) -> str:
    """What all rows have in common, once and for all; empty where there is nothing."""
    columns = shared_columns(data)
    return f"All of this is on {group_label(data.frame.iloc[0], columns)}." if columns else ""


def short_label(data: ReportData, group: dict | pd.Series) -> str:
    """What tells a group from the others of the sweep; empty where it is the only one."""
    columns = shared_columns(data)
    return group_label(group, [name for name in GROUP if name not in columns])


def method_label(data: ReportData, row: int) -> str:
    """An attention with those parameters that tell it from its fellows."""
    record = data.frame.loc[row]
    words = [f"{int(record[name])} {name}" for name in ("landmarks", "iterations") if not pd.isna(record[name])]
    words += filter(None, [data.details.at[row, "settings"]])
    return str(record["attention"]) + (f" ({', '.join(words)})" if words else "")


def noise(data: ReportData, session: TimingSession) -> str:
    """What the A/A comparison of a session says."""
    where = ", ".join(filter(None, [short_label(data, session.group), count(session.rounds, "round")]))
    if session.noise is None:
        return f"{where}: exact attention was not timed twice, so the noise floor is unknown."
    low, high = number(session.noise.low, 3), number(session.noise.high, 3)
    ratio = number(session.noise.median, 3)
    said = f"{where}: exact attention against itself gives {ratio} (95 % interval {low}–{high})"
    if session.noise.contains(1):
        return f"{said}; differences of this size are noise."
    return f"{said}, which excludes 1: the machine was not steady, and these timings are not to be trusted."


def noise_lines(data: ReportData) -> list[str]:
    return [noise(data, session) for session in data.sessions] or ["No timing session: the noise floor is unknown."]


def conventions(data: ReportData) -> list[str]:
    """One sentence for each metric: its unit and convention, or why there is none."""
    lines = []
    for name, about in sorted(data.descriptions.items()):
        unit = f" ({about['unit']})" if about.get("unit") else ""
        direction = "higher is better" if about.get("higher_is_better") else "lower is better"
        lines.append(f"{name}{unit}: {about.get('convention') or 'no convention stated'}; {direction}.")
    return lines + [f"{name}: n/a, {reason}." for name, reason in sorted(data.unavailable.items())]


def overview(data: ReportData) -> str:
    """How much was planned, and what became of it."""
    counts = data.frame["status"].value_counts()
    statuses = ", ".join(f"{counts[status]} {status}" for status in SEVERITY if status in counts)
    groups = data.frame[GROUP].drop_duplicates()
    return (
        f"{len(data.frame)} configurations from {len(data.cells)} measurements ({statuses or 'none'}): "
        f"{count(data.frame['attention'].nunique(), 'attention')} in {count(len(groups), 'setting')} of model, window, "
        f"position bias, task, data, device and precision. {shared(data)}"
    )


def count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


@dataclass(frozen=True)
class Finding:
    """What one group says: which group (empty where it is the only one), and the sentences."""

    where: str
    said: str


def findings(data: ReportData) -> list[Finding]:
    """For each group: its fastest replacement with its deviation, and what the exact and native models take."""
    return [Finding(short_label(data, group), _finding(data, rows)) for group, rows in groups(data.frame)]


def groups(frame: pd.DataFrame, columns: list[str] = GROUP) -> Iterator[tuple[dict, pd.DataFrame]]:
    """The rows that agree in ``columns``, groups in the order of the table."""
    for values, rows in frame.groupby(columns, sort=False, dropna=False):
        yield dict(zip(columns, values, strict=True)), rows


def _finding(data: ReportData, rows: pd.DataFrame) -> str:
    replacements = rows[~rows["attention"].isin(REFERENCES)]
    timed = replacements[replacements["latency_ms"].notna() & replacements["deviation_psnr"].notna()]
    if timed.empty:
        return "No replacement has both a latency and a deviation yet."
    fastest = timed["latency_ms"].idxmin()
    row = timed.loc[fastest]
    quality = f", its PSNR {number(row['psnr'], 2)} dB{_psnr_of_original(rows)}" if not pd.isna(row["psnr"]) else ""
    unstable = " (unstable)" if row["status"] == "unstable" else ""
    return (
        f"The fastest replacement is {method_label(data, fastest)} with {number(row['latency_ms'], 1)} ms{unstable}, "
        f"{_speed(row, ORIGINAL)} and {_speed(row, FUSED)}; its deviation from the exact output is "
        f"{number(row['deviation_psnr'], 2)} dB{quality}."
        f"{_closest(data, timed, fastest)}{_without_attention(rows, timed)}{_native(data, timed, fastest)}"
    )


def _psnr_of_original(rows: pd.DataFrame) -> str:
    original = rows[(rows["attention"] == ORIGINAL) & rows["psnr"].notna()]
    return "" if original.empty else f" (exact attention: {number(original['psnr'].iloc[0], 2)} dB)"


def _speed(row: pd.Series, reference: str) -> str:
    """How a row compares with a reference, with the interval."""
    value, low, high = (row[f"speedup_vs_{reference}{end}"] for end in ("", "_low", "_high"))
    if pd.isna(value):
        return f"not compared with {reference}"
    interval = f"(95 % interval {number(low, 2)}–{number(high, 2)})"
    if low <= 1 <= high:
        return f"not distinguishable from {reference} in speed {interval}"
    return f"{number(value, 2)} times as fast as {reference} {interval}"


def _closest(data: ReportData, timed: pd.DataFrame, fastest: int) -> str:
    closest = timed["deviation_psnr"].idxmax()
    if closest == fastest:
        return " It is also the closest to the exact output." if len(timed) > 1 else ""
    row = timed.loc[closest]
    return (
        f" The closest is {method_label(data, closest)}: {number(row['deviation_psnr'], 2)} dB "
        f"at {number(row['latency_ms'], 1)} ms."
    )


def _without_attention(rows: pd.DataFrame, timed: pd.DataFrame) -> str:
    """How many replacements are worse than none: what a table of speed-ups alone would hide."""
    floor = rows[(rows["attention"] == FLOOR) & rows["latency_ms"].notna() & rows["deviation_psnr"].notna()]
    if floor.empty:
        return ""
    deviation = floor["deviation_psnr"].iloc[0]
    worse = int((timed["deviation_psnr"] < deviation).sum())
    which = "none of the replacements is" if not worse else f"{worse} of {count(len(timed), 'replacement')} are"
    which = "every replacement is" if worse == len(timed) else which
    return (
        f" Without any attention (identity) the deviation is {number(deviation, 2)} dB "
        f"at {number(floor['latency_ms'].iloc[0], 1)} ms: {which} farther from the original than that."
    )


def _native(data: ReportData, timed: pd.DataFrame, fastest: int) -> str:
    native, row = data.details.at[fastest, "native_ms"], timed.loc[fastest]
    if pd.isna(native):
        return ""
    said = f" The native model takes {number(native, 1)} ms in the same session"
    if row[f"speedup_vs_{RELEASED}_high"] < 1:
        return f"{said}: less than any replacement here."
    if row[f"speedup_vs_{RELEASED}_low"] <= 1:
        return f"{said}: not distinguishable from the fastest replacement."
    return f"{said}."
