"""The exponents by which time and memory of attentions grow with the number of tokens, with their intervals."""

from __future__ import annotations

import pandas as pd

from nystra_bench.instruments.statistics import LEVEL
from nystra_bench.measure.scaling import FIT_FROM
from nystra_bench.report.base import Table
from nystra_bench.report.columns import EMPTY, Column, ReadableTable, TableCell, number, table_cell
from nystra_bench.report.frame import ReportData
from nystra_bench.report.wording import method_label

_COLUMNS = {
    column.name: column
    for column in (
        Column("shape", "shape", "Whose heads and channels: SwinIR-M has 6 heads of 30, Uformer-B 1 to 16 of 32, "
               "DehazeFormer-B 2 of 12 at full resolution, global attention (FIWHN) 9 of 16."),
        Column("mode", "mode", "window: one window of N tokens; image: a map of 256×256 tokens cut into windows of N."),
        Column("method", "method", "The attention with the parameters that tell it from its fellows."),
        Column("device", "device", "Where it was measured."),
        Column("dtype", "dtype", "Precision of the computation."),
        Column("time_exponent", "time ∝ N^b", "b with its interval, N the tokens of a window.", 2),
        Column("memory_exponent", "memory ∝ N^b", "The same of the peak memory.", 2),
        Column("largest_tokens", "largest N", "The largest number of tokens of a window that was measured.", 0),
        Column("largest_ms", "time there (ms)", "Median time of one call.", 1),
        Column("largest_mb", "memory there (MB)", "Peak memory of one call above its inputs; MB are 10^6 bytes.", 1),
        Column("curve_end", "why no further", "Why the curve ends before the last size, and at which."),
        Column("status", "status", "What became of the measurement."),
    )
}  # fmt: skip


class ScalingTable(Table):
    """One row for each attention, shape and mode; those that failed, too."""

    def nothing(self, data: ReportData) -> str | None:
        return "The sweep has no exponents (measure=scaling)." if data.rows("scaling").empty else None

    def table(self, data: ReportData) -> pd.DataFrame:
        """``method``, where it was measured, the exponents with ``…_low`` and ``…_high``, and the last size."""
        measured = data.rows("scaling")
        by_row = measured.groupby("row", sort=False)
        frame = data.frame.loc[list(by_row.groups)]
        own = [name for name in data.measurements["scaling"].names if name in frame]
        named = ["attention", "landmarks", "iterations", "parameters", "device", "dtype", *own, "status", "reason"]
        frame = frame[named].assign(method=[method_label(data, row) for row in frame.index])
        last = measured[measured["ms"].notna()].groupby("row")["peak_mb"].last()
        frame = frame.assign(shape=by_row["shape"].first(), mode=by_row["mode"].first(), largest_mb=last)
        first = ["shape", "mode", "method"]
        frame = frame[first + [name for name in frame if name not in first]]
        order = {key: place for place, key in enumerate(dict.fromkeys(zip(frame["shape"], frame["mode"], strict=True)))}
        places = pd.Series([order[key] for key in zip(frame["shape"], frame["mode"], strict=True)], frame.index)
        return frame.loc[places.sort_values(kind="stable").index]

    def readable(self, data: ReportData) -> ReadableTable:
        frame = self.table(data)
        columns = [_COLUMNS[name] for name in self.columns if name in frame and frame[name].notna().any()]
        rows = [[_cell(row, column) for column in columns] for _, row in frame.iterrows()]
        return ReadableTable(columns, rows)

    def notes(self, data: ReportData) -> list[str]:
        return [
            f"b is the slope of log cost over log N by least squares, in brackets the {100 * LEVEL:g} % t-interval of "
            f"the regression, which tells how well a power law fits; in window mode from N = {FIT_FROM['window']} to "
            "the largest N of the method, in image mode over all sizes (there the number of all tokens stays, and "
            "exact attention has b = 1).",
            "No position bias and no mask; inputs of equal statistics for all methods. The exponent is that of the "
            "sizes that a method reached: read it beside the largest N.",
        ]


def _cell(row: pd.Series, column: Column) -> TableCell:
    if not column.name.endswith("_exponent") or pd.isna(row[column.name]):
        return table_cell(row, column) if not pd.isna(row[column.name]) else EMPTY
    value, low, high = (row[column.name + end] for end in ("", "_low", "_high"))
    text = f"{number(value, 2)} ({number(low, 2)} to {number(high, 2)})"
    return TableCell(text, float(value), "number", "In brackets the interval of the regression's slope.")
