"""The spectra of all models side by side: how far each is from being of low rank."""

from __future__ import annotations

from collections import Counter

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from nystra_bench.report.base import Figure
from nystra_bench.report.figures.spectrum import READING, draw_exact, dress_axes, first_values, spectra
from nystra_bench.report.frame import ReportData
from nystra_bench.report.plotting import PALETTE, head, panels_of
from nystra_bench.report.wording import group_label, groups
from nystra_bench.words import ORIGINAL

FIGURE = ["device", "dtype"]


class Spectra(Figure):
    """Axes for each model, a line with its quartiles for each window and bias of exact attention.

    Args:
        columns: axes beside each other.
    """

    place = 3

    def __init__(self, title: str, columns: int = 4):
        super().__init__(title)
        self.columns = columns

    def caption(self, data: ReportData) -> str:
        return f"{READING.replace('Black and bold is exact', 'All lines are of exact')} {first_values(data)}"

    def nothing(self, data: ReportData) -> str:
        return "The sweep has no spectra of exact attention (measure=spectrum)."

    def draw(self, data: ReportData) -> list[tuple[str, Drawing]]:
        measured = spectra(data)
        exact = data.frame.loc[[row for row in measured if data.frame.at[row, "attention"] == ORIGINAL]]
        return [
            (group_label(group, FIGURE), self._figure(group, rows, measured)) for group, rows in groups(exact, FIGURE)
        ]

    def _figure(self, group: dict, rows: pd.DataFrame, measured: dict) -> Drawing:
        panels = list(groups(rows, ["model"]))
        figure, grid, across = panels_of(len(panels), self.columns, (3.0, 2.9), (0.6, 0.6), least=4.8)
        colours: dict[tuple, str] = {}  # the same for a bias in all axes
        for axes, (where, members) in zip(grid, panels, strict=True):
            self._lines(axes, members, measured, colours)
            axes.set_title(str(where["model"]), loc="left")
        dress_axes(grid, across)
        head(figure, f"Exact attention, {group_label(group, FIGURE)}")
        return figure

    def _lines(self, axes: Axes, rows: pd.DataFrame, measured: dict, colours: dict[tuple, str]) -> None:
        """One line for each setting of the model, named by its tokens and what else differs."""
        differing = [name for name in ("bias", "task", "dataset") if rows[name].nunique(dropna=False) > 1]
        before: Counter[str] = Counter()
        for row, record in rows.iterrows():
            what = record["bias"], before[record["bias"]]
            before[record["bias"]] += 1
            line = draw_exact(axes, measured[row], colours.setdefault(what, PALETTE[len(colours) % len(PALETTE)]))
            line.set_label(", ".join(filter(None, [f"N = {measured[row].tokens}", group_label(record, differing)])))
        axes.legend(loc="lower left", fontsize=7.5)
