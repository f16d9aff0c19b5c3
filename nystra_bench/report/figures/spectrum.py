"""How fast the singular values of attention matrices decay, of exact attention and of methods in its place."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from nystra_bench.report.base import Figure
from nystra_bench.report.frame import ReportData
from nystra_bench.report.plotting import GREY, LINES, head, label_panels, looks, panels_of
from nystra_bench.report.wording import group_label, groups, method_label
from nystra_bench.words import ORIGINAL

FIGURE = ["model", "task", "task_parameters", "dataset", "device", "dtype"]
AXES = ["window", "bias"]

FIRST = 20
"""So many singular values, says PnP-Nystra's Figure 1, hold what there is at N = 32 x 32."""

LOWEST = 1e-6
"""Relative singular values below are rounding of float32."""

EXACT = "#000000"
LEGEND = 2.9
"""Inches that an entry of the legend takes at most."""


class Decay(Figure):
    """One figure a model: axes for each window and bias, exact attention bold with its quartiles, methods thin.

    Args:
        columns: axes beside each other.
    """

    place = 4

    def __init__(self, title: str, columns: int = 3):
        super().__init__(title)
        self.columns = columns

    def caption(self, data: ReportData) -> str:
        return (
            f"{READING} Coloured are the matrices of the methods on the queries and keys of the exact model. "
            f"{first_values(data)}"
        )

    def nothing(self, data: ReportData) -> str:
        return "The sweep has no spectra (measure=spectrum)."

    def draw(self, data: ReportData) -> list[tuple[str, Drawing]]:
        measured = spectra(data)
        figures = []
        for group, rows in groups(data.frame.loc[list(measured)], FIGURE):
            figures.append((group_label(group, FIGURE), self._figure(data, group, rows, measured)))
        return figures

    def _figure(self, data: ReportData, group: dict, rows: pd.DataFrame, measured: dict) -> Drawing:
        panels = list(groups(rows, AXES))
        figure, grid, across = panels_of(len(panels), self.columns, (3.4, 2.9), (0.6, 1.0), least=4.8)
        handles: dict[str, Line2D] = {}
        for axes, (where, members) in zip(grid, panels, strict=True):
            tokens = self._lines(axes, data, members, measured, handles)
            axes.set_title(f"{group_label(where, AXES)}, N = {tokens}", loc="left")
        dress_axes(grid, across)
        head(figure, group_label(group, FIGURE))
        columns = max(1, int(figure.get_figwidth() / LEGEND))
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(columns, len(handles)))
        return figure

    def _lines(self, axes: Axes, data: ReportData, rows: pd.DataFrame, measured: dict, handles: dict) -> int:
        """The lines of one panel; how many tokens its windows have."""
        look, seen, tokens = looks(data), dict[str, int](), 0
        for row, attention in rows["attention"].items():
            spectrum = measured[row]
            tokens = max(tokens, spectrum.tokens)
            seen[attention] = seen.get(attention, -1) + 1
            if attention == ORIGINAL:
                handles[ORIGINAL] = draw_exact(axes, spectrum, EXACT)
                continue
            line = LINES[seen[attention] % len(LINES)]
            handles[method_label(data, row)] = axes.plot(
                *spectrum.line(), color=look[attention].colour, linewidth=1.0, linestyle=line
            )[0]
        return tokens


READING = (
    "Singular values of attention matrices relative to the largest, in falling order: medians over the heads of all "
    "layers with windows of N tokens (the largest of the model), each a mean over the windows looked at. Black and "
    "bold is exact attention, bias and mask included, with the quartiles over layers and heads as a band. A line that "
    "falls out of the axes has reached its rank."
)


class Spectrum:
    """The singular values of one configuration in its layers of the largest windows.

    Attributes:
        tokens: N of these windows.
        relative: (heads of all layers, values), the largest 1.
        first: the share of energy that the first ``FIRST`` hold, by head.
    """

    def __init__(self, rows: pd.DataFrame):
        self.tokens = int(rows["tokens"].max())
        rows = rows[rows["tokens"] == self.tokens]
        values = rows["singular_values"]
        length = min(map(len, values))
        numbers = np.array([entry[:length] for entry in values], dtype=float)
        usable = np.isfinite(numbers).all(1) & (numbers[:, :1] > 0).all(1) if length else np.zeros(len(rows), bool)
        self.relative = numbers[usable] / numbers[usable][:, :1]
        self.first = rows[f"energy_{FIRST}"].to_numpy(float)[usable]

    def line(self, quantile: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
        """Number of the singular value, from 1 on, and a quantile over the heads."""
        return np.arange(1, self.relative.shape[1] + 1), np.quantile(self.relative, quantile, axis=0)

    def share(self) -> str:
        """The share of energy in the first values, with quartiles, in words."""
        low, middle, high = (100 * np.quantile(self.first, q) for q in (0.25, 0.5, 0.75))
        return f"{_percent(middle)} % (quartiles {_percent(low)}–{_percent(high)} %)"


def spectra(data: ReportData) -> dict[int, Spectrum]:
    """Row -> its spectrum, for the configurations that have one."""
    found = {int(row): Spectrum(rows) for row, rows in data.rows("spectrum").groupby("row", sort=False)}
    return {row: spectrum for row, spectrum in found.items() if len(spectrum.relative)}


def first_values(data: ReportData) -> str:
    """What share of energy the first singular values of exact attention hold, for each model, window and bias."""
    measured = spectra(data)
    exact = data.frame.loc[[row for row in measured if data.frame.at[row, "attention"] == ORIGINAL]]
    if exact.empty:
        return "Exact attention itself was not measured."
    told = []
    for row in exact.index:
        where = group_label(exact.loc[row], ["model", *AXES])
        told.append(f"{where}, N = {measured[row].tokens}: {measured[row].share()}")
    return (
        f"Figure 1 of PnP-Nystra shows a steep decay within {FIRST} values at N = 32². Of the energy (squared singular "
        f"values) of exact attention the first {FIRST} hold here, median over layers and heads: {'; '.join(told)}."
    )


def draw_exact(axes: Axes, spectrum: Spectrum, colour: str) -> Line2D:
    """A bold line with a band between the quartiles."""
    places, low = spectrum.line(0.25)
    axes.fill_between(places, low, spectrum.line(0.75)[1], color=colour, alpha=0.15, linewidth=0)
    return axes.plot(*spectrum.line(), color=colour, linewidth=2.2, zorder=4)[0]


def dress_axes(grid: list[Axes], across: int) -> None:
    """Logarithmic axes with a mark at the first values; those of a figure share theirs."""
    lowest = 1.0
    for axes in grid:
        drawn = [line.get_ydata() for line in axes.lines if line.get_linewidth() > 2] or [
            line.get_ydata() for line in axes.lines
        ]
        lowest = min([lowest, *(float(np.min(values)) for values in drawn)])
    for axes in grid:
        axes.axvline(FIRST, color=GREY, linestyle=":", linewidth=1.1)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_ylim(max(LOWEST, lowest / 10), 1.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.set_xlim(left=1)
    label_panels(grid, across, "number of the singular value", "singular value / largest")


def _percent(value: float) -> str:
    """Two decimals where one would make it a hundred."""
    return f"{value:.2f}" if 99.9 <= value < 99.995 else f"{value:.1f}"
