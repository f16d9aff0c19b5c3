"""Which approximation is closest to the exact output: a ranking in each setting, and the standings over all of them.

The rules. In a setting (model, window, bias, task, data, device and precision) the methods are ranked by their mean
deviation PSNR. Two are compared image by image: one wins where the interval of the mean difference excludes 0, a
percentile bootstrap interval of 95 % over the images, with the same resamples for all methods; else they tie. The ranks
that a method's ties leave open are those from one more than its losses to the number of methods less its wins. What is
above a ceiling counts as the ceiling (it is the same output but for rounding), and an output that is not finite as
infinitely far. With one image there is no interval, and all tie. ``exact``, ``sdpa`` and ``identity`` are references
and have no rank; every method is compared with ``identity``, since one that is no closer than no attention at all
approximates nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from nystra_bench.instruments.statistics import LEVEL, RESAMPLES
from nystra_bench.measure.latency import RATIOS
from nystra_bench.report.base import Table
from nystra_bench.report.columns import EMPTY, Column, ReadableTable, TableCell, number, plain, readable_table
from nystra_bench.report.frame import GROUP, ReportData
from nystra_bench.report.wording import count, groups, method_label, short_label
from nystra_bench.words import FLOOR, FUSED, ORIGINAL, REFERENCES

DEVIATION = "deviation_psnr"
ENOUGH_IMAGES = 6
"""Images from which on an interval without assumptions can have a level of 95 %: the range of n values misses
the median with probability 2^(1 - n)."""

RULES = (
    "Methods are ranked by their mean deviation PSNR, and compared image by image. "
    f"One wins where the {100 * LEVEL:g} % interval of the mean difference excludes 0 (percentile bootstrap over the "
    f"images, {RESAMPLES} resamples, the same for all); else they tie. "
    "In brackets stand the ranks that ties leave open: from one more than the losses to the number of methods less the "
    "wins. "
    "Deviations above {ceiling:g} dB count as that, and outputs that are not finite as infinitely far. "
    "exact, sdpa and identity are references and have no rank."
)


@dataclass(frozen=True)
class Contest:
    """The methods of one setting, compared in pairs.

    Attributes:
        rows: indices in the frame, the closest to the exact output first; ``identity``, without a rank, among them.
        ranked: positions in ``rows`` of what has a rank.
        images: how many were compared.
        difference, low, high: (n, n), dB by which row i is closer than row j, and the interval of it.
        setting: indices of all rows of the setting, with a deviation or not.
    """

    rows: list[int]
    ranked: list[int]
    images: int
    difference: np.ndarray
    low: np.ndarray
    high: np.ndarray
    setting: list[int]

    def results(self, i: int, others: list[int]) -> tuple[int, int, int]:
        """Wins, ties and losses of a position against others."""
        others = [j for j in others if j != i]
        wins, losses = int((self.low[i, others] > 0).sum()), int((self.high[i, others] < 0).sum())
        return wins, len(others) - wins - losses, losses

    def rank(self, i: int) -> tuple[int, int, int]:
        """The rank of a position by its mean, and the first and last that its ties leave open."""
        wins, _, losses = self.results(i, self.ranked)
        return 1 + int((self.difference[self.ranked, i] > 0).sum()), 1 + losses, len(self.ranked) - wins


def contests(data: ReportData, least: int, ceiling: float) -> list[Contest]:
    """One for each setting with so many approximating methods that have a deviation."""
    values = data.images[data.images["metric"] == DEVIATION].fillna({"value": -np.inf})
    found = []
    for _, members in groups(data.frame):
        rows = members[members.index.isin(values["row"]) & ~members["attention"].isin((ORIGINAL, FUSED))]
        if rows.loc[rows["attention"] != FLOOR, "attention"].nunique() >= least:
            of_rows = values[values["row"].isin(rows.index)]
            table = of_rows.pivot_table(index="row", columns="image", values="value").dropna(axis=1).clip(upper=ceiling)
            found.append(_contest(table, rows["attention"] == FLOOR, list(members.index)))
    return found


def _contest(table: pd.DataFrame, unranked: pd.Series, setting: list[int]) -> Contest:
    """The comparison of rows (n) by their values for each image (n, images)."""
    order = list(table.mean(axis=1).sort_values(ascending=False, kind="stable").index)
    values = table.loc[order].to_numpy(float)
    images = values.shape[1]
    drawn = np.random.default_rng(0).integers(images, size=(RESAMPLES, images))
    means = values[:, drawn].mean(-1)
    ends = (1 - LEVEL) / 2, (1 + LEVEL) / 2
    # The quantile is one of the values: between infinities there is nothing to interpolate.
    low, high = np.stack(
        [np.quantile(_differences(mean, means), ends, axis=-1, method="inverted_cdf") for mean in means], axis=1
    )
    if images == 1:
        low, high = np.full_like(low, -np.inf), np.full_like(high, np.inf)
    difference = _differences(values.mean(-1)[:, None], values.mean(-1))
    ranked = [i for i, row in enumerate(order) if not unranked[row]]
    return Contest(order, ranked, images, difference, low, high, setting)


def _differences(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a - b, 0 where they are equal, infinities included."""
    with np.errstate(invalid="ignore"):
        return np.where(a == b, 0.0, a - b)


class _OfContests(Table):
    """What both tables share.

    Args:
        least: approximating methods that a setting needs to be ranked.
        ceiling: deviations in dB above are the same but for rounding.
    """

    def __init__(self, title: str, columns: list[str], stem: str | None = None, least: int = 3, ceiling: float = 90.0):
        super().__init__(title, columns, stem)
        self.least, self.ceiling = int(least), float(ceiling)

    def contests(self, data: ReportData) -> list[Contest]:
        return contests(data, self.least, self.ceiling)

    def nothing(self, data: ReportData) -> str | None:
        if self.contests(data):
            return None
        return f"No setting has {self.least} approximating methods with a deviation, so nothing is ranked."

    def notes(self, data: ReportData) -> list[str]:
        return [RULES.format(ceiling=self.ceiling), *_unranked(data, self.contests(data))]


class Ranking(_OfContests):
    """The methods of each setting by rank, then the references."""

    def table(self, data: ReportData) -> pd.DataFrame:
        return pd.concat([_ranks(data, contest) for contest in self.contests(data)])

    def readable(self, data: ReportData) -> ReadableTable:
        frame = self.table(data)
        own = {name: (column, [_own(row, column) for _, row in frame.iterrows()]) for name, column in _RANKING.items()}
        known = readable_table(data, frame, [name for name in self.columns if name not in own])
        found = {c.name: (c, [cells[i] for cells in known.rows]) for i, c in enumerate(known.columns)} | own
        chosen = [found[name] for name in self.columns if name in found]
        rows = [list(cells) for cells in zip(*(cells for _, cells in chosen), strict=True)]
        shared = " ".join(filter(None, [known.shared, _caution(self.contests(data))]))
        return ReadableTable([column for column, _ in chosen], rows, shared)


class Standings(_OfContests):
    """Each method's wins, ties and losses, summed over the settings."""

    def table(self, data: ReportData) -> pd.DataFrame:
        sums: dict[tuple[str, str], dict] = {}
        for contest in self.contests(data):
            floor = [i for i in range(len(contest.rows)) if i not in contest.ranked]
            for i in contest.ranked:
                row = contest.rows[i]
                record = data.frame.loc[row, ["attention", "landmarks", "iterations", "parameters"]]
                key = (record["attention"], record["parameters"])
                total = sums.setdefault(key, {"method": method_label(data, row), **record, **dict.fromkeys(_COUNTS, 0)})
                against = *contest.results(i, contest.ranked), *contest.results(i, floor)
                counts = 1, int(contest.rank(i)[1] == 1), *against
                total |= {name: total[name] + n for name, n in zip(_COUNTS, counts, strict=True)}
        columns = ["method", "attention", "landmarks", "iterations", "parameters", *_COUNTS]
        frame = pd.DataFrame(list(sums.values()), columns=columns)
        balance = (frame["wins"] - frame["losses"]) / frame[["wins", "ties", "losses"]].sum(axis=1)
        return frame.assign(balance=balance).sort_values("balance", ascending=False, kind="stable", ignore_index=True)

    def readable(self, data: ReportData) -> ReadableTable:
        chosen = [_STANDINGS[name] for name in self.columns]
        rows = [[_own(row, column) for column in chosen] for _, row in self.table(data).iterrows()]
        return ReadableTable(chosen, rows, _caution(self.contests(data)))

    def notes(self, data: ReportData) -> list[str]:
        settings = count(len(self.contests(data)), "setting")
        summed = f"Summed over {settings} of model, window, bias, task, data, device and precision."
        return [summed, *super().notes(data)]


_COUNTS = ["settings", "unbeaten", "wins", "ties", "losses", "identity_wins", "identity_ties", "identity_losses"]
_INTERVAL = "in brackets its 95 % interval over the images"
_WON = "wins, ties (the interval of the difference contains 0) and losses"

_RANKING = {
    c.name: c
    for c in (
        Column("rank", "rank", "By the mean deviation PSNR; in brackets the ranks that ties leave open: from one more "
               "than the losses to the number of methods less the wins. References have none.", 0),
        Column("method", "method", "The attention with the parameters that tell it from its fellows."),
        Column("behind", "behind the closest (dB)", "By how much the closest method's deviation PSNR is higher; "
               f"{_INTERVAL}. ≈0 where the interval contains 0.", 2),
        Column("above_identity", "above no attention (dB)", "By how much the deviation PSNR is higher than that of "
               f"identity, which has no attention at all; {_INTERVAL}. ≈0 where it contains 0; below 0 the method is "
               "farther from the original than nothing.", 2),
        Column("psnr_loss", "PSNR loss (dB)", "By how much the PSNR against the clean image is lower than with exact "
               "attention.", 2),
        Column("results", "won–tied–lost", f"Against the other methods of this setting: {_WON}.", 0),
    )
}  # fmt: skip
_STANDINGS = {
    c.name: c
    for c in (
        Column("method", "method", "The attention with the parameters that tell it from its fellows."),
        Column("settings", "settings", "In how many settings it was ranked.", 0),
        Column("unbeaten", "unbeaten", "In how many of them no method wins against it.", 0),
        Column("results", "won–tied–lost", f"Against all other methods of all settings: {_WON}.", 0),
        Column("balance", "balance", "Wins less losses, over all comparisons: from −1 to 1. The table is in its order.",
               2),
        Column("identity_results", "against no attention", f"Against identity in each setting: {_WON}.", 0),
    )
}  # fmt: skip


def _ranks(data: ReportData, contest: Contest) -> pd.DataFrame:
    """The rows of a setting by rank, then its references; index as in the frame."""
    named = [*GROUP, "images", "attention", "landmarks", "iterations", "parameters"]
    named += ["bias_use", "mask_use", DEVIATION, "psnr"]
    timed = ["latency_ms", "latency_iqr_ms", "setup_ms"]
    timed += [*RATIOS, *(f"{r}_{end}" for r in RATIOS for end in ("low", "high"))]
    setting = data.frame.loc[contest.setting]
    references = setting.index[setting["attention"].isin(REFERENCES)]
    ranked = [contest.rows[i] for i in contest.ranked]
    frame = data.frame.loc[[*ranked, *references], [*named, *timed, "status", "reason"]]
    own = {row: _standing(contest, i) for i, row in enumerate(contest.rows)}
    about = pd.DataFrame([own.get(row, {}) for row in frame.index], frame.index, columns=_STANDING)
    exact = frame.loc[frame["attention"] == ORIGINAL, "psnr"]
    about["psnr_loss"] = (exact.iloc[0] if len(exact) else np.nan) - frame["psnr"]
    about["method"] = [method_label(data, row) for row in frame.index]
    about[_RANKS] = about[_RANKS].astype("Int64")
    first = [*_RANKS[:3], "method"]
    return pd.concat([about[first], frame, about.drop(columns=first)], axis=1)


_RANKS = ["rank", "rank_low", "rank_high", "wins", "ties", "losses"]
_STANDING = _RANKS + [f"{name}{end}" for name in ("behind", "above_identity") for end in ("", "_low", "_high")]


def _standing(contest: Contest, i: int) -> dict:
    """What a contest says of one position."""
    said = {}
    if i in contest.ranked:
        said = dict(zip(_RANKS, (*contest.rank(i), *contest.results(i, contest.ranked)), strict=True))
    floor = [j for j in range(len(contest.rows)) if j not in contest.ranked]
    pairs = {"behind": (contest.ranked[0], i), "above_identity": (i, floor[0] if floor else i)}
    for name, (first, second) in pairs.items():
        if first != second:
            matrices = contest.difference, contest.low, contest.high
            said |= {f"{name}{end}": m[first, second] for end, m in zip(("", "_low", "_high"), matrices, strict=True)}
    return said


def _own(row: pd.Series, column: Column) -> TableCell:
    """A cell of a column that these tables alone have."""
    if column.name.endswith("results"):
        prefix = column.name.removesuffix("results")
        wins, ties, losses = (row[f"{prefix}{name}"] for name in ("wins", "ties", "losses"))
        if pd.isna(wins) or not wins + ties + losses:
            return EMPTY
        return TableCell(f"{wins}–{ties}–{losses}", float(wins - losses), "number")
    value = row[column.name]
    if pd.isna(value):
        return EMPTY
    if column.digits is None:
        return TableCell(str(value), str(value))
    if f"{column.name}_low" not in row:
        return TableCell(number(float(value), column.digits), float(value), "number")
    low, high = row[f"{column.name}_low"], row[f"{column.name}_high"]
    if column.name == "rank":
        return TableCell(f"{value}" if low == high else f"{value} ({low}–{high})", float(value), "number")
    interval = f"{number(low, column.digits)} to {number(high, column.digits)}"
    if low <= 0 <= high:
        hint = "Not distinguishable from 0: the interval contains it."
        return TableCell(f"≈0 ({interval})", float(value), "unsure", hint)
    return TableCell(f"{number(value, column.digits)} ({interval})", float(value), "number")


def _caution(found: list[Contest]) -> str:
    """What few images do to the intervals."""
    fewest = min((contest.images for contest in found), default=ENOUGH_IMAGES)
    if fewest >= ENOUGH_IMAGES:
        return ""
    if fewest == 1:
        return "With one image there is no interval over images: where there is but one, all methods tie."
    return (
        f"An interval over {fewest} images has less than its nominal {100 * LEVEL:g} %: with so few, a win says little "
        "beyond these images."
    )


def _unranked(data: ReportData, found: list[Contest]) -> list[str]:
    """The methods of the ranked settings that have no deviation, with what became of them."""
    lines = []
    for contest in found:
        setting = data.frame.loc[contest.setting]
        without = setting[~setting.index.isin(contest.rows) & ~setting["attention"].isin(REFERENCES)]
        for row, record in without.iterrows():
            named = ", ".join(filter(None, [method_label(data, row), short_label(data, record)]))
            lines.append(f"Not ranked: {named}: {plain(record['reason']) or record['status']}.")
    return lines
