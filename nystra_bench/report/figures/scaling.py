"""Time and memory of attentions alone against the number of tokens, with the exponents of their growth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from nystra_bench.instruments.geometry import MAP, MODES
from nystra_bench.report.base import Figure
from nystra_bench.report.columns import number
from nystra_bench.report.frame import ReportData
from nystra_bench.report.plotting import GREY, LINES, head, looks, new_figure
from nystra_bench.report.wording import brief_label, group_label, groups
from nystra_bench.words import ORIGINAL, REFERENCES

FIGURE = ["device", "dtype"]
COSTS = {"time": ("ms", "time of one call (ms)"), "memory": ("peak_mb", "peak memory of one call (MB)")}
"""What is drawn: its column in the long form, and the axis."""

X = {"window": ("tokens", "tokens of the window, N"), "image": ("side", "side of the windows (tokens)")}
TITLES = {"window": "one window of N tokens", "image": f"a map of {MAP}×{MAP} tokens cut into windows"}

ENDS = {
    "time": (">", "ends: the next call would exceed the time budget"),
    "memory": ("X", "ends: the next call would exceed the memory"),
    "failed": ("*", "ends: the method failed at the next size"),
}
"""Why a curve goes no further: marker and words."""


class Scaling(Figure):
    """For each shape of attention one figure of the times and one of the memory: modes below, scales beside each other.

    Args:
        least_mb: memory below is not drawn: it is less than what can be told apart.
    """

    place = 4

    def __init__(self, title: str, least_mb: float = 0.05):
        super().__init__(title)
        self.least_mb = float(least_mb)

    def caption(self, data: ReportData) -> str:
        return (
            "Attention alone, on smooth random queries, keys and values, the same for all; no position bias, no mask. "
            "Above, one window of N tokens; below, a map of fixed size cut into windows, so that every method has the "
            "same number of tokens to serve. Left on linear, right on logarithmic axes. The legend has the exponent b "
            "of cost ∝ N^b with its 95 % t-interval (regression of the logarithms), in window mode from N = 1,024 on; "
            "with a map of fixed size exact attention has b = 1, since each token attends to N others. "
            "Bars are the interval of the median; open marks are unstable timings. Where a curve ends early, the mark "
            "at its end says why, and the table of exponents tells the number."
        )

    def nothing(self, data: ReportData) -> str:
        return "The sweep has no time against the number of tokens (measure=scaling)."

    def draw(self, data: ReportData) -> list[tuple[str, Drawing]]:
        measured, figures = data.rows("scaling"), []
        if measured.empty:
            return []
        for shape, of_shape in measured.groupby("shape", sort=False):
            for group, members in groups(data.frame.loc[list(dict.fromkeys(of_shape["row"]))], FIGURE):
                rows = of_shape[of_shape["row"].isin(members.index)]
                where = f"{shape}, {group_label(group, FIGURE)}"
                costs = [cost for cost in COSTS if self._visible(rows, cost).any()]
                figures += [(f"{cost}, {where}", self._figure(data, rows, cost, where)) for cost in costs]
        return figures

    def _visible(self, rows: pd.DataFrame, cost: str) -> pd.Series:
        """Which points can be drawn, on logarithmic axes, too."""
        values = rows[COSTS[cost][0]]
        return np.isfinite(values) & (values > (self.least_mb if cost == "memory" else 0.0))

    def _figure(self, data: ReportData, rows: pd.DataFrame, cost: str, title: str) -> Drawing:
        visible = self._visible(rows, cost)
        modes = [mode for mode in MODES if (visible & (rows["mode"] == mode)).any()]
        curves = max(rows.loc[rows["mode"] == mode, "row"].nunique() for mode in modes)
        figure = new_figure(11, len(modes) * max(3.0, 0.7 + 0.185 * curves) + 0.5)
        grid = figure.subplots(len(modes), 2, squeeze=False)
        for mode, (linear, logarithmic) in zip(modes, grid, strict=True):
            of_mode = rows["mode"] == mode
            drawn = _Curves(data, rows[of_mode], rows[of_mode & visible], mode, cost)
            drawn.draw(linear)
            handles = drawn.draw(logarithmic)
            drawn.scale(linear, False)
            drawn.scale(logarithmic, True)
            linear.set_title(TITLES[mode], loc="left")
            logarithmic.legend(handles.values(), handles.keys(), loc="center left", bbox_to_anchor=(1.02, 0.5))
        head(figure, f"{COSTS[cost][1]}: {title}")
        return figure


class _Curves:
    """The curves of one mode, to be drawn on axes of two scales."""

    def __init__(self, data: ReportData, rows: pd.DataFrame, visible: pd.DataFrame, mode: str, cost: str):
        self.data, self.rows, self.visible, self.mode, self.cost = data, rows, visible, mode, cost
        self.x, self.y = X[mode][0], COSTS[cost][0]

    def draw(self, axes: Axes) -> dict[str, Line2D]:
        """Draw each curve; gives the handles of the legend."""
        look = looks(self.data)
        turns: dict[str, int] = {}
        handles: dict[str, Line2D] = {}
        ends: dict[str, Line2D] = {}
        for row in dict.fromkeys(self.rows["row"]):
            points = self.visible[self.visible["row"] == row].sort_values("tokens")
            if points.empty:
                continue
            attention = self.data.frame.at[row, "attention"]
            turn = turns[attention] = turns.get(attention, -1) + 1
            colour = "#222222" if attention == ORIGINAL else look[attention].colour
            style = LINES[(REFERENCES.index(attention) if attention in REFERENCES else turn) % len(LINES)]
            width = 2.2 if attention == ORIGINAL else 1.3
            dress: dict[str, Any] = {"marker": look[attention].marker, "linewidth": width}
            (line,) = axes.plot(points[self.x], points[self.y], color=colour, linestyle=style, markersize=3.5, **dress)
            handles[self._label(row)] = line
            self._spread(axes, points, colour, look[attention].marker)
            ends |= self._end(axes, row, points.iloc[-1], colour)
        return handles | ends

    def _label(self, row: int) -> str:
        """The method with the exponent and its interval."""
        found = [self.data.frame.at[row, f"{self.cost}_exponent{end}"] for end in ("", "_low", "_high")]
        if any(map(pd.isna, found)):
            return brief_label(self.data, row)
        exponent, low, high = (number(value, 2) for value in found)
        return f"{brief_label(self.data, row)}: b = {exponent} ({low} to {high})"

    def _spread(self, axes: Axes, points: pd.DataFrame, colour: str, marker: str) -> None:
        """The interval of the median, and open marks where a timing is unstable."""
        if self.cost != "time":
            return
        axes.vlines(points[self.x], points["ms_low"], points["ms_high"], color=colour, linewidth=1.0, alpha=0.7)
        unsure = points[points["unstable"].astype(bool)]
        axes.plot(unsure[self.x], unsure["ms"], marker, color="white", markeredgecolor=colour, markersize=4, zorder=3)

    def _end(self, axes: Axes, row: int, last: pd.Series, colour: str) -> dict[str, Line2D]:
        kinds = self.rows.loc[(self.rows["row"] == row) & self.rows["kind"].isin(list(ENDS)), "kind"]
        if kinds.empty:
            return {}
        marker, words = ENDS[kinds.iloc[0]]
        axes.plot(last[self.x], last[self.y], marker, color=colour, markersize=8, zorder=4)
        return {words: Line2D([], [], color=GREY, marker=marker, linestyle="", markersize=7)}

    def scale(self, axes: Axes, logarithmic: bool) -> None:
        axes.set_xlabel(X[self.mode][1])
        axes.set_ylabel(COSTS[self.cost][1])
        if logarithmic:
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            sides = sorted({int(side) for side in self.rows["side"] if side & (side - 1) == 0})
            ticks = [side if self.x == "side" else side * side for side in sides] or sorted(set(self.rows[self.x]))
            axes.xaxis.set_major_locator(FixedLocator(ticks))
            axes.yaxis.set_major_locator(LogLocator())
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        else:
            steps = [1, 2, 4, 6.4, 8, 10] if self.x == "side" else None
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=steps))
            axes.set_ylim(bottom=0)
            axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
