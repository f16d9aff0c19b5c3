"""The tables of the PnP-Nystra paper (arXiv 2506.08520v1): published and measured numbers side by side.

Three kinds, never mixed: what the paper prints beside the same measured here; what a pass costs at the paper's sizes;
and the table's form filled by other models, under a title that says so.
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from nystra_bench.report.base import Table
from nystra_bench.report.column import Column
from nystra_bench.report.columns import EMPTY, ReadableTable, TableCell, interval_cell, number, plain, readable_table
from nystra_bench.report.frame import GROUP, ReportData, within
from nystra_bench.report.published import COMPARED_BY_RATIO, DEVICES, METRICS, select, stands_for, with_losses
from nystra_bench.report.wording import noise_lines, untrained
from nystra_bench.words import FLOOR, ORIGINAL

PAPERS_BIAS = "drop"
"""The paper's larger windows have neither position bias nor shift mask."""


class OfPaper(Table):
    """A table of paper sweeps: it is left out, and not announced as empty, where none of its models is in the sweep.

    Args:
        title, columns, stem: see ``Table``.
        models: of which one at least is in the sweeps that the table belongs to.
    """

    place = 0

    def __init__(self, title: str, models: list[str], columns: list[str], stem: str | None = None):
        super().__init__(title, columns, stem)
        self.models = list(models)

    def nothing(self, data: ReportData) -> str | None:
        if data.frame["model"].isin(self.models).any():
            return None
        return f"The sweep has none of the models {', '.join(self.models)}."

    def missed(self, data: ReportData) -> bool:
        return False


# --------------------------------------------------------------------------- published beside measured

_COMPARED = [
    Column("setting", "setting", "Data, scale and size of the input, as the paper's table has them."),
    Column("device", "device", "The paper's; its GPU and CPU are others than those of the measurement."),
    Column("method", "method", "As published: original is exact attention in the larger window without bias and mask."),
    Column("metric", "metric", "PSNR and SSIM are of RGB; latency is of one image."),
    Column("published", "published", "The paper's number.", 2),
    Column("measured", "measured", "The same here.", 2),
    Column("comparison", "difference or ratio", "Measured less published; of latencies and attention errors measured "
           "over published.", 2),
    Column("remark", "remark", "Why it was not measured, or what is to be known of it: see below the table."),
]  # fmt: skip
_DIGITS = {"psnr": 2, "psnr_drop": 2, "latency": 0}
_UNITS = {"ms": " ms", "dB": " dB"}


class PaperTable(OfPaper):
    """One table of the paper, a row for each number that it prints.

    Args:
        title, models, stem: see ``OfPaper``.
        number: of the table in ``published.csv``, in Roman numerals.
        nystra: the parameters that the paper gives its method in this table.
        settings: each with ``published`` (the entries that tell its rows from the table's others), and ``measured``
            (columns of table.csv, among them the ``model``, that tell the rows here) or ``lacks`` (why there are none).
    """

    def __init__(
        self,
        title: str,
        number: str,
        models: list[str],
        nystra: Mapping[str, int],
        settings: list[Mapping[str, Any]],
        stem: str | None = None,
    ):
        super().__init__(title, models, [column.name for column in _COMPARED], stem)
        self.number, self.nystra, self.settings = number, dict(nystra), list(settings)

    def table(self, data: ReportData) -> pd.DataFrame:
        """Also ``difference`` and ``ratio``, whichever is shown, and ``model``, ``attention``, ``parameters`` here."""
        frame = with_losses(data.frame, within(GROUP, data.frame))
        return pd.DataFrame(
            self._record(data, frame, setting, number)
            for setting in self.settings
            for _, number in select({"table": self.number, **setting["published"]}).iterrows()
        )

    def _record(self, data: ReportData, frame: pd.DataFrame, setting: Mapping, published: pd.Series) -> dict:
        told = {name: published[name] for name in published.index if name not in ("source", "value")}
        attention, parameters = stands_for(published["method"], self.nystra)
        found = _Found(data, frame, setting, published, attention, parameters)
        value = found.value
        return told | {
            "published": published["value"],
            "measured": value,
            "difference": value - published["value"],
            "ratio": value / published["value"],
            "measured_model": setting.get("measured", {}).get("model"),
            "measured_attention": attention,
            "status": found.status,
            "remark": found.remark,
        }

    def readable(self, data: ReportData) -> ReadableTable:
        frame = self.table(data)
        marks = _marks(frame["remark"])
        rows = [[self._cell(row, column, marks) for column in _COMPARED] for _, row in frame.iterrows()]
        return ReadableTable(list(_COMPARED), rows)

    def _cell(self, row: pd.Series, column: Column, marks: Mapping[str, str]) -> TableCell:
        if column.name in ("published", "measured"):
            return _quantity(row[column.name], row)
        if column.name == "comparison":
            return _comparison(row)
        if column.name == "remark":
            mark = marks.get(row["remark"], "")
            return TableCell(mark, mark, "text", row["remark"]) if mark else EMPTY
        text = _setting(row) if column.name == "setting" else str(row[column.name])
        return TableCell(text, text) if text else EMPTY

    def notes(self, data: ReportData) -> list[str]:
        remarks = [f"{mark}: {remark}." for remark, mark in _marks(self.table(data)["remark"]).items()]
        source = (
            "Published: arXiv 2506.08520v1, table "
            f"{self.number}, from results/paper/published.csv. The paper's machines are others than this one: read the "
            "ratio of two latencies of one column, not one latency beside the other."
        )
        return [source, *remarks, *untrained(data)]


class _Found:
    """What the sweep has for one published number: the ``value`` (nan without one), its ``status`` and a ``remark``."""

    def __init__(
        self,
        data: ReportData,
        frame: pd.DataFrame,
        setting: Mapping,
        published: pd.Series,
        attention: str,
        parameters: Mapping,
    ):
        self.data, self.published = data, published
        self.measure, self.column = METRICS[published["metric"]]
        self.value, self.status, self.remark = float("nan"), "missing", setting.get("lacks", "")
        if "measured" in setting:
            self._look(self._candidates(frame, setting["measured"], attention, parameters))

    def _candidates(self, frame: pd.DataFrame, where: Mapping, attention: str, parameters: Mapping) -> pd.DataFrame:
        """The rows of the setting and method, the paper's bias mode and window, on any device."""
        wanted = {"bias": PAPERS_BIAS, "window": int(self.published["window"]), "attention": attention, **where}
        found = frame[_agrees(frame, wanted)]
        has = self.data.details["params"].loc[found.index].map(lambda own: parameters.items() <= own.items())
        return found[has.astype(bool)]

    def _look(self, rows: pd.DataFrame) -> None:
        device, resolution = DEVICES.get(self.published["device"]), self.published["resolution"]
        if rows.empty:
            self.remark = "the sweep has no such cell"
            return
        of_device = rows[rows["device"] == device] if device else rows
        if of_device.empty:
            self.remark = f"nothing was measured on a GPU: device={device} needs one"
            return
        values = of_device[self.column] if self.column in of_device else pd.Series(float("nan"), of_device.index)
        if resolution and self.column == "latency_ms":
            values = values[self.data.details["latency_input"].loc[values.index] == resolution]
        known = values.dropna()
        if len(known):
            self.value = float(known.iloc[0])
        self._tell(of_device if known.empty else of_device.loc[known.index[:1]])

    def _tell(self, rows: pd.DataFrame) -> None:
        """Status and reason of these rows' cells, where they are not simply done."""
        cells = self.data.cells[self.data.cells["row"].isin(rows.index) & (self.data.cells["measure"] == self.measure)]
        troubled = cells[cells["status"] != "done"]
        if len(troubled):
            cell = troubled.iloc[0]
            self.status, reason = cell["status"], plain(cell["reason"]) or "no reason given"
            self.remark = reason if self.status in ("skipped", "missing") else f"{self.status}: {reason}"
        elif len(cells):
            self.status = "done"
            if self.measure == "quality":
                self.remark = f"the mean over {plain(rows['images'].iloc[0])} images"
        else:
            self.remark = f"the sweep does not measure it (measure={self.measure})"


def _agrees(frame: pd.DataFrame, wanted: Mapping[str, Any]) -> pd.Series:
    """Which rows have all these values, compared as text; ``model`` also where a digest tells two of one name apart."""
    fits = pd.Series(True, frame.index)
    for column, value in wanted.items():
        texts = frame[column].map(plain)
        fits &= (texts.str.partition("@")[0] if column == "model" else texts) == str(value)
    return fits


def _marks(remarks: pd.Series) -> dict[str, str]:
    """A letter for each remark, in their order."""
    letters = (f"({''.join(pair)})" for n in (1, 2) for pair in itertools.product(string.ascii_lowercase, repeat=n))
    return {remark: next(letters) for remark in dict.fromkeys(remarks) if remark}


def _setting(row: pd.Series) -> str:
    words = [row["dataset"], f"×{row['scale']}" if row["scale"] else "", row["resolution"]]
    return ", ".join(filter(None, words))


def _quantity(value: float, row: pd.Series) -> TableCell:
    if pd.isna(value):
        return EMPTY
    text = f"{value:.2e}" if row["metric"] == "attention_mse" else number(float(value), _DIGITS.get(row["metric"], 4))
    return TableCell(text + _UNITS.get(row["unit"], ""), float(value), "number")


def _comparison(row: pd.Series) -> TableCell:
    if pd.isna(row["measured"]):
        return EMPTY
    if row["metric"] in COMPARED_BY_RATIO:
        return TableCell(f"×{number(float(row['ratio']), 2)}", float(row["ratio"]), "number")
    text = number(float(row["difference"]), _DIGITS.get(row["metric"], 4))
    sign = "+" if row["difference"] > 0 else ""
    return TableCell(sign + text + _UNITS.get(row["unit"], ""), float(row["difference"]), "number")


# --------------------------------------------------------------------------- what a pass costs at the paper's sizes

_TIMED = [
    Column("setting", "model and input", "The model, by its configuration, and height and width of its input."),
    Column("window", "window", "Side of the attention window.", 0),
    Column("method", "attention", "The method in the place of the model's attention."),
    Column("paper_latency_ms", "paper's CPU (ms)", "The paper's latency on its CPU.", 0),
    Column("paper_speedup", "paper's speed-up", "Of its method over its original, on its CPU.", 2),
    Column("latency_ms", "latency (ms)", "Median of one forward pass here.", 0),
    Column("speedup_vs_exact", "vs exact", "How many times as fast as exact attention, with the interval.", 2),
    Column("speedup_ratio", "measured over paper's", "The speed-up against exact over the paper's.", 2),
    Column("speedup_vs_sdpa", "vs sdpa", "How many times as fast as PyTorch's fused exact attention.", 2),
    Column("speedup_vs_native", "vs native", "How many times as fast as the model as released, with windows of 8.", 2),
    Column("attention_share", "attention's share", "Of the latency, what is gone without any attention (identity).", 2),
    Column("status", "status", "What became of the timing."),
]  # fmt: skip


class PaperTimings(OfPaper):
    """Latency and speed-ups at the paper's sizes, beside its own on a CPU; the weights may be random.

    Args:
        title, stem: see ``OfPaper``.
        settings: each with ``measured`` (columns of table.csv, among them the ``model``), the ``input`` (height x
            width) and, where the paper has it, ``published`` (entries of its latencies) and ``nystra`` (its method's
            parameters).
    """

    place = -1

    def __init__(self, title: str, settings: list[Mapping[str, Any]], stem: str | None = None):
        models = list(dict.fromkeys(setting["measured"]["model"] for setting in settings))
        super().__init__(title, models, [column.name for column in _TIMED], stem)
        self.settings = list(settings)

    def table(self, data: ReportData) -> pd.DataFrame:
        """One row for each timed row of a setting; of one that was not timed, the paper's numbers."""
        records = [record for setting in self.settings for record in self._records(data, setting)]
        return pd.DataFrame(records)

    def _records(self, data: ReportData, setting: Mapping) -> Iterator[dict]:
        rows = data.frame[_agrees(data.frame, setting["measured"] | {"bias": PAPERS_BIAS})]
        if rows.empty:
            return
        shown = {"setting": f"{setting['measured']['model']}, {setting['input']}", "window": rows["window"].iloc[0]}
        timed = rows[data.details["latency_input"].loc[rows.index] == setting["input"]]
        if timed.empty:
            status = _why_untimed(rows[rows["latency_ms"].isna()])
            yield from (shown | record | {"status": status} for record in self._untimed(setting))
        for index, row in timed.iterrows():
            paper = self._paper(setting, row["attention"], data.details.at[index, "params"], row["device"])
            share = 1 - row["floor_ms"] / row["latency_ms"]
            kept = {name: row[name] for name in row.index if name.startswith(("latency", "speedup"))}
            known = {"method": _method(row), "device": row["device"], "attention_share": share, "status": row["status"]}
            ratio = row["speedup_vs_exact"] / paper.get("paper_speedup", float("nan"))
            yield shown | known | kept | paper | {"speedup_ratio": ratio, "reason": row["reason"]}

    def _untimed(self, setting: Mapping) -> list[dict]:
        """What the paper has of a setting that was not timed here, or one row without numbers."""
        methods = {"original": (ORIGINAL, {}), "pnp_nystra": stands_for("pnp_nystra", setting.get("nystra", {}))}
        found = [{"method": name} | self._paper(setting, name, params, "cpu") for name, params in methods.values()]
        return found if "published" in setting else [{"method": "all"}]

    def _paper(self, setting: Mapping, attention: str, params: Mapping, device: str) -> dict[str, float]:
        """The paper's latency of what this attention stands for, and the speed-up of its method; on a CPU alone."""
        if "published" not in setting or device != "cpu":
            return {}
        printed = select({"metric": "latency", "device": "cpu", **setting["published"]}).set_index("method")["value"]
        for method, latency in printed.items():
            name, parameters = stands_for(method, setting.get("nystra", {}))
            if name == attention and parameters.items() <= params.items():
                speedup = {} if name == ORIGINAL else {"paper_speedup": printed["original"] / latency}
                return {"paper_latency_ms": latency, **speedup}
        return {}

    def readable(self, data: ReportData) -> ReadableTable:
        frame = self.table(data)
        columns = [column for column in _TIMED if column.name in frame and frame[column.name].notna().any()]
        return ReadableTable(columns, [[_timed_cell(row, column) for column in columns] for _, row in frame.iterrows()])

    def notes(self, data: ReportData) -> list[str]:
        how = (
            "Batch 1, float32. In brackets the interval over the rounds; of few rounds it is the range, whose level is "
            "told with the noise floor. Without bias and mask there is nothing that published code would make anew at "
            "each call: exact_published is exact here."
        )
        return [how, *untrained(data), f"Noise floor (A/A): {' '.join(noise_lines(data))}"]


def _why_untimed(rows: pd.DataFrame) -> str:
    """Status and reason of the first of these rows, none of which has a latency."""
    if rows.empty:
        return "missing: the sweep has no such cell"
    status, reason = rows["status"].iloc[0], plain(rows["reason"].iloc[0])
    return f"{status}: {reason}" if reason else status


def _method(row: pd.Series) -> str:
    named = [f"{plain(row[name])} {name}" for name in ("landmarks", "iterations") if plain(row[name])]
    said = " (no attention)" if row["attention"] == FLOOR else ""
    return row["attention"] + said + (f" ({', '.join(named)})" if named else "")


def _timed_cell(row: pd.Series, column: Column) -> TableCell:
    value = row.get(column.name)
    if value is None or pd.isna(value):
        return EMPTY
    if column.name == "attention_share":
        return TableCell(f"{100 * value:.0f} %", float(value), "number")
    if f"{column.name}_low" in row:
        own = column.name == f"speedup_vs_{row['method']}"
        return TableCell("1", 1.0, "number", "It is compared with itself.") if own else interval_cell(row, column)
    if column.digits is None:
        return TableCell(str(value), str(value), f"status-{value}" if column.name == "status" else "text")
    return TableCell(number(float(value), column.digits), float(value), "number")


# --------------------------------------------------------------------------- the same of other models


class StandIns(OfPaper):
    """The rows of models that are not the paper's, in the form of one of its tables: bundled ones, or other released.

    No published number stands in it, since none is of these models.

    Args:
        title, models, columns, stem: see ``OfPaper``.
        measure: which the rows have.
        where: columns of table.csv with the values that the rows have.
        parameters: the same of an attention's parameters, where it takes them.
    """

    def __init__(
        self,
        title: str,
        models: list[str],
        columns: list[str],
        measure: str = "quality",
        where: Mapping[str, Any] | None = None,
        parameters: Mapping[str, Any] | None = None,
        stem: str | None = None,
    ):
        super().__init__(title, models, columns, stem)
        self.measure, self.where, self.parameters = measure, dict(where or {}), dict(parameters or {})

    def nothing(self, data: ReportData) -> str | None:
        return super().nothing(data) or ("The sweep has no such rows." if self.table(data).empty else None)

    def table(self, data: ReportData) -> pd.DataFrame:
        frame = with_losses(data.frame, within(GROUP, data.frame))
        measured = data.cells["row"][data.cells["measure"] == self.measure]
        fits = frame["model"].isin(self.models) & frame.index.isin(measured) & _agrees(frame, self.where)
        params = data.details["params"]
        for name, value in self.parameters.items():
            fits &= params.map(lambda own, name=name, value=value: own.get(name, value) == value).astype(bool)
        return frame[fits]

    def readable(self, data: ReportData) -> ReadableTable:
        return readable_table(data, self.table(data), self.columns)

    def notes(self, data: ReportData) -> list[str]:
        return ["These are not the paper's models: its numbers are not to be set beside them."]
