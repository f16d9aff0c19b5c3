"""How far the features are from the original after each layer, per method."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from nystra_bench.report.base import Figure
from nystra_bench.report.frame import ReportData
from nystra_bench.report.plotting import GREY, head, label_panels, looks, panels_of
from nystra_bench.report.wording import brief_label, group_label, groups
from nystra_bench.words import RELEASED

FIGURE = ["enlarged", "device", "dtype"]
PANEL = ["model", "window", "bias", "task", "task_parameters", "dataset"]
KINDS: dict[str, tuple[Any, str]] = {"all": ("-", "every attention replaced"), "alone": ("--", "this layer's alone")}
"""Which error: line and words."""


class Propagation(Figure):
    """Axes for each model and window; released models and those in other windows in figures of their own.

    Args:
        columns: axes beside each other.
        least: errors below are not drawn: they are rounding.
    """

    place = 5

    def __init__(self, title: str, columns: int = 3, least: float = 1e-6):
        super().__init__(title)
        self.columns, self.least = int(columns), float(least)

    def caption(self, data: ReportData) -> str:
        return (
            "Relative error |f′ − f| / |f| of the features after each layer, in the order of the forward pass, on one "
            "image. Solid: every attention of the model is replaced, so that errors add up; dashed: the attention of "
            "this layer alone, all before it being the original. Grey vertical lines are where another stage of the "
            "model begins. A solid line that stays near the dashed one forgets its errors; one that climbs adds them "
            "up; a peak of the dashed one is a layer at which the method fails. An error of 1 is as large as the "
            f"features themselves; errors below {self.least:g} (exact attention in another form) are not drawn."
        )

    def nothing(self, data: ReportData) -> str:
        return "The sweep has no errors layer by layer (measure=propagation)."

    def draw(self, data: ReportData) -> list[tuple[str, Drawing]]:
        layers = data.rows("propagation")
        if layers.empty:
            return []
        measured = data.frame.loc[list(dict.fromkeys(layers["row"]))]
        measured = measured.assign(enlarged=np.where(measured["bias"] == RELEASED, "as released", "other windows"))
        figures = groups(measured, FIGURE)
        return [(group_label(group, FIGURE), self._figure(data, group, rows)) for group, rows in figures]

    def _figure(self, data: ReportData, group: dict, rows: pd.DataFrame) -> Drawing:
        panels = list(groups(rows, PANEL))
        figure, grid, across = panels_of(len(panels), self.columns, (3.9, 2.7), (0.0, 1.0), least=5.0)
        handles: dict[str, Line2D] = {}
        for axes, (where, members) in zip(grid, panels, strict=True):
            handles |= self._panel(axes, data, list(members.index))
            axes.set_title(group_label({name: where[name] for name in PANEL[:3]}, PANEL[:3]), loc="left")
        label_panels(grid, across, "layer", "relative error of features")
        handles |= {words: Line2D([], [], color=GREY, linestyle=line) for line, words in KINDS.values()}
        head(figure, f"Errors layer by layer: {group_label(group, FIGURE)}")
        columns = int(figure.get_figwidth() / 2.4)
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns)
        return figure

    def _panel(self, axes: Axes, data: ReportData, rows: list[int]) -> dict[str, Line2D]:
        look, layers = looks(data), data.rows("propagation")
        handles: dict[str, Line2D] = {}
        turns: dict[str, int] = {}
        for row in rows:
            of_row = layers[layers["row"] == row].sort_values("depth")
            attention = data.frame.at[row, "attention"]
            turn = turns[attention] = turns.get(attention, -1) + 1  # settings of one method: other markers
            marker = (look[attention].marker, "s", "^", "D")[turn % 4]
            dress: dict[str, Any] = {"color": look[attention].colour, "marker": marker}
            for kind, (line, _) in KINDS.items():
                shown = of_row[kind].where(np.isfinite(of_row[kind]) & (of_row[kind] > self.least))
                drawn = axes.plot(of_row["depth"], shown, linestyle=line, markersize=3.5, **dress)[0]
                handles.setdefault(brief_label(data, row), drawn)
        self._stages(axes, layers[layers["row"] == rows[0]].sort_values("depth"))
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator())
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.grid(False, axis="x")
        return handles

    @staticmethod
    def _stages(axes: Axes, layers: pd.DataFrame) -> None:
        """A line where the list that the blocks stand in becomes another."""
        stages = [str(block).rpartition(".")[0] for block in layers["block"]]
        for depth, before, stage in zip(layers["depth"][1:], stages, stages[1:], strict=False):
            if stage != before:
                axes.axvline(depth - 0.5, color="#d5d5d5", linewidth=0.8, zorder=0.5)
