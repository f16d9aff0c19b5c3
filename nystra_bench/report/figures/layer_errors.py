"""What single layers lose by each method, against what its attention costs."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from nystra_bench.report.base import Figure
from nystra_bench.report.frame import ReportData
from nystra_bench.report.plotting import GREY, head, label_panels, looks, panels_of, series
from nystra_bench.report.wording import group_label, groups
from nystra_bench.words import FLOOR, ORIGINAL, REFERENCES

FIGURE = ["device", "dtype"]
PANEL = ["model", "window", "bias", "task", "task_parameters", "dataset"]
COST = "attention_gflops"
REFERENCE_LINES: dict[str, Any] = {f"exact attention ({ORIGINAL})": "-", f"no attention ({FLOOR})": ":"}


class LayerErrors(Figure):
    """Axes for each model and window: a bar for each setting, from its best to its worst layer.

    Args:
        columns: axes beside each other.
        least: errors below are not drawn: they are rounding.
    """

    place = 6
    made_of = ("propagation", "memory")

    def __init__(self, title: str, columns: int = 3, least: float = 1e-6):
        super().__init__(title)
        self.columns, self.least = int(columns), float(least)

    def caption(self, data: ReportData) -> str:
        return (
            "Left and down is better. Relative error |f′ − f| / |f| of the features after a layer when the attention "
            "of that layer alone is replaced, on one image, against the counted operations of all attentions of the "
            "model. Marks are the median over the layers, bars reach from the layer that a method serves best to the "
            "one that it serves worst. The vertical line is what exact attention costs; the dotted one is the median "
            f"error without any attention. Errors below {self.least:g} (exact attention in another form) are not drawn."
        )

    def nothing(self, data: ReportData) -> str:
        return "No replacement has both errors layer by layer (measure=propagation) and operations (measure=memory)."

    def draw(self, data: ReportData) -> list[tuple[str, Drawing]]:
        rows = _with_errors(data, self.least)
        return [(group_label(group, FIGURE), self._figure(data, group, of)) for group, of in groups(rows, FIGURE)]

    def _figure(self, data: ReportData, group: dict, rows: pd.DataFrame) -> Drawing:
        panels = list(groups(rows, PANEL))
        figure, grid, across = panels_of(len(panels), self.columns, (3.9, 2.9), (0.0, 1.3), least=5.0)
        handles = {words: Line2D([], [], color=GREY, linestyle=line) for words, line in REFERENCE_LINES.items()}
        for axes, (where, members) in zip(grid, panels, strict=True):
            _references(axes, data, where)
            handles |= _bars(axes, data, members)
            axes.set_title(group_label({name: where[name] for name in PANEL[:3]}, PANEL[:3]), loc="left")
            _logarithmic(axes)
        label_panels(grid, across, "operations of the attention (GFLOP)", "relative error of a layer")
        head(figure, f"Errors of single layers against operations: {group_label(group, FIGURE)}")
        columns = max(2, int(figure.get_figwidth() / 3.6))
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns)
        return figure


def _with_errors(data: ReportData, least: float) -> pd.DataFrame:
    """The replacements that have both, with ``low``, ``middle`` and ``high`` of their layers' errors."""
    layers = data.rows("propagation")
    if layers.empty or COST not in data.frame:
        return data.frame.iloc[:0]
    errors = layers.groupby("row")["alone"].agg(low="min", middle="median", high="max")
    rows = data.frame[~data.frame["attention"].isin(REFERENCES)].join(errors, how="inner")
    drawable = (rows[COST] > 0) & (rows["middle"] > least)
    return rows[drawable & rows["high"].lt(float("inf"))]


def _bars(axes: Axes, data: ReportData, rows: pd.DataFrame) -> dict[str, Line2D]:
    look, handles = looks(data), {}
    for s in series(data, rows):
        of = rows.loc[s.rows]
        dress = s.dress(look[s.attention])
        ends = [of["middle"] - of["low"], of["high"] - of["middle"]]
        axes.errorbar(of[COST], of["middle"], yerr=ends, markersize=5, elinewidth=0.8, alpha=0.9, **dress)
        handles[s.label] = Line2D([], [], markersize=5, **dress)
    return handles


def _references(axes: Axes, data: ReportData, where: dict) -> None:
    """What exact attention costs and what no attention loses, in the axes of a model and window."""
    here = data.frame
    for name, value in where.items():
        here = here[here[name].isna() if pd.isna(value) else here[name] == value]
    exact, none = REFERENCE_LINES.values()
    costs = here[here["attention"].isin(REFERENCES) & (here[COST] > 0)][COST]
    if not costs.empty:
        axes.axvline(costs.max(), color=GREY, linestyle=exact, linewidth=1)
    floors = here.index[here["attention"] == FLOOR]
    errors = data.rows("propagation")
    alone = errors[errors["row"].isin(floors)]["alone"]
    if not alone.empty:
        axes.axhline(alone.median(), color=GREY, linestyle=none, linewidth=1.2)


def _logarithmic(axes: Axes) -> None:
    """Both axes, with plain numbers."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
