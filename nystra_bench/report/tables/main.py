"""The table of a sweep: every row and column as CSV, a readable part of it for people."""

from __future__ import annotations

import pandas as pd

from nystra_bench.instruments.statistics import ENOUGH, LEVEL
from nystra_bench.report.base import Table
from nystra_bench.report.columns import ReadableTable, readable_table
from nystra_bench.report.frame import HOW, ReportData
from nystra_bench.report.wording import conventions, kept, noise_lines, originals, untrained
from nystra_bench.words import IDENTITY, LAST, OUTCOME


class MainTable(Table):
    """All configurations of the sweep."""

    place = 1

    def table(self, data: ReportData) -> pd.DataFrame:
        return data.frame

    def readable(self, data: ReportData) -> ReadableTable:
        """The columns asked for; ``other_metrics`` stands for all metrics that the schema has no column for,
        ``execution`` for those of how, and on which machine, the models were run.

        Those that repeat a column are left out, as PSNR on RGB is where PSNR itself is on RGB.
        """
        known = {*self._known(data), *self.columns}
        other = [name for name in data.frame if name not in known and not name.startswith("input_")]
        other = [name for name in other if not any(data.frame[name].equals(data.frame[n]) for n in ("psnr", "ssim"))]
        meant = {"other_metrics": other, "execution": [*HOW]}
        names = [n for name in self.columns for n in meant.get(name, [name])]
        return readable_table(data, self.table(data), names)

    def _known(self, data: ReportData) -> set[str]:
        """Columns whose place is decided: those of every table, and of measurements of which one is named here."""
        known = {*IDENTITY, *HOW, *OUTCOME, *LAST}
        for made in data.measurements.values():
            if {*made.names} & {*self.columns}:
                known |= {*made.names}
        return known

    def notes(self, data: ReportData) -> list[str]:
        speed = (
            f"Speed-ups with a {100 * LEVEL:g} % interval (of fewer than {ENOUGH} rounds the range, whose level is "
            "told with the noise floor); ≈1 where it contains 1; not shown without a deviation."
        )
        noise = noise_lines(data)
        found = {"Noise floor (A/A)": noise, "Metrics": conventions(data)}
        listed = [f"{what}: {' '.join(lines)}" for what, lines in found.items() if lines]
        return [*([speed] if noise else []), *listed, *kept(data), *untrained(data), *filter(None, [originals(data)])]
