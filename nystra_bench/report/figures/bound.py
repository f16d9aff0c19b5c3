"""How near the attention matrices come to the exact ones as landmarks grow, and what theory allows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from nystra_bench.report.base import Figure
from nystra_bench.report.columns import number
from nystra_bench.report.frame import ReportData
from nystra_bench.report.plotting import GREY, head, looks, new_figure, series
from nystra_bench.report.wording import group_label, groups

FIGURE = ["task", "task_parameters", "dataset", "device", "dtype"]
ROW = ["model", "window", "bias"]

THEORY: dict[str, tuple[str, dict[str, Any]]] = {
    "kernel_bound": ("bound of Lemma 2.1", {"linestyle": "--"}),
    "kernel_projection": ("projection bound", {"linestyle": "-."}),
    "kernel_error_pinv": ("true pseudo-inverse", {"linestyle": "-", "marker": "x", "markersize": 4}),
    "kernel_floor": ("rank-m floor", {"linestyle": ":"}),
}
"""What does not depend on the method's own iteration: column -> label and look."""


class Bound(Figure):
    """A row of axes for each model, window and bias: the kernel's error with its bounds, and the attention matrix's."""

    place = 3
    made_of = ("bound",)

    def caption(self, data: ReportData) -> str:
        return (
            "Medians over layers, heads and windows. Left: the error of the published method's kernel by its own "
            "iteration (coloured), and in grey what does not depend on that: the error with the true pseudo-inverse, "
            "below it the floor that it cannot fall under, above it the two bounds. A bound is missing where A is "
            "singular to working precision in more than half of the kernels. Right: the error of the row-stochastic "
            "attention matrix against the exact one, bias and mask included; the dotted line is a method without "
            "landmarks. An error of 1 is that of a matrix of zeros."
        )

    def nothing(self, data: ReportData) -> str:
        return "No configuration with landmarks has spectral errors (measure=bound)."

    def draw(self, data: ReportData) -> list[tuple[str, Drawing]]:
        names = [name for name in data.rows("bound") if name not in ("row", "layer", "head", "window")]
        medians = data.frame.drop(columns="window").join(data.rows("bound").groupby("row")[names].median(), how="inner")
        medians = medians.join(data.frame["window"])
        figures = []
        for group, rows in groups(medians, FIGURE):
            panels = [(w, members) for w, members in groups(rows, ROW) if members["landmarks"].notna().any()]
            if panels:
                figures.append((group_label(group, FIGURE), self._figure(data, group, panels)))
        return figures

    def _figure(self, data: ReportData, group: dict, panels: list[tuple[dict, pd.DataFrame]]) -> Drawing:
        with_kernel = any(_measured(members, "kernel_error") for _, members in panels)
        across = 2 if with_kernel else 1
        figure = new_figure(4.3 * across + 0.4, 2.9 * len(panels) + 1.0)
        grid = figure.subplots(len(panels), across, squeeze=False, sharey="col")
        handles: dict[str, Line2D] = {}
        for axes, (where, members) in zip(grid, panels, strict=True):
            if with_kernel:
                self._methods(axes[0], data, members, "kernel_error", handles)
                self._theory(axes[0], data, members, handles)
                axes[0].set_ylabel("kernel error ‖G − Ĝ‖₂ / ‖G‖₂")
            self._methods(axes[-1], data, members, "matrix_error", handles)
            self._floor(axes[-1], members)
            axes[-1].set_ylabel("matrix error ‖P − P̂‖₂ / ‖P‖₂")
            axes[0].set_title(group_label(where, ROW), loc="left")
        for axes in grid[-1]:
            axes.set_xlabel("landmarks")
        head(figure, group_label(group, FIGURE))
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(4, len(handles)))
        return figure

    def _methods(self, axes: Axes, data: ReportData, members: pd.DataFrame, name: str, handles: dict) -> None:
        look, rows = looks(data), members[members["landmarks"].notna()]
        if not _measured(rows, name):
            return
        for s in series(data, rows[rows[name].notna()]):
            marks = rows.loc[s.rows, "landmarks"].astype(float)
            handles[s.label] = axes.plot(marks, rows.loc[s.rows, name], markersize=5, markeredgecolor="white",
                                         markeredgewidth=0.5, zorder=3, **s.dress(look[s.attention]))[0]  # fmt: skip
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if name == "matrix_error" else (1,)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(sorted(set(rows["landmarks"].astype(float)))))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))

    def _theory(self, axes: Axes, data: ReportData, members: pd.DataFrame, handles: dict) -> None:
        """Settings that differ in their iterations alone share these numbers: equal lines are drawn once."""
        for name, (label, look) in THEORY.items():
            rows = members.dropna(subset=name)
            lines = {tuple(rows.loc[s.rows, name]): rows.loc[s.rows, "landmarks"] for s in series(data, rows)}
            for values, marks in lines.items():
                finite = np.where(np.isfinite(values), values, np.nan)
                handles[label] = axes.plot(marks.astype(float), finite, color=GREY, linewidth=1.1, **look)[0]

    def _floor(self, axes: Axes, members: pd.DataFrame) -> None:
        for row in members[members["landmarks"].isna() & members["matrix_error"].gt(0)].itertuples():
            axes.axhline(row.matrix_error, color=GREY, linestyle=":", linewidth=1.2)
            label = f"{row.attention} {number(row.matrix_error, 2)}"
            axes.annotate(label, (1, row.matrix_error), xycoords=("axes fraction", "data"), xytext=(-2, 2),
                          textcoords="offset points", ha="right", fontsize=7.5, color=GREY)  # fmt: skip


def _measured(rows: pd.DataFrame, name: str) -> bool:
    return name in rows and rows[name].notna().any()
