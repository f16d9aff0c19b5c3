"""The attention maps that ``attention_maps`` gives, as a picture."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from nystra_bench.api.pictures import png, show
from nystra_bench.words import ORIGINAL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.image import AxesImage

    from nystra_bench.instruments.attention_maps import AttentionMap

MARK = "#ffd400"
CELL = 1.55
"""Inches of a map."""


class AttentionMaps(list["AttentionMap"]):
    """A list of attention maps; notebooks show it as a picture.

    Args:
        found: the maps.
        image: that they lie on, (height, width, C) float32.
    """

    def __init__(self, found: list[AttentionMap], image: np.ndarray):
        super().__init__(found)
        self.image = image

    def figure(self) -> Figure:
        """A band for each layer, query and head: the image, the maps on one colour scale, and below each method's map
        its difference from exact attention's."""
        from nystra_bench.report.plotting import new_figure

        bands = self.bands()
        across = 1 + max(len(band) for band in bands)
        figure = new_figure(CELL * (across + 0.45), (2 * CELL + 0.55) * len(bands))
        for part, band in zip(np.atleast_1d(figure.subfigures(len(bands), 1)), bands, strict=True):
            self._draw(part, band, across)
        return figure

    def bands(self) -> list[list[AttentionMap]]:
        """The maps of one layer, query and head together, exact attention's first."""

        def place(found: AttentionMap) -> tuple:
            return found.layer, found.query, found.head

        order = list(dict.fromkeys(map(place, self)))
        ranked = sorted(self, key=lambda found: order.index(place(found)))
        return [list(band) for _, band in groupby(ranked, place)]

    def _draw(self, part: SubFigure, band: list[AttentionMap], across: int) -> None:
        from matplotlib.colors import PowerNorm

        exact = next(found for found in band if found.attention == ORIGINAL)
        part.suptitle(f"{exact.layer}, head {exact.head}, query {exact.query}", fontsize=9, fontweight="bold")
        axes = part.subplots(2, across, squeeze=False)
        for each in axes.flat:
            each.set_axis_off()
        self._whole(axes[0, 0], exact)
        self._neighbourhood(axes[1, 0], exact)
        top = float(exact.values.max())
        scale = PowerNorm(0.5, 0, top, clip=True)
        methods = [found for found in band if found is not exact]
        largest = max((float(np.abs(m.values - exact.values).max()) for m in methods), default=0) or 1.0
        for column, found in enumerate([exact, *methods], 1):
            weights = _on_box(axes[0, column], found, found.values, cmap="inferno", norm=scale)
            axes[0, column].set_title(_title(found), fontsize=8)
            if found is not exact:
                difference = _on_box(axes[1, column], found, found.values - exact.values, cmap="RdBu_r",
                                     vmin=-largest, vmax=largest)  # fmt: skip
        _bar(part, weights, axes[0], [0, top / 4, top], "weight", extend="max")
        if methods:
            axes[1, 1].text(1, 0.5, "difference\nfrom exact", transform=axes[1, 1].transAxes, ha="right", va="center",
                            fontsize=8)  # fmt: skip
            _bar(part, difference, axes[1], [-largest, 0, largest], "difference")

    def _whole(self, axes: Axes, found: AttentionMap) -> None:
        from matplotlib.patches import Rectangle

        top, left, height, width = found.box
        axes.imshow(_rgb(self.image))
        axes.add_patch(Rectangle((left - 0.5, top - 0.5), width, height, fill=False, edgecolor=MARK, linewidth=1.2))
        _mark(axes, found)
        axes.set_title("image, window", fontsize=8)

    def _neighbourhood(self, axes: Axes, found: AttentionMap) -> None:
        axes.imshow(_rgb(self.image), interpolation="nearest")
        _zoom(axes, found)
        _mark(axes, found)

    def _ipython_display_(self) -> None:
        show(f"{len(self)} attention maps", picture=png(self.figure))


def _bar(part: SubFigure, drawn: AxesImage, axes: np.ndarray, ticks: list[float], label: str, **look: object) -> None:
    bar = part.colorbar(drawn, ax=axes, label=label, fraction=0.05, aspect=12, **look)
    bar.set_ticks(ticks, labels=[f"{tick:.2g}".replace("-", "−") for tick in ticks])


def _title(found: AttentionMap) -> str:
    name = found.attention.replace("(", "\n(", 1)
    return f"{name}\nnot shown: {found.outside:.0%}" if round(found.outside, 2) else name


def _on_box(axes: Axes, found: AttentionMap, values: np.ndarray, **look: object) -> AxesImage:
    top, left, height, width = found.box
    extent = (left - 0.5, left + width - 0.5, top + height - 0.5, top - 0.5)
    drawn = axes.imshow(values, extent=extent, interpolation="nearest", **look)
    _zoom(axes, found)
    _mark(axes, found)
    return drawn


def _zoom(axes: Axes, found: AttentionMap) -> None:
    top, left, height, width = found.box
    axes.set(xlim=(left - 0.5, left + width - 0.5), ylim=(top + height - 0.5, top - 0.5))


def _mark(axes: Axes, found: AttentionMap) -> None:
    """A ring around the query, which hides nothing of it."""
    row, column = found.query
    axes.plot(column, row, "o", markersize=9, markerfacecolor="none", markeredgecolor="black", markeredgewidth=2.2)
    axes.plot(column, row, "o", markersize=9, markerfacecolor="none", markeredgecolor=MARK, markeredgewidth=1.2)


def _rgb(image: np.ndarray) -> np.ndarray:
    clipped = image.clip(0, 1)
    return clipped.repeat(3, -1) if clipped.shape[-1] == 1 else clipped
