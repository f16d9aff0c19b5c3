"""What the numbers look like: input, clean and restored images, their differences, and a crop."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure as Drawing
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from nystra_bench.report.base import Figure
from nystra_bench.report.columns import number
from nystra_bench.report.frame import GROUP, Panel, ReportData
from nystra_bench.report.plotting import head, new_figure
from nystra_bench.report.wording import group_label, method_label
from nystra_bench.words import FLOOR, ORIGINAL

MARK = "#ffd400"
LEVELS = 255
CELL, GAP, TITLE, HEAD, MARGIN = 1.62, 0.07, 0.56, 0.36, 0.72
"""Inches: width of an image, space between two, above an image for its title, above all, and for the colour bar."""


@dataclass(frozen=True)
class Picture:
    """One column of the figure: an image, (H, W, 3) in [0, 1], and how far it is from the original.

    Attributes:
        error: mean absolute difference of the channels, (H, W) in steps of 8 bits; None for what is no variant.
    """

    title: str
    image: np.ndarray
    error: np.ndarray | None = None

    @classmethod
    def of(cls, title: str, output: np.ndarray, original: np.ndarray | None = None) -> Picture:
        """Of an image (H, W, 1 or 3), about [0, 1], and where it is a variant, of the original's output."""
        image = _image(output)
        return cls(title, image, None if original is None else np.abs(image - _image(original)).mean(-1) * LEVELS)


class VisualPanel(Figure):
    """One figure for each model, window and bias: whole image, crop and error map of each variant.

    Args:
        best_by: column whose highest value is the best setting of an attention.
        cheapest_by: column whose lowest value is the cheapest.
        show_all: up to so many variants besides the original and the floor, all are shown.
        crop: side of the crop in pixels.
        columns: images beside each other.
    """

    place = 3
    made_of = ("quality",)

    def __init__(
        self,
        title: str,
        best_by: str = "deviation_psnr",
        cheapest_by: str = "latency_ms",
        show_all: int = 6,
        crop: int = 64,
        columns: int = 7,
    ):
        super().__init__(title)
        self.best_by, self.cheapest_by, self.show_all, self.crop, self.columns = (
            best_by, cheapest_by, show_all, crop, columns,
        )  # fmt: skip

    def caption(self, data: ReportData) -> str:
        return (
            "The first image of the data; an input smaller than the clean image is shown enlarged to its size. Below "
            "each image the marked crop, enlarged, and the absolute difference from the original (exact attention in "
            "the same window and bias mode; mean of the channels, in 8-bit steps), all on one square-root scale. The "
            f"crop is where the variants differ most from the original. In brackets: {self.best_by}, mean over all "
            "images. Of an attention with many settings, the best and the cheapest are shown."
        )

    def nothing(self, data: ReportData) -> str:
        return "No output image is stored, or that of the exact attention is missing."

    def draw(self, data: ReportData) -> list[tuple[str, Drawing]]:
        figures = []
        for panel in data.panels():
            original = next((row for row in panel.outputs if data.frame.at[row, "attention"] == ORIGINAL), None)
            if original is not None:
                label = f"{group_label(panel.group, GROUP)}, {panel.image}"
                pictures = self._pictures(data, panel, original)
                figures.append((label, draw_pictures(pictures, label, self.crop, self.columns)))
        return figures

    def _pictures(self, data: ReportData, panel: Panel, original: int) -> list[Picture]:
        target = panel.output(original)
        pictures = [("input", panel.input()), ("clean", panel.clean()), (f"original\n({ORIGINAL})", target)]
        rows = self._choose(data.frame.loc[[row for row in panel.outputs if row != original]])
        shown = [Picture.of(title, image) for title, image in pictures if image is not None]
        return shown + [Picture.of(self._title(data, row), panel.output(row), target) for row in rows]

    def _choose(self, rows: pd.DataFrame) -> list[int]:
        """The floor first, then all variants where they are few, else the best and the cheapest of each attention."""
        is_floor = rows["attention"] == FLOOR
        floor, variants = list(rows.index[is_floor]), rows[~is_floor]
        if len(variants) <= self.show_all:
            return floor + list(variants.index)
        chosen = []
        for _, settings in variants.groupby("attention", sort=False):
            best, cheapest = settings[self.best_by].dropna(), settings[self.cheapest_by].dropna()
            picks = {series.agg(pick) for series, pick in ((cheapest, "idxmin"), (best, "idxmax")) if len(series)}
            chosen += sorted(picks or {settings.index[0]})
        return floor + chosen

    def _title(self, data: ReportData, row: int) -> str:
        value = data.frame.at[row, self.best_by]
        unit = f" {data.descriptions.get(self.best_by, {}).get('unit') or ''}".rstrip()
        name, _, settings = method_label(data, row).partition(" (")
        lines = [name, *settings.removesuffix(")").split(", ")] if settings else [name]
        return "\n".join(lines) + ("" if pd.isna(value) else f"\n({number(value, 1)}{unit})")


def draw_pictures(pictures: list[Picture], label: str, crop: int, columns: int) -> Drawing:
    """The figure of images of one size: each whole, the marked crop of it, and its error map where it has one.

    Args:
        crop: side of the crop in pixels; it lies where the errors are largest.
        columns: images beside each other.
    """
    height, width = pictures[0].image.shape[:2]
    sheet = _Sheet(len(pictures), min(columns, len(pictures)), height / width)
    errors = [picture.error for picture in pictures if picture.error is not None]
    place = _place(errors, height, width, min(crop, height, width))
    scale = PowerNorm(0.5, 0, max((float(np.quantile(e, 0.999)) for e in errors), default=1.0) or 1.0)
    maps = [shown for n, picture in enumerate(pictures) if (shown := _draw(picture, sheet, n, place, scale))]
    if maps:
        bar = sheet.figure.colorbar(maps[0], cax=sheet.bar(), extend="max")
        bar.set_label("difference (8-bit steps)", fontsize=8)
    head(sheet.figure, label, y=1 - 0.06 / sheet.height, va="top")
    return sheet.figure


def _place(errors: list[np.ndarray], height: int, width: int, side: int) -> tuple[int, int, int]:
    """Top, left and side of the square crop in which the variants differ most from the original."""
    if not errors:
        return (height - side) // 2, (width - side) // 2, side
    # Each map counts the same: the worst variant alone should not choose.
    total = sum(error / max(float(error.mean()), 1e-9) for error in errors)
    sums = np.pad(total, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    boxes = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    top, left = np.unravel_index(int(boxes.argmax()), boxes.shape)
    return int(top), int(left), side

class _Sheet:
    """Places of the axes: bands of columns, each column a title, the whole image, the crop and the error map.

    Args:
        count: columns in all.
        across: columns beside each other.
        ratio: height by width of an image.
    """

    def __init__(self, count: int, across: int, ratio: float):
        self.across, self.ratio = across, ratio
        self.band = TITLE + CELL * (1 + 2 * ratio) + 3 * GAP
        self.width = across * (CELL + GAP) + GAP + MARGIN
        self.height = HEAD + -(-count // across) * self.band
        self.figure = new_figure(self.width, self.height)
        self.figure.set_layout_engine("none")

    def axes(self, n: int, part: int) -> Axes:
        """The axes of column ``n``: 0 the whole image, 1 the crop, 2 the error map."""
        heights = [CELL * self.ratio, CELL, CELL * self.ratio]
        top = HEAD + n // self.across * self.band + TITLE + sum(heights[:part]) + part * GAP
        axes = self._add(GAP + n % self.across * (CELL + GAP), top, CELL, heights[part])
        axes.set_axis_off()
        return axes

    def bar(self) -> Axes:
        """The axes of the colour bar, right of the first band's error maps."""
        top = HEAD + TITLE + CELL * (1 + self.ratio) + 2 * GAP
        return self._add(self.width - MARGIN + 0.05, top, 0.1, CELL * self.ratio)

    def _add(self, left: float, top: float, width: float, height: float) -> Axes:
        bottom = self.height - top - height
        return self.figure.add_axes(
            (left / self.width, bottom / self.height, width / self.width, height / self.height)
        )


def _draw(picture: Picture, sheet: _Sheet, n: int, place: tuple[int, int, int], scale: PowerNorm) -> AxesImage | None:
    """One column; gives back the error map, where there is one."""
    top, left, side = place
    whole, crop = sheet.axes(n, 0), sheet.axes(n, 1)
    whole.set_title(picture.title, fontsize=7.5, linespacing=1.1, pad=3)
    whole.imshow(picture.image, interpolation="antialiased")
    whole.add_patch(Rectangle((left - 0.5, top - 0.5), side, side, fill=False, edgecolor=MARK, linewidth=1))
    crop.imshow(picture.image[top : top + side, left : left + side], interpolation="nearest")
    _frame(crop, MARK)
    if picture.error is None:
        return None
    error = sheet.axes(n, 2)
    _frame(error, "#999999")
    return error.imshow(picture.error, cmap="magma", norm=scale, interpolation="antialiased")


def _frame(axes: Axes, colour: str) -> None:
    axes.set_axis_on()
    axes.grid(False)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=True, color=colour, linewidth=1)


def _image(array: np.ndarray) -> np.ndarray:
    """(H, W, 3) in [0, 1] of one with one or three channels."""
    clipped = np.clip(np.nan_to_num(array), 0, 1)
    return np.repeat(clipped, 3, axis=-1) if clipped.shape[-1] == 1 else clipped
