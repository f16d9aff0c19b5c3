"""The table of spectral errors: what was measured in the layers of a model, and what Lemma 2.1 allows."""

from __future__ import annotations

import math

import pandas as pd

from nystra_bench.report.base import Table
from nystra_bench.report.columns import EMPTY, Column, ReadableTable, TableCell, readable_table
from nystra_bench.report.frame import ReportData
from nystra_bench.words import IDENTITY, count

_NUMBERS = [
    Column("matrix_error", "attention matrix error", "‖P − P̂‖₂/‖P‖₂ with P = softmax(QKᵀ + B + M), the exact "
           "attention matrix, and P̂ the method's.", 3),
    Column("kernel_error", "kernel error", "‖G − Ĝ‖₂/‖G‖₂ with G the kernel of the published method and Ĝ = L Z U, "
           "Z the method's own iteration for the pseudo-inverse of A.", 3),
    Column("kernel_error_pinv", "kernel error, true inverse", "The same with the true pseudo-inverse, Z = A†.", 3),
    Column("kernel_floor", "rank-m floor", "σₘ₊₁(G̃)/‖G‖₂, with G̃ the kernel of landmarks and tokens: no true A† comes "
           "nearer.", 3),
    Column("gap", "σ quotient", "σₘ₊₁(G̃)/σₘ(A): Lemma 2.1 bounds the error by it, but for the factor C.", 3),
    Column("kernel_projection", "projection bound", "‖[A; L]A†‖₂ ‖(I − Π)G̃‖₂/‖G‖₂, Π the projection onto the columns "
           "of A and L: the last step of the proof that is computed, not estimated.", 3),
    Column("kernel_bound", "bound of Lemma 2.1", "√2 σ₁(G̃)² σₘ₊₁(G̃)/(σₘ(A)² ‖G‖₂).", 3),
]  # fmt: skip


class BoundTable(Table):
    """Medians and maxima over layers, heads and windows, one row for each configuration with spectral errors."""

    made_of = ("bound",)

    def nothing(self, data: ReportData) -> str | None:
        return "The sweep has no spectral errors (measure=bound)." if data.rows("bound").empty else None

    def table(self, data: ReportData) -> pd.DataFrame:
        """The configurations with ``<number>_median`` and ``<number>_max``; ``looked_at`` counts what they are over."""
        names = [c.name for c in _NUMBERS if c.name in data.rows("bound")]
        by_row = data.rows("bound").groupby("row")
        statistics = by_row[names].agg(["median", "max"])
        statistics.columns = ["_".join(column) for column in statistics.columns]
        settings = [name for name in IDENTITY[:11] if name in data.frame] + ["task_parameters"]
        frame = data.frame.loc[statistics.index, settings]
        return frame.assign(layers=by_row["layer"].nunique(), looked_at=by_row.size()).join(statistics)

    def readable(self, data: ReportData) -> ReadableTable:
        frame = self.table(data)
        settings = readable_table(data, data.frame.loc[frame.index], self.columns)
        numbers = [c for c in _NUMBERS if f"{c.name}_median" in frame]
        rows = [
            [*cells, *(_cell(row[f"{c.name}_median"], row[f"{c.name}_max"]) for c in numbers)]
            for cells, (_, row) in zip(settings.rows, frame.iterrows(), strict=True)
        ]
        return ReadableTable(settings.columns + numbers, rows, settings.shared)

    def notes(self, data: ReportData) -> list[str]:
        spread = (
            "Median over layers, heads and a seeded sample of windows of the first image, and in brackets the maximum; "
            "float64, on the queries and keys of the exact model. Errors are relative spectral norms: an error of 1 is "
            "that of a matrix of zeros."
        )
        return [spread, *_lemma(data.rows("bound"))]


def _lemma(bounds: pd.DataFrame) -> list[str]:
    """In how many cases the bounds hold, and how far they are from what is measured."""
    if "kernel_bound" not in bounds or bounds["kernel_bound"].isna().all():
        return []
    # The exact quantities are the same whatever the iterations are; they are counted once.
    found = ["kernel_floor", "kernel_error_pinv", "kernel_projection", "kernel_bound"]
    kernels = bounds.dropna(subset="kernel_bound").drop_duplicates(["layer", "head", "window", *found])
    bounded = kernels[kernels["kernel_bound"] < math.inf]
    said = (
        f"{count(len(kernels), 'kernel')}: in {len(kernels) - len(bounded)} of them A is singular to working "
        "precision, and the lemma says nothing"
    )
    if bounded.empty:
        return [f"{said}."]
    error = bounded["kernel_error_pinv"]
    above = int((bounded["kernel_floor"] <= error).sum())
    held = [int((error <= bounded[name]).sum()) for name in ("kernel_projection", "kernel_bound")]
    loose = [_short((bounded[name] / error).median()) for name in ("kernel_projection", "kernel_bound")]
    return [
        f"{said}. In the other {len(bounded)}, the error with the true pseudo-inverse is at least the rank-m floor in "
        f"{above}, at most the projection bound in {held[0]} and at most the lemma's bound in {held[1]}; "
        f"the projection bound is {loose[0]} times the error in the median, the lemma's {loose[1]} times."
    ]


def _cell(median: float, largest: float) -> TableCell:
    if pd.isna(median):
        return EMPTY
    text = f"{_short(median)} ({_short(largest)})"
    return TableCell(text, float(median), "number", "Median, and in brackets the maximum.")


def _short(value: float) -> str:
    """Three significant digits, whatever the scale; an infinity as its sign."""
    return "∞" if math.isinf(value) else f"{value:.3g}"
