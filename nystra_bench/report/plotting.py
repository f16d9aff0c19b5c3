"""What the figures share: style, colours, series, labels that keep clear of each other, and infinite values."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from matplotlib.transforms import Bbox

from nystra_bench.report.frame import REFERENCES, ReportData

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255")
"""Okabe and Ito's colours (without black, which the references have, and yellow, which is faint) and Tol's wine."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", ":", "-.")
GREY = "#666666"
INFINITE = "∞"

_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.4,
    "legend.frameon": False,
    "figure.dpi": 150,
    "svg.hashsalt": "nystra_bench",
    "mathtext.default": "regular",
}


def style() -> AbstractContextManager:
    """The settings figures are drawn and saved in; restores those of the caller."""
    return matplotlib.rc_context(_STYLE)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches, laid out so that nothing overlaps."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


@dataclass(frozen=True)
class Look:
    """How a method is drawn, in every figure of a report."""

    colour: str
    marker: str


def looks(data: ReportData) -> dict[str, Look]:
    """A colour for each method that is no reference, the same in all figures of a report.

    Chosen by the name, so that it mostly stays when other methods join; markers tell more than seven apart.
    """
    names = set(data.frame["attention"]) - set(REFERENCES)
    chosen: dict[str, Look] = {}
    for count, name in enumerate(sorted(names)):
        turn = count // len(PALETTE)
        taken = {look.colour for look in list(chosen.values())[turn * len(PALETTE) :]}
        start = int(hashlib.sha256(name.encode()).hexdigest(), 16)
        colours = (PALETTE[(start + step) % len(PALETTE)] for step in range(len(PALETTE)))
        chosen[name] = Look(next(c for c in colours if c not in taken), MARKERS[turn % len(MARKERS)])
    return chosen


@dataclass(frozen=True)
class Series:
    """Rows of one method that differ in their landmarks alone, in their order.

    Attributes:
        rows: indices in the frame.
        number: which of its method's series it is; chooses the line.
    """

    attention: str
    label: str
    rows: list[int]
    number: int


def series(data: ReportData, rows: pd.DataFrame) -> list[Series]:
    """The rows put together to series; a method without landmarks gives one of one row for each setting."""
    found: dict[tuple[str, str], list[int]] = {}
    for row, attention in rows["attention"].items():
        found.setdefault((attention, _label(data, row)), []).append(row)
    numbers: dict[str, int] = {}
    result = []
    for (attention, label), members in found.items():
        number = numbers[attention] = numbers.get(attention, -1) + 1
        ordered = rows.loc[members].sort_values("landmarks").index
        result.append(Series(attention, label, list(ordered), number))
    return result


def _label(data: ReportData, row: int) -> str:
    record = data.frame.loc[row]
    iterations = "" if pd.isna(record["iterations"]) else _counted(record["iterations"], "iteration")
    return ", ".join(filter(None, [record["attention"], iterations, data.details.at[row, "settings"]]))


def _counted(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def infinite_level(values: Iterable[float]) -> float | None:
    """Where to draw an infinite value: clear above all finite ones; None where nothing is infinite."""
    values = np.asarray(list(values), float)
    if not np.isposinf(values).any():
        return None
    finite = values[np.isfinite(values)]
    if not len(finite):
        return 1.0
    span = np.ptp(finite) or max(1.0, abs(finite[0]) * 0.1)
    return float(finite.max() + 0.25 * span)


def draw_infinite(axes: Axes, level: float, text: str = "∞ (identical)") -> None:
    """A line for infinite values, and its tick; what lies above the last finite tick has no scale."""
    axes.axhline(level, color=GREY, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
    axes.annotate(text, (1, level), xycoords=("axes fraction", "data"), xytext=(-3, 3), textcoords="offset points",
                  ha="right", va="bottom", fontsize=7.5, color=GREY)  # fmt: skip
    bottom, _ = axes.get_ylim()
    highest = level - 0.12 * (level - bottom)
    ticks = [tick for tick in MaxNLocator(5).tick_values(bottom, level) if bottom <= tick < highest]
    axes.set_yticks([*ticks, level], [*(f"{tick:g}" for tick in ticks), INFINITE])
    axes.set_ylim(bottom, level + 0.16 * (level - bottom))


def latency_axis(axes: Axes, values: Iterable[float]) -> None:
    """Latencies in ms: logarithmic where they span much, with plain numbers as ticks."""
    values = [value for value in values if value > 0 and math.isfinite(value)]
    if values and max(values) > 4 * min(values):
        axes.set_xscale("log")
        axes.set_xlim(min(values) * 0.8, max(values) * 1.3)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
    elif values:
        pad = 0.1 * (max(values) - min(values)) or 0.1 * max(values)
        axes.set_xlim(min(values) - pad, max(values) + 1.5 * pad)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def pareto_front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats in both: faster (first, lower) and closer (second, higher)."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front


@dataclass(frozen=True)
class Label:
    """A text that belongs to a point of the axes, in data coordinates."""

    x: float
    y: float
    text: str
    colour: str


_DIRECTIONS = ((1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1.3), (0, -1.3), (1.4, 0), (-1.4, 0))
_OFFSETS = [(reach * dx, reach * dy) for reach in (5, 10, 16) for dx, dy in _DIRECTIONS]


def place_labels(axes: Axes, labels: list[Label], avoid: list[tuple[float, float]] | None = None) -> None:
    """Write each label beside its point where it covers least: points, labels before it, the rim of the axes.

    The figure's layout has to be final (``settle``). Labels of equal text and place are written once.
    """
    points = [(label.x, label.y) for label in labels] + (avoid or [])
    dpi = axes.figure.dpi / 72
    places = axes.transData.transform(points) if points else []
    taken = [Bbox.from_bounds(x - 4 * dpi, y - 4 * dpi, 8 * dpi, 8 * dpi) for x, y in places]
    for label in dict.fromkeys(labels):
        text = axes.annotate(label.text, (label.x, label.y), xytext=(0, 0), textcoords="offset points", fontsize=7.5,
                             color=label.colour, zorder=6)  # fmt: skip
        text.set_in_layout(False)
        costs = [_cost(axes, _put(text, offset), taken) for offset in _OFFSETS]  # nearer offsets come first
        taken.append(_put(text, _OFFSETS[int(np.argmin(costs))]))


def _put(text, offset: tuple[float, float]) -> Bbox:
    """Move an annotation by points; the box it then covers, in pixels."""
    dx, dy = offset
    text.set_position(offset)
    text.set_ha("left" if dx > 0 else "right" if dx < 0 else "center")
    text.set_va("bottom" if dy > 0 else "top" if dy < 0 else "center")
    return text.get_window_extent()


def _cost(axes: Axes, box: Bbox, taken: list[Bbox]) -> float:
    """Covered area in square pixels; leaving the axes costs most."""
    inside = Bbox.intersection(box, axes.bbox)
    left_out = box.width * box.height - (inside.width * inside.height if inside else 0)
    overlaps = (Bbox.intersection(box, other) for other in taken)
    return 10 * left_out + sum(o.width * o.height for o in overlaps if o is not None)


def settle(figure: Figure) -> None:
    """Lay the figure out once and keep it so."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
