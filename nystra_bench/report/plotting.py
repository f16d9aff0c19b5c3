"""What the figures share: style, colours, series, labels that keep clear of each other, and infinite values."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from textwrap import fill
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from matplotlib.transforms import Bbox

from nystra_bench.report.frame import ReportData
from nystra_bench.words import REFERENCES, count

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255")
"""Okabe and Ito's colours (without black, which the references have, and yellow, which is faint) and Tol's wine."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", ":", "-.")
GREY = "#666666"

_STYLE: Any = {
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
    "text.parse_math": False,  # a dollar sign in a name is no formula
}


def style() -> AbstractContextManager:
    """The settings figures are drawn and saved in; restores those of the caller."""
    return matplotlib.rc_context(_STYLE)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches, laid out so that nothing overlaps."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def panels_of(
    count: int, columns: int, size: tuple[float, float], margins: tuple[float, float], least: float
) -> tuple[Figure, list[Axes], int]:
    """A figure of as many axes as there are panels, row by row with one scale of y, and how many stand in a row.

    Args:
        count: of the panels.
        columns: in a row, at most.
        size: width and height of a panel, in inches.
        margins: what is added to the width and height of all.
        least: the width of the figure, at least.
    """
    across = min(columns, count)
    down = -(-count // across)
    figure = new_figure(max(least, size[0] * across + margins[0]), size[1] * down + margins[1])
    grid = list(figure.subplots(down, across, squeeze=False, sharey=True).flat)
    for axes in grid[count:]:
        axes.remove()
    return figure, grid[:count], across


def label_panels(grid: list[Axes], across: int, x: str, y: str) -> None:
    """Label the axes of ``panels_of``: the lowest of each column, and the first of each row."""
    for axes in grid[-across:]:
        axes.set_xlabel(x)
    for axes in grid[::across]:
        axes.set_ylabel(y)


def head(figure: Figure, text: str, **place: object) -> None:
    """A heading, on as many lines as the width needs."""
    letters = int(figure.get_figwidth() * 72 / 6.9)  # of bold text at 10 points
    figure.suptitle(fill(text, letters), fontsize=10, fontweight="bold", **place)


@dataclass(frozen=True)
class Look:
    """How a method is drawn, in every figure of a report."""

    colour: str
    marker: str


def looks(data: ReportData) -> dict[str, Look]:
    """A colour for each method, the same in all figures of a report; references are grey.

    Chosen by the name, so that it mostly stays when other methods join; markers tell more than seven apart.
    """
    names = set(data.frame["attention"]) - set(REFERENCES)
    chosen: dict[str, Look] = {}
    for place, name in enumerate(sorted(names)):
        turn = place // len(PALETTE)
        taken = {look.colour for look in list(chosen.values())[turn * len(PALETTE) :]}
        start = int(hashlib.sha256(name.encode()).hexdigest(), 16)
        colours = (PALETTE[(start + step) % len(PALETTE)] for step in range(len(PALETTE)))
        chosen[name] = Look(next(c for c in colours if c not in taken), MARKERS[turn % len(MARKERS)])
    return chosen | {name: Look(GREY, marker) for name, marker in zip(REFERENCES, ("s", "D", "X"), strict=True)}


@dataclass(frozen=True)
class Series:
    """Rows of one method that differ in their landmarks alone, in their order.

    Attributes:
        rows: indices in the frame.
        number: which of its method's series it is; chooses line and marker.
    """

    attention: str
    label: str
    rows: list[int]
    number: int

    def dress(self, look: Look) -> dict[str, Any]:
        """Colour by the method; line and marker by which of its series it is."""
        marker = MARKERS[(MARKERS.index(look.marker) + self.number) % len(MARKERS)]
        return {"color": look.colour, "marker": marker, "linestyle": LINES[self.number % len(LINES)]}


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
    iterations = "" if pd.isna(record["iterations"]) else count(record["iterations"], "iteration")
    return ", ".join(filter(None, [record["attention"], iterations, data.details.at[row, "settings"]]))


@dataclass(frozen=True)
class Top:
    """Where values are drawn that are infinite or above a ceiling: the same as the original, but for rounding.

    Attributes:
        level: its place on the axis, clear above all other values.
    """

    level: float
    ceiling: float

    def place(self, values: pd.Series) -> pd.Series:
        """The values as they are drawn."""
        return values.astype(float).where(values <= self.ceiling, self.level).where(values.notna())

    def draw(self, axes: Axes) -> None:
        """The line and its tick; between it and the last other tick there is no scale."""
        axes.axhline(self.level, color=GREY, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
        bottom, _ = axes.get_ylim()
        height = self.level - bottom
        ticks = [t for t in MaxNLocator(5).tick_values(bottom, self.level) if bottom <= t < self.level - 0.12 * height]
        axes.set_yticks([*ticks, self.level], [*(f"{tick:g}" for tick in ticks), f"> {self.ceiling:g}\nidentical"])
        axes.set_ylim(bottom, self.level + 0.16 * height)


def top_of(values: pd.Series, ceiling: float) -> Top | None:
    """The place of what exceeds the ceiling; None where nothing does."""
    if not (values > ceiling).any():
        return None
    below = values[np.isfinite(values) & (values <= ceiling)]
    if below.empty:
        return Top(1.0, ceiling)
    span = float(np.ptp(below)) or max(1.0, abs(below.iloc[0]) * 0.1)
    return Top(float(below.max()) + 0.25 * span, ceiling)


def bottom_line(axes: Axes, floor: float) -> None:
    """The line where what lies below the floor is drawn."""
    axes.axhline(floor, color=GREY, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
    place = axes.get_yaxis_transform()
    text = f"{floor:g} or below"
    axes.text(0.99, floor, text, color=GREY, fontsize="small", transform=place, va="bottom", ha="right")


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
    """A text that belongs to a point of the axes, in data coordinates.

    Attributes:
        worth: the cost (see ``_cost``) above which it is left out, for want of room.
    """

    x: float
    y: float
    text: str
    colour: str
    worth: float = math.inf


_DIRECTIONS = ((1, 1), (-1, 1), (1, -1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0))
_OFFSETS = np.array([(reach * dx, reach * dy) for reach in (4, 8, 13) for dx, dy in _DIRECTIONS], float)
_POINT = 4.0
"""Half the side of a marker, in points."""


def place_labels(axes: Axes, labels: list[Label], points: list[tuple[float, float]]) -> None:
    """Write each label beside its point where it covers least: points, earlier labels, the rim of the axes.

    The figure's layout has to be final (``settle``).
    """
    if not labels:
        return
    dots_per_point = axes.figure.dpi / 72
    places = axes.transData.transform(points) / dots_per_point
    taken = [_box(place, 2 * _POINT, 2 * _POINT, np.zeros(2)) for place in places]
    frame = Bbox(axes.bbox.get_points() / dots_per_point)
    for label in sorted(labels, key=lambda label: -label.worth):
        own = axes.transData.transform((label.x, label.y)) / dots_per_point
        text = axes.annotate(label.text, (label.x, label.y), xytext=(0, 0), textcoords="offset points",
                             fontsize=7.5, color=label.colour, zorder=6)  # fmt: skip
        text.set_in_layout(False)
        text.set_path_effects([withStroke(linewidth=2, foreground="white")])
        size = text.get_window_extent()
        width, height = size.width / dots_per_point, size.height / dots_per_point
        boxes = [_box(own + offset, width, height, np.sign(offset)) for offset in _OFFSETS]
        costs = [_cost(box, frame, taken, own, places) for box in boxes]
        best = int(np.argmin(costs))
        if costs[best] > label.worth:
            text.remove()
            continue
        dx, dy = _OFFSETS[best]
        text.set(position=(dx, dy), ha=("center", "left", "right")[int(np.sign(dx))],
                 va=("center", "bottom", "top")[int(np.sign(dy))])  # fmt: skip
        taken.append(boxes[best])


def _box(place: np.ndarray, width: float, height: float, signs: np.ndarray) -> Bbox:
    """A box at a place, to its right or left and above or below it by the signs, centred on it where they are 0."""
    (x, y), (right, up) = place, signs
    return Bbox.from_bounds(x + (right - 1) / 2 * width, y + (up - 1) / 2 * height, width, height)


def _cost(box: Bbox, frame: Bbox, taken: list[Bbox], own: np.ndarray, points: np.ndarray) -> float:
    """What share of the label is covered; more where it leaves the axes or lies nearer to another point."""
    area = box.width * box.height
    inside = Bbox.intersection(box, frame)
    outside = area - (inside.width * inside.height if inside else 0)
    covered = sum(o.width * o.height for o in (Bbox.intersection(box, other) for other in taken) if o)
    centre = np.array([(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2])
    distance = np.hypot(*(centre - own))
    mistaken = (np.hypot(*(points - centre).T) < distance - 1e-6).any()
    return (3 * outside + covered) / area + 0.4 * mistaken + 0.02 * distance


def settle(figure: Figure) -> None:
    """Lay the figure out once and keep it so: a layout costs more than the drawing itself."""
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
