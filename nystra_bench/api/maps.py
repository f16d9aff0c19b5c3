"""The attention maps that ``attention_maps`` gives, as a table and as pictures."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nystra_bench.api.pictures import pngs, show
from nystra_bench.measure.maps import map_record
from nystra_bench.words import ORIGINAL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from nystra_bench.instruments.attention_maps import AttentionMap
    from nystra_bench.report.figures.maps import Query


class AttentionMaps(list["AttentionMap"]):
    """A list of attention maps; notebooks show it as pictures.

    Args:
        found: the maps; those of exact attention are among them.
        image: that they lie on, (height, width, C) float32.
    """

    def __init__(self, found: list[AttentionMap], image: np.ndarray):
        super().__init__(found)
        self.image = image

    def table(self) -> pd.DataFrame:
        """A row for each map, as in the long form of the measurement ``maps``.

        ``map_error`` is half the sum of absolute differences to the exact row, the share of attention that is given to
        other tokens; ``outside`` the attention that is not shown.
        """
        exact = {(m.layer, m.head, m.query): m for m in self if m.attention == ORIGINAL}
        records = [
            {"attention": m.attention} | map_record(m, exact[m.layer, m.head, m.query]) | {"query": m.query}
            for m in self
        ]
        return pd.DataFrame(records).drop(columns="box")

    def figures(self) -> list[Figure]:
        """One for each layer and head, with a band for each query: the maps, and their differences from exact."""
        from nystra_bench.report.figures.maps import queries_figure

        return [
            queries_figure(self._queries(maps), f"{layer}, head {head}")
            for (layer, head), maps in _grouped(self, lambda m: (m.layer, m.head)).items()
        ]

    def _queries(self, maps: list[AttentionMap]) -> list[Query]:
        """The maps of one layer and head, as the report draws them."""
        from nystra_bench.report.figures.maps import Map, Query, shown_image

        found = []
        for pixel, (exact, *others) in _grouped(maps, lambda m: m.query).items():
            shown = [Map(_title(m, exact), m.values) for m in others]
            found.append(Query(pixel, shown_image(self.image), exact.box, exact.values, shown))
        return found

    def _ipython_display_(self) -> None:
        for picture in pngs(self.figures):
            show("attention maps", picture=picture)


def _grouped(maps: list[AttentionMap], key: Callable[[AttentionMap], Hashable]) -> dict:
    """The maps by what they have in common, in the order in which that first occurs."""
    groups: dict[Hashable, list[AttentionMap]] = {}
    for found in maps:
        groups.setdefault(key(found), []).append(found)
    return groups


def _title(found: AttentionMap, exact: AttentionMap) -> str:
    """The method, and how much of its attention goes elsewhere."""
    record = map_record(found, exact)
    told = f"{record['map_error']:.0%} misplaced".replace("%", " %")
    if round(abs(record["outside"]), 2):
        told += f", {record['outside']:.0%} outside".replace("%", " %")
    return found.attention.replace("(", "\n(", 1) + f"\n({told})"
