"""Which approximation is closer to the exact output: the methods of a setting compared in pairs, image by image.

The rules. Of two methods one wins where the interval of the median difference of their deviation PSNR, over the images,
excludes 0 (``statistics.interval_rank``: the sign test); else they tie. In a setting (model, window, bias, task, data,
device and precision) the methods stand by their mean deviation PSNR, but none above one that wins against it. So a rank
always lies among those that the method's ties leave open: from one more than its losses to the number of methods less
its wins. What is above a ceiling counts as the ceiling (it is the same output but for rounding), and an output that is
not finite as infinitely far. With one image there is no interval, and all tie. Exact attention in all its forms and
``identity`` are references and have no rank; every method is compared with ``identity``, since one that is no closer
than no attention at all approximates nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from nystra_bench.instruments.statistics import interval_rank
from nystra_bench.report.frame import ReportData
from nystra_bench.report.wording import groups
from nystra_bench.words import FLOOR

DEVIATION = "deviation_psnr"


@dataclass(frozen=True)
class Contest:
    """The methods of one setting, compared in pairs.

    Attributes:
        rows: indices in the frame: the methods in their order, then ``identity`` where it was measured.
        methods: how many of them have a rank.
        images: how many were compared.
        mean: (n,), dB, the mean deviation of each row over the images.
        difference, low, high: (n, n), dB by which row i is closer than row j: the median over the images, and its
            interval.
        setting: indices of all rows of the setting, with a deviation or not.
    """

    rows: list[int]
    methods: int
    images: int
    mean: np.ndarray
    difference: np.ndarray
    low: np.ndarray
    high: np.ndarray
    setting: list[int]

    @property
    def ranked(self) -> range:
        """The positions in ``rows`` of what has a rank."""
        return range(self.methods)

    @property
    def floor(self) -> range:
        """The position in ``rows`` of ``identity``, where there is one."""
        return range(self.methods, len(self.rows))

    def results(self, i: int, against: range) -> tuple[int, int, int]:
        """Wins, ties and losses of a position against others."""
        others = [j for j in against if j != i]
        wins, losses = int((self.low[i, others] > 0).sum()), int((self.high[i, others] < 0).sum())
        return wins, len(others) - wins - losses, losses

    def rank(self, i: int) -> tuple[int, int, int]:
        """The rank of a position, shared by equal means, and the first and last that its ties leave open."""
        wins, _, losses = self.results(i, self.ranked)
        first = i
        while first > losses and self.mean[first - 1] == self.mean[i]:
            first -= 1
        return 1 + first, 1 + losses, self.methods - wins


def contests(data: ReportData, least: int, ceiling: float) -> list[Contest]:
    """One for each setting with so many approximating methods that have a deviation."""
    values = data.images[data.images["metric"] == DEVIATION].fillna({"value": -np.inf})
    found = []
    for _, members in groups(data.frame):
        compared = data.replaces(members) | (members["attention"] == FLOOR)
        rows = members[members.index.isin(values["row"]) & compared]
        if rows.loc[rows["attention"] != FLOOR, "attention"].nunique() >= least:
            of_rows = values[values["row"].isin(rows.index)]
            table = of_rows.pivot_table(index="row", columns="image", values="value").dropna(axis=1).clip(upper=ceiling)
            found.append(_contest(table, rows["attention"] == FLOOR, list(members.index)))
    return found


def _contest(table: pd.DataFrame, is_floor: pd.Series, setting: list[int]) -> Contest:
    """The comparison of rows (n) by their values for each image (n, images)."""
    by_mean = table.mean(axis=1).sort_values(ascending=False, kind="stable").index
    rows = sorted(by_mean, key=lambda row: is_floor[row])
    values, methods = table.loc[rows].to_numpy(float), int((~is_floor).sum())
    compared = _compared(values)
    order = [*_order(compared[1, :methods, :methods] > 0), *range(methods, len(rows))]
    difference, low, high = (matrix[np.ix_(order, order)] for matrix in compared)
    rows, mean = [rows[i] for i in order], values[order].mean(axis=1)
    return Contest(rows, methods, values.shape[1], mean, difference, low, high, setting)


def _order(wins: np.ndarray) -> list[int]:
    """Positions in their order, but none before one that wins against it.

    Wins can go in a circle, but rarely: as each image contradicts one of its wins, it takes n / (k - 1) methods over n
    images, k as in ``interval_rank``: nine over nine, three over some fifty. Then the one with fewest losses is first.

    Args:
        wins: (n, n) bool, whether i wins against j.
    """
    left, order = list(range(len(wins))), []
    while left:
        losses = wins[np.ix_(left, left)].sum(axis=0)
        order.append(left.pop(int(losses.argmin())))
    return order


def _compared(values: np.ndarray) -> np.ndarray:
    """Median over images of the difference of each pair of rows (n, images), and the interval's ends: (3, n, n)."""
    images = values.shape[1]
    rank, _ = interval_rank(images)
    found = np.empty((3, len(values), len(values)))
    for i, row in enumerate(values):
        differences = np.sort(_difference(row, values), axis=1)
        found[:, i] = _middle(differences), differences[:, rank - 1], differences[:, -rank]
    if images == 1:
        found[1:] = [[[-np.inf]], [[np.inf]]]
    return found


def _difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a - b, 0 where they are equal, infinities included."""
    with np.errstate(invalid="ignore"):
        return np.where(a == b, 0.0, a - b)


def _middle(ordered: np.ndarray) -> np.ndarray:
    """Medians of sorted rows (n, images); 0 between two opposite infinities."""
    images = ordered.shape[1]
    below, above = ordered[:, (images - 1) // 2], ordered[:, images // 2]
    with np.errstate(invalid="ignore"):
        return np.where(below == -above, 0.0, (below + above) / 2)
