"""How near a method comes to the original as its landmarks grow."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from nystra_bench.report.base import Figure
from nystra_bench.report.columns import column, number
from nystra_bench.report.frame import ReportData
from nystra_bench.report.plotting import (
    GREY,
    Top,
    head,
    label_panels,
    looks,
    panels_of,
    series,
    top_of,
)
from nystra_bench.report.wording import group_label, groups
from nystra_bench.words import FLOOR

FIGURE = ["model", "task", "task_parameters", "dataset", "device", "dtype"]
AXES = ["window", "bias"]


class Landmarks(Figure):
    """One figure for each model, task and device: axes for each window and bias, a line for each setting.

    Args:
        metric: column of the frame.
        columns: axes beside each other.
        ceiling: values above are drawn on one line: they are the same as the original but for rounding.
    """

    place = 2
    made_of = ("quality",)

    def __init__(self, title: str, metric: str = "deviation_psnr", columns: int = 3, ceiling: float = 90.0):
        super().__init__(title)
        self.metric, self.columns, self.ceiling = metric, columns, float(ceiling)

    def caption(self, data: ReportData) -> str:
        return (
            "Deviation from the output of exact attention in the same window and bias mode, mean over the images; "
            "higher is nearer. The dotted line is the model without any attention: a method below it does worse than "
            "leaving attention out."
        )

    def nothing(self, data: ReportData) -> str:
        return f"No configuration has both landmarks and {self.metric}."

    def draw(self, data: ReportData) -> list[tuple[str, Drawing]]:
        if self.metric not in data.frame:
            return []
        measured = data.frame[data.frame[self.metric].notna()]
        figures = []
        for group, rows in groups(measured, FIGURE):
            panels = [(where, members) for where, members in groups(rows, AXES) if members["landmarks"].notna().any()]
            if panels:
                figures.append((group_label(group, FIGURE), self._figure(data, group, panels)))
        return figures

    def _figure(self, data: ReportData, group: dict, panels: list[tuple[dict, pd.DataFrame]]) -> Drawing:
        figure, grid, across = panels_of(len(panels), self.columns, (3.1, 2.8), (0.6, 0.8), least=4.6)
        lines = [members[members["landmarks"].notna()] for _, members in panels]
        top = top_of(pd.concat(lines)[self.metric], self.ceiling)
        handles: dict[str, Line2D] = {}
        for axes, (where, members), rows in zip(grid, panels, lines, strict=True):
            self._lines(axes, data, rows, top, handles)
            self._floor(axes, members, handles)
            axes.set_title(group_label(where, AXES), loc="left")
            if top is not None:
                top.draw(axes)
        label_panels(grid, across, "landmarks", column(self.metric, data).header)
        head(figure, group_label(group, FIGURE))
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(across + 1, len(handles)))
        return figure

    def _lines(self, axes: Axes, data: ReportData, rows: pd.DataFrame, top: Top | None, handles: dict) -> None:
        look = looks(data)
        for s in series(data, rows):
            values = rows.loc[s.rows, self.metric]
            values = values if top is None else top.place(values)
            landmarks = rows.loc[s.rows, "landmarks"].astype(float)
            handles[s.label] = axes.plot(landmarks, values, markersize=5, markeredgecolor="white",
                                         markeredgewidth=0.5, **s.dress(look[s.attention]))[0]  # fmt: skip
        ticks = sorted(set(rows["landmarks"].astype(float)))
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.margins(x=0.12, y=0.12)

    def _floor(self, axes: Axes, members: pd.DataFrame, handles: dict) -> None:
        floors = members[members["attention"] == FLOOR][self.metric]
        if len(floors):
            label = f"no attention ({FLOOR})"
            handles[label] = axes.axhline(floors.iloc[0], color=GREY, linestyle=":", linewidth=1.2)
            axes.annotate(number(floors.iloc[0], 1), (1, floors.iloc[0]), xycoords=("axes fraction", "data"),
                          xytext=(-2, 2), textcoords="offset points", ha="right", fontsize=7.5, color=GREY)  # fmt: skip
