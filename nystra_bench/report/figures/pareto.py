"""Quality against latency: what each attention costs, and how near it comes to the original."""

from __future__ import annotations

from itertools import count, product
from string import ascii_uppercase

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D

from nystra_bench.report.base import Figure
from nystra_bench.report.columns import column
from nystra_bench.report.frame import ReportData
from nystra_bench.report.plotting import (
    Label,
    Top,
    bottom_line,
    head,
    latency_axis,
    looks,
    new_figure,
    pareto_front,
    place_labels,
    series,
    settle,
    top_of,
)
from nystra_bench.report.wording import group_label, groups
from nystra_bench.words import ORIGINAL, REFERENCES, RELEASED

FIGURE = ["model", "task", "task_parameters", "dataset", "device", "dtype"]
ROW = ["window", "bias"]
NATIVE = "#222222"


class Pareto(Figure):
    """One figure for each model, task and device: a row of axes for each window and bias, a column for each metric.

    Args:
        metrics: columns of the frame, higher is better.
        ceiling: values above are drawn on one line: they are the same as the original but for rounding.
        floor: values below are drawn on another: one failure would else push all others together.
    """

    place = 1
    made_of = ("latency", "quality")

    def __init__(self, title: str, metrics: list[str], ceiling: float = 90.0, floor: float = 0.0):
        super().__init__(title)
        self.metrics, self.ceiling, self.floor = list(metrics), float(ceiling), float(floor)

    def caption(self, data: ReportData) -> str:
        undrawn = len(data.frame) - len(self._drawable(data))
        missing = f" {undrawn} rows without a latency or a quality are not drawn." if undrawn else ""
        mixed = any(data.details.loc[rows.index, "latency_session"].nunique() > 1 for _, rows in groups(data.frame))
        sessions = " Some axes show timings of several sessions, between which a machine can drift." if mixed else ""
        return (
            "Left and up is better. Each point is one attention: median latency with its interquartile range. Points "
            "of one method that differ in their landmarks alone are joined, and have that number beside them; the "
            "letter beside a single point is the one in the legend. Grey marks "
            "are references: exact and sdpa compute the original, identity has no attention at all and bounds what any "
            "replacement can save. The dashed vertical line is the model as released, timed in the same session. The "
            "shaded line is the Pareto front. Open marks are unstable timings. Deviations above "
            f"{self.ceiling:g} dB, and infinite ones, are drawn on the top line, those below "
            f"{self.floor:g} dB on the bottom line.{missing}{sessions}"
        )

    def nothing(self, data: ReportData) -> str:
        return "No configuration has both a latency and a quality."

    def draw(self, data: ReportData) -> list[tuple[str, Drawing]]:
        drawable = groups(self._drawable(data), FIGURE)
        return [(group_label(group, FIGURE), self._figure(data, rows)) for group, rows in drawable]

    def _metrics(self, frame: pd.DataFrame) -> list[str]:
        return [name for name in self.metrics if name in frame and frame[name].notna().any()]

    def _drawable(self, data: ReportData) -> pd.DataFrame:
        rows = data.frame[data.frame["latency_ms"].notna()]
        return rows[rows[self._metrics(rows)].notna().any(axis=1)]

    def _figure(self, data: ReportData, rows: pd.DataFrame) -> Drawing:
        panels, metrics = list(groups(rows, ROW)), self._metrics(rows)
        extra = 0.06 * max(0, max(len(members) for _, members in panels) - 12)  # many points want room
        figure = new_figure((4.7 + extra) * len(metrics), (2.9 + extra) * len(panels) + 0.9)
        grid = figure.subplots(len(panels), len(metrics), squeeze=False, sharex=True, sharey="col")
        handles: dict[str, Line2D] = {}
        letters = _letters(data, panels)
        drawn = []
        for metric, column_of_axes in zip(metrics, grid.T, strict=True):
            top = top_of(rows[metric], self.ceiling)
            for axes, (group, members) in zip(column_of_axes, panels, strict=True):
                shown = members[members[metric].notna()]
                shown = shown.assign(**{metric: shown[metric].clip(lower=self.floor)})
                points = _Points(data, shown, metric, top, letters)
                if (rows[metric] < self.floor).any():
                    bottom_line(axes, self.floor)
                drawn.append((axes, points, points.draw(axes, handles)))
                points.draw_native(axes, _native(data, rows, metric), handles)
                axes.set_title(group_label(group, ROW), loc="left")
                axes.set_ylabel(column(metric, data).header)
            if top is not None:
                for axes in column_of_axes:
                    top.draw(axes)
        seen = data.details.loc[rows.index, ["latency_q1", "latency_q3", "native_ms"]].to_numpy(float).ravel()
        latency_axis(grid[0, 0], seen)
        for axes in grid[-1]:
            axes.set_xlabel("latency of one forward pass (ms)")
        head(figure, group_label(rows.iloc[0], FIGURE))
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(4, len(handles)))
        settle(figure)
        for axes, points, labels in drawn:
            place_labels(axes, labels, points.places)
        return figure


def _native(data: ReportData, rows: pd.DataFrame, metric: str) -> float:
    """The released model's value of a metric against the ground truth; nan where there is none.

    A metric that also exists as ``native_…`` is a deviation, which has another original in each axes.
    """
    released = rows[(rows["bias"] == RELEASED) & (rows["attention"] == ORIGINAL)]
    is_deviation = f"{RELEASED}_{metric}" in data.frame
    return float("nan") if is_deviation or released.empty else float(released[metric].iloc[0])


def _letters(data: ReportData, panels: list[tuple[dict, pd.DataFrame]]) -> dict[tuple[str, str], str]:
    """(attention, label) of the series that are a single point in all panels -> its letter: A, B, …, Z, AA, AB, …"""
    sizes: dict[tuple[str, str], int] = {}
    for _, rows in panels:
        for s in series(data, rows[~rows["attention"].isin(REFERENCES)]):
            key = (s.attention, s.label)
            sizes[key] = max(len(s.rows), sizes.get(key, 0))
    names = ("".join(letters) for length in count(1) for letters in product(ascii_uppercase, repeat=length))
    return {key: next(names) for key, size in sizes.items() if size == 1}


class _Points:
    """The points of one axes: rows of one group and one metric."""

    def __init__(
        self, data: ReportData, rows: pd.DataFrame, metric: str, top: Top | None, letters: dict[tuple[str, str], str]
    ):
        self.data, self.rows, self.letters = data, rows, letters
        self.x = rows["latency_ms"]
        self.y = rows[metric] if top is None else top.place(rows[metric])

    @property
    def places(self) -> list[tuple[float, float]]:
        return list(zip(self.x, self.y, strict=True))

    def draw(self, axes: Axes, handles: dict[str, Line2D]) -> list[Label]:
        """Draw everything; give back the labels that are still to be placed."""
        front = pareto_front([(self.x[row], self.y[row]) for row in self.rows.index])
        if len(front) > 1:
            xs, ys = zip(*front, strict=True)
            handles["Pareto front"] = axes.plot(xs, ys, color="#f0c419", linewidth=5, alpha=0.35, zorder=1.5,
                                                solid_capstyle="round")[0]  # fmt: skip
        return self._references(axes) + self._methods(axes, handles)

    def _references(self, axes: Axes) -> list[Label]:
        look, labels = looks(self.data), []
        for row, name in self.rows["attention"].items():
            if name in REFERENCES:
                self._mark(axes, row, look[name].colour, look[name].marker)
                labels.append(Label(self.x[row], self.y[row], name, "#444444"))
        return labels

    def _methods(self, axes: Axes, handles: dict[str, Line2D]) -> list[Label]:
        look, labels = looks(self.data), []
        for s in series(self.data, self.rows[~self.rows["attention"].isin(REFERENCES)]):
            dress = s.dress(look[s.attention])
            axes.plot(self.x[s.rows], self.y[s.rows], color=dress["color"], linestyle=dress["linestyle"], zorder=3)
            letter = self.letters.get((s.attention, s.label))
            for row in s.rows:
                self._mark(axes, row, dress["color"], dress["marker"])
                ends = row in (s.rows[0], s.rows[-1])  # they say where a line goes
                text = letter or str(self.rows.at[row, "landmarks"])
                labels.append(Label(self.x[row], self.y[row], text, dress["color"], 0.9 if ends else 0.5))
            named = f"{letter}  {s.label}" if letter else s.label
            handles.setdefault(named, Line2D([], [], markersize=5, **dress))
        return labels

    def _mark(self, axes: Axes, row: int, colour: str, marker: str) -> None:
        """A point with the quartiles of its latency; open where the timing is unstable."""
        low, high = self.data.details.loc[row, ["latency_q1", "latency_q3"]]
        x, open_mark = self.x[row], self.rows.at[row, "status"] == "unstable"
        axes.errorbar(x, self.y[row], xerr=[[max(0.0, x - low)], [max(0.0, high - x)]], color=colour, marker=marker,
                      markersize=5.5, capsize=2, elinewidth=1, markerfacecolor="white" if open_mark else colour,
                      markeredgecolor=colour if open_mark else "white", markeredgewidth=1.2 if open_mark else 0.5,
                      zorder=4)  # fmt: skip

    def draw_native(self, axes: Axes, value: float, handles: dict[str, Line2D]) -> None:
        """The released model: a line at its latency, and a star where its quality is on the same scale."""
        latency = self.data.details.loc[self.rows.index, "native_ms"].median()
        if pd.isna(latency):
            return
        axes.axvline(latency, color=NATIVE, linestyle=(0, (5, 3)), linewidth=1, zorder=2)
        if not pd.isna(value):
            axes.plot(latency, value, marker="*", markersize=11, color=NATIVE, markeredgecolor="white", zorder=5)
        handles["native model"] = Line2D([], [], color=NATIVE, linestyle=(0, (5, 3)), linewidth=1, marker="*")
