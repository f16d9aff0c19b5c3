"""What tables and figures are made from: the results of a sweep as frames in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nystra_bench.instruments.statistics import Ratio
from nystra_bench.measure.base import Measurement
from nystra_bench.measure.latency import noise_of
from nystra_bench.measure.quality import Quality
from nystra_bench.report.column import Column
from nystra_bench.sweep.cell import Cell
from nystra_bench.sweep.execution import EXECUTION
from nystra_bench.sweep.store import Store
from nystra_bench.words import MACHINE, REFERENCES

SEVERITY = ("done", "skipped", "unstable", "missing", "nonfinite", "failed", "oom", "timeout", "crashed")
"""Statuses from best to worst; the worst of a row's measures is the row's."""

GROUP = ["model", "window", "bias", "task", "task_parameters", "dataset", "device", "dtype"]
"""The columns within which rows are compared with one another; and those of how the model was run (``within``)."""


HOW = (*EXECUTION, MACHINE)
"""The columns of how, and on which machine, models were run; each is there where some rows differ from others in it."""


def within(columns: list[str], frame: pd.DataFrame | dict[str, Any] | pd.Series) -> list[str]:
    """These columns and, where the device is one of them, those of ``HOW`` that are there."""
    return [*columns, *(name for name in HOW if name in frame and "device" in columns)]


@dataclass(frozen=True)
class TimingSession:
    """What one timing session says about itself.

    Attributes:
        group: the values that its rows share, of ``GROUP`` and of how the model was run.
        rounds: how many rounds were timed.
        noise: exact attention against itself (A/A), the ratio that should be 1; None where it was not measured.
        medians: companion -> median latency in ms.
    """

    name: str
    group: dict[str, Any]
    rounds: int
    noise: Ratio | None
    medians: dict[str, float]


@dataclass(frozen=True)
class Panel:
    """The stored pictures of one group, for one image; files are read when they are asked for.

    Attributes:
        group: the values that its rows share, of ``GROUP`` and of how the model was run.
        outputs: index in ``ReportData.frame`` -> file with the output of that row.
        source: file with the degraded and the clean image; None where it is not stored.
    """

    group: dict[str, Any]
    image: str
    outputs: dict[int, Path]
    source: Path | None

    def input(self) -> np.ndarray | None:
        """The degraded image in the clean one's size, (H, W, 3) float32, about [0, 1]; None where it is not stored."""
        return _array(self.source, "input") if self.source else None

    def clean(self) -> np.ndarray | None:
        """The clean image, (H, W, 3) float32 in [0, 1]; None where it is not stored."""
        return _array(self.source, "clean") if self.source else None

    def output(self, row: int) -> np.ndarray:
        """The restored image of a row, (H, W, 3) float32, about [0, 1], not clipped."""
        return _array(self.outputs[row], "output")


def _array(path: Path, name: str) -> np.ndarray:
    with np.load(path, allow_pickle=False) as arrays:
        return arrays[name].astype(np.float32)


@dataclass(frozen=True)
class ReportData:
    """All that tables and figures are made from.

    Attributes:
        store: where the results lie.
        frame: one row per configuration, columns ``names`` first.
        names: the columns that table.csv begins with: ``IDENTITY``, those of the measurements, status and reason.
        columns: what the measurements' columns mean.
        details: same index; ``params`` (dict), ``settings`` (those without a column of their own that differ between
            rows of one attention, as text), ``exact`` (whether the method is exact attention itself), and what the
            measurements tell.
        cells: one row per planned measurement: ``row, key, measure, status, reason``.
        long: measurement -> its long form, with the ``row`` of each record; see ``rows``.
        contents: for each row the content of one of its cells.
        measurements: those of the sweep, by name.
        environments: the distinct environments of the results.
        descriptions: metric -> ``unit``, ``higher_is_better``, ``convention``.
        unavailable: metric -> why it could not be computed.
    """

    sweep: str
    store: Store
    frame: pd.DataFrame
    names: list[str]
    columns: dict[str, Column]
    details: pd.DataFrame
    cells: pd.DataFrame
    long: dict[str, pd.DataFrame] = field(default_factory=dict)
    contents: list[dict] = field(default_factory=list)
    measurements: dict[str, Measurement] = field(default_factory=dict)
    environments: list[dict] = field(default_factory=list)
    descriptions: dict[str, dict] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)

    def rows(self, measure: str) -> pd.DataFrame:
        """The long form of a measurement, ``row`` being the index in ``frame``; empty where nothing was measured."""
        return self.long.get(measure, pd.DataFrame(columns=["row"]))

    def replaces(self, rows: pd.DataFrame) -> pd.Series:
        """Whether the attention of each row is a replacement: neither exact attention in some form, nor none at all."""
        return ~(self.details.loc[rows.index, "exact"].astype(bool) | rows["attention"].isin(REFERENCES))

    @property
    def images(self) -> pd.DataFrame:
        """One record per configuration, image and metric: ``row, image, height, width, metric, value``."""
        return self.long.get("quality", pd.DataFrame(columns=["row", *Quality.row_columns]))

    @cached_property
    def shared_columns(self) -> list[str]:
        """The columns of ``GROUP`` in which all rows agree."""
        return [name for name in within(GROUP, self.frame) if self.frame[name].nunique(dropna=False) == 1]

    @cached_property
    def sessions(self) -> list[TimingSession]:
        """The timing sessions, in the order of their rows."""
        timed = self.rows("latency")
        if timed.empty:
            return []
        found: dict[str, TimingSession] = {}
        for row in dict.fromkeys(timed["row"]):
            group, name = self._group(row), self._session_name(row)
            if name not in found:
                samples = {e: list(of["ms"]) for e, of in timed[timed["row"] == row].groupby("entry", sort=False)}
                own = samples.pop("own")
                medians = {entry: float(np.median(times)) for entry, times in samples.items() if times}
                found[name] = TimingSession(name, group, len(own), noise_of(samples), medians)
        return list(found.values())

    def session_of(self, row: int) -> TimingSession:
        """The session that a row with a latency was timed in."""
        return next(session for session in self.sessions if session.name == self._session_name(row))

    def _group(self, row: int) -> dict[str, Any]:
        return {column: self.frame.at[row, column] for column in within(GROUP, self.frame)}

    def _session_name(self, row: int) -> str:
        return f"{self.details.at[row, 'latency_session']} {list(self._group(row).values())}"

    def files(self, measure: str, name: str) -> dict[int, Path]:
        """Row -> the file of this name that a measurement attached to its result, where there is one."""
        keys = self.cells[self.cells["measure"] == measure]
        paths = {int(cell.row): self.store.folder / cell.key / name for cell in keys.itertuples()}
        return {row: path for row, path in paths.items() if path.is_file()}

    def panels(self) -> list[Panel]:
        """One panel per group and stored image, in the order of the rows."""
        found: dict[str, Panel] = {}
        for row, output in self.files("quality", "output.npz").items():
            with np.load(output, allow_pickle=False) as arrays:
                image = str(arrays["id"])
            group = self._group(row)
            source = self.store.panel_images(Cell.of(self.contents[row]), image)
            panel = Panel(group, image, {}, source if source.is_file() else None)
            panel = found.setdefault(f"{list(group.values())} {image}", panel)
            panel.outputs[row] = output
        return list(found.values())
