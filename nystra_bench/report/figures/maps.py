"""What some pixels attend to: the image with the pixel, and the attention of each method around it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure as Drawing
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from nystra_bench.measure.maps import BOX, FILE, QUERY
from nystra_bench.report.base import Figure
from nystra_bench.report.columns import number
from nystra_bench.report.frame import GROUP, ReportData, within
from nystra_bench.report.plotting import head, new_figure
from nystra_bench.report.wording import group_label, groups, method_label
from nystra_bench.words import ORIGINAL

MARK = "#00c8ff"
CELL = 1.75
"""Inches: width of a map."""

LEAST_OUTSIDE = 0.005
"""A share of attention that is not shown is told from here on."""


@dataclass(frozen=True)
class Map:
    """One method's attention for a pixel, (height, width) in tokens."""

    title: str
    values: np.ndarray


class AttentionMaps(Figure):
    """A figure for each setting, layer and head: for each pixel the maps of all methods, and their differences.

    Args:
        columns: methods beside each other; more are drawn in further figures.
    """

    place = 5

    def __init__(self, title: str, columns: int = 6):
        super().__init__(title)
        self.columns = columns

    def caption(self, data: ReportData) -> str:
        return (
            "Left the input with the marked pixel and, framed, its window, without padding and without what a shift "
            "brings there from the opposite border; below, that part enlarged. Then the row of the attention matrix "
            "for the pixel's token, put back on the image, on one square-root scale for all methods; negative weights "
            "are black. Below each method the difference from exact attention: red where it attends "
            "more, blue where less. In brackets: how much of the attention is given to other tokens than by exact "
            "attention (half the sum of absolute differences), and how much lies outside of what is shown. All methods "
            "are given the queries and keys of the exact model."
        )

    def nothing(self, data: ReportData) -> str:
        return "The sweep has no attention maps (measure=maps)."

    def draw(self, data: ReportData) -> list[tuple[str, Drawing]]:
        files, rows = data.files("maps", FILE), data.rows("maps")
        if not files:
            return []
        rows = rows[rows["row"].isin(list(files))].join(data.frame[within(GROUP, data.frame)], on="row")
        figures = []
        for group, members in groups(rows, [*GROUP, "layer", "head"]):
            where = f"{group['layer']}, head {group['head']}"
            label = f"{group_label(group, GROUP)}, {where}"
            order = list(dict.fromkeys(members["row"]))
            others = [row for row in order if data.frame.at[row, "attention"] != ORIGINAL]
            for start in range(0, max(len(others), 1), self.columns):
                part = members[members["row"].isin(others[start : start + self.columns] or order[:1])]
                number_of = f" {start // self.columns + 1}" if start else ""
                suffix = f"{where}{number_of}, {group_label(group, GROUP)}"  # long names of files are cut at the end
                figures.append((suffix, queries_figure(_queries(data, part, files), label)))
        return figures


@dataclass(frozen=True)
class Query:
    """A pixel (row, column) of an image (H, W, C), what is shown around it, and the maps of all methods."""

    pixel: tuple[int, int]
    image: np.ndarray
    box: tuple[int, int, int, int]
    exact: np.ndarray
    maps: list[Map]


def _queries(data: ReportData, rows: pd.DataFrame, files: dict[int, Path]) -> list[Query]:
    found: dict[tuple[int, int], Query] = {}
    for row, records in rows.groupby("row", sort=False):
        with np.load(files[row], allow_pickle=False) as arrays:
            for record in records.to_dict("records"):
                row_, column = (int(record[name]) for name in QUERY)
                pixel, n = (row_, column), record["map"]
                values, exact = (_finite(arrays[f"{kind}{n}"]) for kind in ("map", "exact"))
                top, left, height, width = (int(record[name]) for name in BOX)
                box = (top, left, height, width)
                query = found.setdefault(pixel, Query(pixel, shown_image(arrays["image"]), box, exact, []))
                if data.frame.at[row, "attention"] != ORIGINAL:
                    query.maps.append(Map(_title(data, row, record), values))
    return list(found.values())


def _title(data: ReportData, row: int, record: dict) -> str:
    """The method, its settings, and how much of its attention goes elsewhere."""
    name, _, settings = method_label(data, row).partition(" (")
    lines = [name, *settings.removesuffix(")").split(", ")] if settings else [name]
    told = f"{number(100 * record['map_error'], 0)} % misplaced"
    if abs(record["outside"]) > LEAST_OUTSIDE:
        told += f", {number(100 * record['outside'], 0)} % outside"
    return "\n".join([*lines, f"({told})"])


def queries_figure(queries: list[Query], label: str) -> Drawing:
    """A band a query: the image with its mark, the maps on one scale, and below them the differences from exact."""
    across = 2 + max(len(query.maps) for query in queries)
    ratio = max(query.image.shape[0] / query.image.shape[1] for query in queries)
    titles = max(found.title.count("\n") for query in queries for found in [*query.maps, Map("", query.exact)])
    figure = new_figure(CELL * across + 0.9, len(queries) * (CELL * (1 + ratio) + 0.15 * titles + 0.3) + 0.4)
    grid = figure.subplots(2 * len(queries), across, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for query, rows in zip(queries, grid.reshape(len(queries), 2, across), strict=True):
        _draw(figure, query, *rows)
    head(figure, label)
    return figure


def _draw(figure: Drawing, query: Query, above: np.ndarray, below: np.ndarray) -> None:
    """One pixel: its image and the part of it, the exact map, and of each method its map and the difference."""
    top, left, height, width = query.box
    _show(above[0], query.image, None)
    above[0].add_patch(Rectangle((left - 0.5, top - 0.5), width, height, fill=False, edgecolor=MARK, linewidth=1.2))
    above[0].set_title(f"input, row {query.pixel[0]}, column {query.pixel[1]}", fontsize=7.5)
    _show(below[0], query.image, None)
    below[0].set(xlim=(left - 0.5, left + width - 0.5), ylim=(top + height - 0.5, top - 0.5))
    _mark(above[0], query)
    _mark(below[0], query)
    scale = PowerNorm(0.5, 0, float(query.exact.max()) or 1.0)
    shown = _show(above[1], query.exact, query.box, cmap="inferno", norm=scale)
    above[1].set_title(ORIGINAL, fontsize=7.5)
    _mark(above[1], query)
    differences = [found.values - query.exact for found in query.maps]
    limit = max((float(np.quantile(np.abs(d), 0.998)) for d in differences), default=0.0) or 1.0
    for n, (found, difference) in enumerate(zip(query.maps, differences, strict=True), start=2):
        _show(above[n], found.values, query.box, cmap="inferno", norm=scale)
        above[n].set_title(found.title, fontsize=7.5, linespacing=1.1)
        _mark(above[n], query)
        apart = _show(below[n], difference, query.box, cmap="RdBu_r", norm=Normalize(-limit, limit))
        _mark(below[n], query, "#333333")
    figure.colorbar(shown, ax=list(above), fraction=0.02, pad=0.01, extend="max").set_label("weight", fontsize=7.5)
    if differences:
        bar = figure.colorbar(apart, ax=list(below), fraction=0.02, pad=0.01, extend="both")
        bar.set_label("difference", fontsize=7.5)


def _show(axes: Axes, values: np.ndarray, box: tuple[int, int, int, int] | None, **look) -> AxesImage:
    """An image in pixels, or a map of tokens that fill a box of pixels."""
    extent = None
    if box is not None:
        top, left, height, width = box
        extent = (left - 0.5, left + width - 0.5, top + height - 0.5, top - 0.5)
    return axes.imshow(values, extent=extent, interpolation="nearest", **look)


def _mark(axes: Axes, query: Query, colour: str = MARK) -> None:
    row, column = query.pixel
    axes.plot(column, row, marker="o", markersize=6, markerfacecolor="none", markeredgecolor=colour)


def _finite(array: np.ndarray) -> np.ndarray:
    """float32, with 0 where there is no finite number."""
    return np.nan_to_num(array.astype(np.float32), posinf=0, neginf=0)


def shown_image(array: np.ndarray) -> np.ndarray:
    """(H, W, 3) in [0, 1] of one with one or three channels."""
    clipped = np.clip(_finite(array), 0, 1)
    return np.repeat(clipped, 3, axis=-1) if clipped.shape[-1] == 1 else clipped
