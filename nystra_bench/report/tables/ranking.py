"""The ranking of each setting by closeness to the exact output, and the standings over all; rules in ``contests``."""

from __future__ import annotations

import numpy as np
import pandas as pd

from nystra_bench.instruments.statistics import ENOUGH, LEVEL, interval_rank
from nystra_bench.measure.latency import RATIOS
from nystra_bench.report.base import Table
from nystra_bench.report.column import Column
from nystra_bench.report.columns import EMPTY, ReadableTable, TableCell, number, plain, readable_table
from nystra_bench.report.frame import GROUP, ReportData, within
from nystra_bench.report.tables.contests import DEVIATION, Contest, contests
from nystra_bench.report.wording import method_label, short_label
from nystra_bench.words import ORIGINAL, count

RULES = (
    "Methods are compared in pairs, image by image, by their deviation PSNR. "
    f"One wins where the {100 * LEVEL:g} % interval of the median difference excludes 0 (sign test: the interval "
    "reaches from one of the differences to another, and assumes nothing of their distribution); else they tie. "
    "Methods stand by their mean, but none above one that wins against it. "
    "In brackets stand the ranks that ties leave open: from one more than the losses to the number of methods less the "
    "wins. "
    "Deviations above {ceiling:g} dB count as that, and outputs that are not finite as infinitely far. "
    "exact, sdpa and identity are references and have no rank."
)


class _OfContests(Table):
    """What both tables share.

    Args:
        least: approximating methods that a setting needs to be ranked.
        ceiling: deviations in dB above are the same but for rounding.
    """

    made_of = ("quality",)

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
            for i in contest.ranked:
                row = contest.rows[i]
                record = data.frame.loc[row, ["attention", "landmarks", "iterations", "parameters"]]
                key = (record["attention"], record["parameters"])
                total = sums.setdefault(key, {"method": method_label(data, row), **record, **dict.fromkeys(_COUNTS, 0)})
                against = *contest.results(i, contest.ranked), *contest.results(i, contest.floor)
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
_INTERVAL = "median over the images, in brackets its interval"
_WON = "wins, ties (the interval of the difference contains 0) and losses"

_RANKING = {
    c.name: c
    for c in (
        Column("rank", "rank", "By the mean deviation PSNR, but never above a method that wins; in brackets the ranks "
               "that ties leave open: from one more than the losses to the number of methods less the wins. References "
               "have none.", 0),
        Column("method", "method", "The attention with the parameters that tell it from its fellows."),
        Column("behind", "behind the first (dB)", "By how much the deviation PSNR of the first in rank is higher: "
               f"{_INTERVAL}. ≈0 where the interval contains 0.", 2),
        Column("above_identity", "above no attention (dB)", "By how much the deviation PSNR is higher than that of "
               f"identity, which has no attention at all: {_INTERVAL}. ≈0 where it contains 0; below 0 the method is "
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
    named = [*within(GROUP, data.frame), "images", "attention", "landmarks", "iterations", "parameters"]
    named += ["bias_use", "mask_use", DEVIATION, "psnr"]
    timed = ["latency_ms", "latency_iqr_ms", "setup_ms"]
    timed += [*RATIOS, *(f"{r}_{end}" for r in RATIOS for end in ("low", "high"))]
    setting = data.frame.loc[contest.setting]
    references = setting.index[~data.replaces(setting)]
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
    pairs = {"behind": (0, i), "above_identity": (i, next(iter(contest.floor), i))}
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
    fewest = min((contest.images for contest in found), default=ENOUGH)
    if fewest >= ENOUGH:
        return ""
    if fewest == 1:
        return "With one image there is no interval over images: where there is but one, all methods tie."
    level = interval_rank(fewest)[1]
    return (
        f"An interval over {fewest} images is the range of their differences, with a level of {100 * level:.3g} % "
        f"instead of {100 * LEVEL:g} %: with so few, a win says little beyond these images."
    )


def _unranked(data: ReportData, found: list[Contest]) -> list[str]:
    """The methods of the ranked settings that have no deviation, with what became of them."""
    lines = []
    for contest in found:
        setting = data.frame.loc[contest.setting]
        without = setting[~setting.index.isin(contest.rows) & data.replaces(setting)]
        for row, record in without.iterrows():
            named = ", ".join(filter(None, [method_label(data, row), short_label(data, record)]))
            lines.append(f"Not ranked: {named}: {plain(record['reason']) or record['status']}.")
    return lines
