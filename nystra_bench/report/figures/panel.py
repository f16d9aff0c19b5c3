"""What the numbers look like: input, clean and restored images, their differences, and a crop."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure as Drawing
from matplotlib.patches import Rectangle

from nystra_bench.report.base import Figure
from nystra_bench.report.columns import number
from nystra_bench.report.frame import FLOOR, GROUP, ORIGINAL, Panel, ReportData
from nystra_bench.report.plotting import new_figure
from nystra_bench.report.wording import group_label, method_label

MARK = "#ffd400"
LEVELS = 255
CELL = 1.62  # width of an image, inches


@dataclass(frozen=True)
class Picture:
    """One column of the figure: an image, (H, W, 3) in [0, 1], and how far it is from the original.

    Attributes:
        error: mean absolute difference of the channels, (H, W) in steps of 8 bits; None for what is no variant.
    """

    title: str
    image: np.ndarray
    error: np.ndarray | None = None


class VisualPanel(Figure):
    """One figure for each model, window and bias: whole image, crop and error map of each variant.

    Args:
        best_by: column whose highest value is the best setting of an attention.
        cheapest_by: column whose lowest value is the cheapest.
        show_all: up to so many variants besides the original and the floor, all are shown.
        crop: side of the crop in pixels.
        columns: images beside each other.
    """

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
            "The first image of the data. Below each image the marked crop, enlarged, and the absolute difference "
            "from the original (exact attention in the same window and bias mode; mean of the channels, in 8-bit steps), all "
            "on one square-root scale. The crop is where the variants differ most from the original. In brackets: "
            f"{self.best_by}, mean over all images. Of an attention with many settings, the best and the cheapest are "
            "shown."
        )

    def nothing(self, data: ReportData) -> str:
        return "No output image is stored, or that of the exact attention is missing."

    def draw(self, data: ReportData) -> list[tuple[str, Drawing]]:
        figures = []
        for panel in data.panels():
            original = next((row for row in panel.outputs if data.frame.at[row, "attention"] == ORIGINAL), None)
            if original is not None:
                label = f"{group_label(panel.group, GROUP)}, {panel.image}"
                figures.append((label, self._figure(self._pictures(data, panel, original), label)))
        return figures

    def _pictures(self, data: ReportData, panel: Panel, original: int) -> list[Picture]:
        target = _image(panel.output(original))
        pictures = [("input", panel.input()), ("clean", panel.clean())]
        shown = [Picture(title, _image(image)) for title, image in pictures if image is not None]
        shown.append(Picture(f"original\n({ORIGINAL})", target))
        for row in self._choose(data.frame.loc[[row for row in panel.outputs if row != original]]):
            image = _image(panel.output(row))
            error = np.abs(image - target).mean(axis=-1) * LEVELS
            shown.append(Picture(self._title(data, row), image, error))
        return shown

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

    def _figure(self, pictures: list[Picture], label: str) -> Drawing:
        across = min(self.columns, len(pictures))
        bands = -(-len(pictures) // across)
        height, width = pictures[0].image.shape[:2]
        place = self._place(pictures, height, width)
        ratios = [height / width, 1, height / width]
        figure = new_figure(CELL * across + 0.7, bands * (CELL * sum(ratios) + 0.7) + 0.4)
        grid = figure.subplots(3 * bands, across, squeeze=False, height_ratios=ratios * bands)
        for axes in grid.ravel():
            axes.set_axis_off()
        errors = [picture.error for picture in pictures if picture.error is not None]
        scale = PowerNorm(0.5, 0, max((float(np.quantile(e, 0.999)) for e in errors), default=1.0) or 1.0)
        maps = []
        for n, picture in enumerate(pictures):
            whole, crop, error = grid[3 * (n // across) : 3 * (n // across) + 3, n % across]
            maps += self._draw(picture, whole, crop, error, place, scale)
        if maps:
            bar = figure.colorbar(maps[0], ax=grid[2::3].ravel().tolist(), fraction=0.02, pad=0.01, extend="max")
            bar.set_label("|variant − original| (8-bit steps)", fontsize=8)
        figure.suptitle(label, fontsize=10, fontweight="bold")
        return figure

    def _place(self, pictures: list[Picture], height: int, width: int) -> tuple[int, int, int]:
        """Top, left and side of the square crop in which the variants differ most from the original."""
        side = min(self.crop, height, width)
        errors = [picture.error for picture in pictures if picture.error is not None]
        if not errors:
            return (height - side) // 2, (width - side) // 2, side
        # Each map counts the same: the worst variant alone should not choose.
        total = sum(error / max(float(error.mean()), 1e-9) for error in errors)
        sums = np.pad(total, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
        boxes = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
        top, left = np.unravel_index(int(boxes.argmax()), boxes.shape)
        return int(top), int(left), side

    def _draw(self, picture: Picture, whole: Axes, crop: Axes, error: Axes, place: tuple, scale: PowerNorm) -> list:
        top, left, side = place
        whole.set_title(picture.title, fontsize=7.5, linespacing=1.1)
        whole.imshow(picture.image, interpolation="antialiased")
        crop.imshow(picture.image[top : top + side, left : left + side], interpolation="nearest")
        whole.add_patch(Rectangle((left - 0.5, top - 0.5), side, side, fill=False, edgecolor=MARK, linewidth=1))
        _frame(crop, MARK)
        if picture.error is None:
            return []
        _frame(error, "#999999")
        return [error.imshow(picture.error, cmap="magma", norm=scale, interpolation="antialiased")]


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
