"""The report's sentences, each made from the data and claiming no more than it holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from nystra_bench.instruments.statistics import ENOUGH, LEVEL, interval_rank
from nystra_bench.report.columns import number
from nystra_bench.report.frame import GROUP, HOW, SEVERITY, ReportData, TimingSession, within
from nystra_bench.words import FLOOR, FUSED, ORIGINAL, RELEASED, count

ORIGINALS = (
    "Three originals: “native” is the model as released; “interpolate” is exact attention in another window with the "
    "position bias stretched and the shift mask kept; “drop” is exact attention in another window without position "
    "bias and shift mask, the original of the PnP-Nystra paper. A deviation compares with exact attention in the same "
    "window and bias mode; a native deviation with the model as released."
)
TIMING = (
    "All attentions of a session run in one process, once in each round and in random order, after a warm-up; the "
    "latency is the median over rounds. A speed-up is the median of the ratios within a round, and is written ≈1 where "
    "its interval contains 1. The interval reaches from one of the ratios to another, as far from the smallest as from "
    f"the largest, and holds the true median with a probability of at least {100 * LEVEL:g} %, whatever the "
    f"distribution (sign test); of fewer than {ENOUGH} rounds it is the range, whose level is lower and told. Two "
    "references are always timed: exact (separate operations) and sdpa (PyTorch's fused exact attention); identity (no "
    "attention at all) is the floor that no replacement can beat, and native is the model as released."
)


def originals(data: ReportData) -> str:
    """What is meant by the originals; empty where no row has a model."""
    return ORIGINALS if data.frame["bias"].notna().any() else ""


def group_label(group: dict | pd.Series, columns: list[str] = GROUP) -> str:
    """The values of a group in words: ``swinir_w8, window 32, bias drop, denoise (sigma=25), bundled, cpu float32``.

    What its measurements do not need is left out. How the model was run is there where it is a column.
    """
    return _label(group, within(columns, group))


def _label(group: dict | pd.Series, columns: list[str]) -> str:
    """The same of exactly these columns."""
    told = {name: group[name] for name in columns if not pd.isna(group[name])}
    words = {name: str(value) for name, value in told.items() if name not in HOW}
    for name in ("window", "bias"):
        if name in words:
            words[name] = f"{name} {words[name]}"
    parameters = words.pop("task_parameters", "")
    if parameters and "task" in words:
        words["task"] += f" ({parameters})"
    if {"device", "dtype"} <= words.keys():
        words["device"] += f" {words.pop('dtype')}"
    how = [f"{name}={value}" for name, value in told.items() if name in HOW]
    return ", ".join([*words.values(), *how])


def shared(data: ReportData) -> str:
    """What all rows have in common, once and for all; empty where there is nothing."""
    columns = data.shared_columns
    return f"All of this is on {_label(data.frame.iloc[0], columns)}." if columns else ""


def short_label(data: ReportData, group: dict | pd.Series) -> str:
    """What tells a group from the others of the sweep; empty where it is the only one."""
    return _label(group, [name for name in within(GROUP, group) if name not in data.shared_columns])


def method_label(data: ReportData, row: int) -> str:
    """An attention with those parameters that tell it from its fellows."""
    record = data.frame.loc[row]
    words = [f"{int(record[name])} {name}" for name in ("landmarks", "iterations") if not pd.isna(record[name])]
    words += filter(None, [data.details.at[row, "settings"]])
    return str(record["attention"]) + (f" ({', '.join(words)})" if words else "")


def brief_label(data: ReportData, row: int) -> str:
    """The same for figures, where room is short: ``nystra 16/2`` for 16 landmarks and 2 iterations."""
    record = data.frame.loc[row]
    numbers = [str(int(record[name])) for name in ("landmarks", "iterations") if not pd.isna(record[name])]
    return " ".join(filter(None, [str(record["attention"]), "/".join(numbers), data.details.at[row, "settings"]]))


def noise(data: ReportData, session: TimingSession) -> str:
    """What the A/A comparison of a session says."""
    where = ", ".join(filter(None, [short_label(data, session.group), count(session.rounds, "round")]))
    if session.noise is None:
        return f"{where}: exact attention was not timed twice, so the noise floor is unknown."
    ratio, level = number(session.noise.median, 3), 100 * session.noise.level
    if session.rounds == 1:
        return f"{where}: exact attention against itself gives {ratio}, and no interval: what noise is, is unknown."
    low, high = number(session.noise.low, 3), number(session.noise.high, 3)
    said = f"{where}: exact attention against itself gives {ratio} ({level:.1f} % interval {low}–{high})"
    if session.noise.contains(1):
        return f"{said}; differences of this size are noise."
    chance = f"which excludes 1. On a steady machine that happens by chance at most {100 - level:.1f} times in 100"
    if session.noise.level < LEVEL:
        return f"{said}, {chance}: so few rounds cannot tell whether it is one."
    return f"{said}, {chance}: these timings are not to be trusted."


def noise_lines(data: ReportData) -> list[str]:
    """One sentence for each timing session; none where the sweep times no model."""
    if "latency" not in data.measurements:
        return []
    return [noise(data, session) for session in data.sessions] or ["No timing session: the noise floor is unknown."]


def kept(data: ReportData) -> list[str]:
    """One sentence for each model that has attentions which are not replaced."""
    said = {}
    for model, kinds in zip(data.frame["model"], data.details["kept"], strict=True):
        if isinstance(kinds, dict) and kinds:
            said[model] = "; ".join(f"{count} × {kind}" for kind, count in kinds.items())
    return [f"In {model} these attentions stay as they are: {kinds}." for model, kinds in said.items()]


def untrained(data: ReportData) -> list[str]:
    """One sentence on the models whose weights are random; none where all are trained."""
    models = [content["model"] for content in data.contents if "model" in content]
    names = sorted({model["name"] for model in models if model.get("untrained")})
    if not names:
        return []
    return [
        f"The weights of {', '.join(names)} are random, in the published model's size: what a pass costs is measured "
        "on them, and nothing else; no number of quality or closeness is of them."
    ]


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
    known = [*SEVERITY, *counts.index.difference(SEVERITY)]
    statuses = ", ".join(f"{counts[status]} {status}" for status in known if status in counts)
    groups = data.frame[within(GROUP, data.frame)].drop_duplicates()
    return (
        f"{len(data.frame)} configurations from {data.cells['key'].nunique()} measurements ({statuses or 'none'}): "
        f"{count(data.frame['attention'].nunique(), 'attention')} in {count(len(groups), 'setting')} of model, window, "
        f"position bias, task, data, device and precision. {shared(data)}"
    )


@dataclass(frozen=True)
class Finding:
    """What one group says: which group (empty where it is the only one), and the sentences."""

    where: str
    said: str


def findings(data: ReportData) -> list[Finding]:
    """For each group: its fastest replacement with its deviation, and what the exact and native models take.

    Groups in which neither latency nor quality was planned, or all of it skipped, have none.
    """
    concerned = data.cells["measure"].isin(["latency", "quality"]) & (data.cells["status"] != "skipped")
    planned = data.frame[data.frame.index.isin(data.cells.loc[concerned, "row"])]
    return [Finding(short_label(data, group), _finding(data, rows)) for group, rows in groups(planned)]


def groups(frame: pd.DataFrame, columns: list[str] = GROUP) -> Iterator[tuple[dict, pd.DataFrame]]:
    """The rows that agree in ``columns`` and, with the device, in how the model was run, in the order of the table."""
    columns = within(columns, frame)
    for values, rows in frame.groupby(columns, sort=False, dropna=False):
        yield dict(zip(columns, values, strict=True)), rows


def _finding(data: ReportData, rows: pd.DataFrame) -> str:
    """What can be said of the replacements that have a latency, a deviation, or both; the others are counted."""
    replacements = rows[data.replaces(rows)]
    timed, compared = replacements["latency_ms"].notna(), replacements["deviation_psnr"].notna()
    if (timed & compared).any():
        left_out = _left_out(int((~(timed & compared)).sum()), "a latency or a deviation")
        return _cost_and_closeness(data, rows, replacements[timed & compared]) + left_out
    both = " No replacement has both, so no speed-up is told." if timed.any() and compared.any() else ""
    said = []
    if compared.any():
        said.append(_closeness(data, rows, replacements[compared]) + _left_out(int((~compared).sum()), "a deviation"))
    if timed.any():
        said.append(_cost(data, replacements[timed]) + _left_out(int((~timed).sum()), "a latency"))
    return " ".join(said) + both if said else "No replacement has a latency or a deviation yet."


def _left_out(n: int, what: str) -> str:
    return f" {count(n, 'replacement')} without {what} {'is' if n == 1 else 'are'} left out of this." if n else ""


def _closeness(data: ReportData, rows: pd.DataFrame, compared: pd.DataFrame) -> str:
    """The closest replacement, where no speed is known."""
    closest = compared["deviation_psnr"].idxmax()
    row = compared.loc[closest]
    which = "The closest replacement" if len(compared) > 1 else "The one replacement with a deviation"
    return (
        f"{which} is {method_label(data, closest)}: its deviation from the exact output is "
        f"{number(row['deviation_psnr'], 2)} dB{_quality(row, rows)}.{_without_attention(rows, compared)}"
    )


def _cost(data: ReportData, timed: pd.DataFrame) -> str:
    """The fastest replacement and the references of its session, where nothing is known of how close it is."""
    fastest = timed["latency_ms"].idxmin()
    which = "The fastest replacement" if len(timed) > 1 else "The one replacement with a latency"
    session = data.session_of(fastest)
    names = {ORIGINAL: "exact attention", FUSED: "sdpa", FLOOR: "no attention (identity)", RELEASED: "the native model"}
    beside = [f"{names[name]} {number(session.medians[name], 1)} ms" for name in names if name in session.medians]
    return (
        f"{which} is {method_label(data, fastest)} with {_latency(timed.loc[fastest])}"
        f"{'; in the same session take ' + ', '.join(beside) if beside else ''}. No deviation of it was measured, so "
        "what its speed costs is unknown."
    )


def _cost_and_closeness(data: ReportData, rows: pd.DataFrame, measured: pd.DataFrame) -> str:
    fastest = measured["latency_ms"].idxmin()
    row = measured.loc[fastest]
    level = _level(data, fastest)
    return (
        f"The fastest replacement is {method_label(data, fastest)} with {_latency(row)}, "
        f"{_speed(row, ORIGINAL, level)} and {_speed(row, FUSED, level)}; its deviation from the exact output is "
        f"{number(row['deviation_psnr'], 2)} dB{_quality(row, rows)}."
        f"{_closest(data, measured, fastest)}{_without_attention(rows, measured)}{_native(data, measured, fastest)}"
    )


def _latency(row: pd.Series) -> str:
    return f"{number(row['latency_ms'], 1)} ms" + (" (unstable)" if row["status"] == "unstable" else "")


def _quality(row: pd.Series, rows: pd.DataFrame) -> str:
    """The PSNR against the clean image, beside that of exact attention."""
    if pd.isna(row["psnr"]):
        return ""
    original = rows[(rows["attention"] == ORIGINAL) & rows["psnr"].notna()]
    beside = "" if original.empty else f" (exact attention: {number(original['psnr'].iloc[0], 2)} dB)"
    return f", its PSNR {number(row['psnr'], 2)} dB{beside}"


def _level(data: ReportData, row: int) -> str:
    """The level of a row's intervals: the nominal one, or the lower one that few rounds have."""
    rounds = data.session_of(row).rounds
    return f"{100 * min(LEVEL, interval_rank(rounds)[1]):.3g} %"


def _speed(row: pd.Series, reference: str, level: str) -> str:
    """How a row compares with a reference, with the interval."""
    value, low, high = (row[f"speedup_vs_{reference}{end}"] for end in ("", "_low", "_high"))
    if pd.isna(value):
        return f"not compared with {reference}"
    if pd.isna(low):
        return f"{number(value, 2)} times as fast as {reference} (of one round: there is no interval)"
    interval = f"({level} interval {number(low, 2)}–{number(high, 2)})"
    if low <= 1 <= high:
        return f"not distinguishable from {reference} in speed {interval}"
    return f"{number(value, 2)} times as fast as {reference} {interval}"


def _closest(data: ReportData, measured: pd.DataFrame, fastest: int) -> str:
    closest = measured["deviation_psnr"].idxmax()
    if closest == fastest:
        return " It is also the closest to the exact output." if len(measured) > 1 else ""
    row = measured.loc[closest]
    return f" The closest is {method_label(data, closest)}: {number(row['deviation_psnr'], 2)} dB at {_latency(row)}."


def _without_attention(rows: pd.DataFrame, compared: pd.DataFrame) -> str:
    """How many replacements are worse than none: what a table of speed-ups alone would hide."""
    floor = rows[(rows["attention"] == FLOOR) & rows["deviation_psnr"].notna()]
    if floor.empty:
        return ""
    row = floor.iloc[0]
    deviation = row["deviation_psnr"]
    at = "" if pd.isna(row["latency_ms"]) else f" at {number(row['latency_ms'], 1)} ms"
    worse = int((compared["deviation_psnr"] < deviation).sum())
    which = f"{worse} of {count(len(compared), 'replacement')} {'is' if worse == 1 else 'are'}"
    which = "none of the replacements is" if not worse else which
    which = "every replacement is" if worse == len(compared) else which
    return (
        f" Without any attention (identity) the deviation is {number(deviation, 2)} dB{at}: "
        f"{which} farther from the original than that."
    )


def _native(data: ReportData, measured: pd.DataFrame, fastest: int) -> str:
    native, row = data.details.at[fastest, "native_ms"], measured.loc[fastest]
    if pd.isna(native):
        return ""
    said = f" The native model takes {number(native, 1)} ms in the same session"
    if row[f"speedup_vs_{RELEASED}_high"] < 1:
        return f"{said}: less than any replacement here."
    if row[f"speedup_vs_{RELEASED}_low"] <= 1:
        return f"{said}: not distinguishable from the fastest replacement."
    return f"{said}."
