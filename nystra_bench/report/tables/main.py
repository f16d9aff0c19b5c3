"""The table of a sweep: every row and column as CSV, a readable part of it for people."""

from __future__ import annotations

import pandas as pd

from nystra_bench.report.base import Table
from nystra_bench.report.columns import ReadableTable, readable_table
from nystra_bench.report.frame import COLUMNS, ReportData
from nystra_bench.report.wording import ORIGINALS, conventions, noise_lines


class MainTable(Table):
    """All configurations of the sweep."""

    place = 1

    def table(self, data: ReportData) -> pd.DataFrame:
        return data.frame

    def readable(self, data: ReportData) -> ReadableTable:
        """The columns asked for; ``other_metrics`` stands for all metrics that the schema has no column for.

        Those that repeat a column are left out, as PSNR on RGB is where PSNR itself is on RGB.
        """
        known = {*COLUMNS, "task_parameters", *self.columns}
        other = [name for name in data.frame if name not in known and not name.startswith("input_")]
        other = [name for name in other if not any(data.frame[name].equals(data.frame[n]) for n in ("psnr", "ssim"))]
        names = [n for name in self.columns for n in (other if name == "other_metrics" else [name])]
        return readable_table(data, self.table(data), names)

    def notes(self, data: ReportData) -> list[str]:
        speed = "Speed-ups with a bootstrap 95 % interval; ≈1 where it contains 1; not shown without a deviation."
        found = {"Noise floor (A/A)": noise_lines(data), "Metrics": conventions(data)}
        return [speed, *(f"{what}: {' '.join(lines)}" for what, lines in found.items() if lines), ORIGINALS]
