"""The table of spectra: medians over layers and heads, and quartiles beside them."""

from __future__ import annotations

import math

import pandas as pd

from nystra_bench.report.base import Table
from nystra_bench.report.columns import EMPTY, ReadableTable, TableCell, readable_table
from nystra_bench.report.frame import ReportData
from nystra_bench.words import IDENTITY

SHOWN = (
    *("energy_20", "rank_90", "rank_99", "effective_tokens", "self_mass", "logit_std"),
    *("matrix_mse", "spectral_error"),
)
"""The numbers that the readable form has; the CSV has all of them."""


class SpectrumTable(Table):
    """One row for each configuration with spectra, over all layers and heads."""

    place = 40

    def nothing(self, data: ReportData) -> str | None:
        return "The sweep has no spectra (measure=spectrum)." if data.rows("spectrum").empty else None

    def table(self, data: ReportData) -> pd.DataFrame:
        """The configurations with ``<number>_median``, ``_q1`` and ``_q3``, and ``heads``, that they are over."""
        rows = data.rows("spectrum")
        by_row = rows.groupby("row", sort=False)
        names = data.measurements["spectrum"].names
        statistics = {}
        for name in names:
            statistics[f"{name}_median"] = by_row[name].median()
            for label, quantile in (("q1", 0.25), ("q3", 0.75)):  # one of the numbers, since ranks may be infinite
                statistics[f"{name}_{label}"] = by_row[name].quantile(quantile, interpolation="nearest")
        heads, tokens = by_row.size(), by_row["tokens"].agg(["min", "max"])
        settings = [name for name in IDENTITY[:11] if name in data.frame] + ["device", "dtype", "task_parameters"]
        frame = data.frame.loc[heads.index, list(dict.fromkeys(settings))]
        frame = frame.assign(heads=heads, tokens_min=tokens["min"], tokens_max=tokens["max"])
        return frame.join(pd.DataFrame(statistics))

    def readable(self, data: ReportData) -> ReadableTable:
        frame = self.table(data)
        settings = readable_table(data, data.frame.loc[frame.index], self.columns)
        known = {column.name: column for column in data.measurements["spectrum"].columns}
        columns = [known[name] for name in SHOWN if frame[f"{name}_median"].notna().any()]
        rows = [
            [*cells, *(_cell(row, column.name) for column in columns)]
            for cells, (_, row) in zip(settings.rows, frame.iterrows(), strict=True)
        ]
        return ReadableTable(settings.columns + columns, rows, settings.shared)

    def notes(self, data: ReportData) -> list[str]:
        return [
            "Median over the layers and heads of the model, and in brackets the quartiles; each number of a head is a "
            "mean over the windows looked at. Energy is the sum of squared singular values. Logits are those of exact "
            "attention, QKᵀ + B where no mask is. Methods are given the queries and keys of the exact model; effective "
            "tokens are told only where no weight is negative."
        ]


def _cell(row: pd.Series, name: str) -> TableCell:
    median, low, high = (float(row[f"{name}_{label}"]) for label in ("median", "q1", "q3"))
    if math.isnan(median):
        return EMPTY
    text = f"{short(median)} ({short(low)}–{short(high)})"
    return TableCell(text, median, "number", "Median, and in brackets the quartiles.")


def short(value: float) -> str:
    """Four significant digits, whatever the scale; an infinity as its sign."""
    return "∞" if math.isinf(value) else f"{value:.4g}"


