"""A measurement of the user's own is one Python file and one YAML, with rows, columns and a figure of its own."""

import sys

import pandas as pd
import pytest

from nystra_bench.cli import main

pytestmark = pytest.mark.usefixtures("here")

MEASUREMENT = '''\
"""How long an attention takes on random tokens, against their number: it needs neither model nor task."""

import time

from nystra_bench.measure.base import Measurement
from nystra_bench.report.column import Column


class Growth(Measurement):
    needs = ("attention", "device", "dtype")
    columns = (Column("tokens_per_ms", "tokens in a ms", "At the largest number of tokens.", 1),)
    row_columns = ("tokens", "ms")

    def __init__(self, sides: list, heads: int = 1):
        self.sides, self.heads = sides, heads

    def settings(self, known):
        return {"hardware": known.hardware}

    def measure(self, bench, job):
        import torch

        from nystra_bench.attention.base import Window

        found = []
        for side in self.sides:
            q, k, v = torch.rand(3, 2, self.heads, side * side, 8, dtype=bench.dtype, device=bench.device)
            started = time.perf_counter()
            job.attention(q, k, v, Window(side, side))
            found.append([side * side, 1e3 * (time.perf_counter() - started)])
            bench.alive(job, len(found), len(self.sides))
        return {"found": found}

    def scalars(self, value, cell):
        tokens, ms = value["found"][-1]
        return {"tokens_per_ms": tokens / ms}

    def rows(self, value, cell):
        return [{"tokens": tokens, "ms": ms} for tokens, ms in value["found"]]
'''

FIGURE = '''\
from matplotlib.figure import Figure as Drawing

from nystra_bench.report.base import Figure


class GrowthFigure(Figure):
    def caption(self, data):
        return "Time against tokens."

    def draw(self, data):
        rows = data.rows("growth")
        if rows.empty:
            return []
        drawing = Drawing()
        axes = drawing.subplots()
        for row, of_row in rows.groupby("row"):
            axes.plot(of_row["tokens"], of_row["ms"], label=data.frame.at[row, "attention"])
        axes.legend()
        return [("", drawing)]
'''

FILES = {
    "growing.py": MEASUREMENT,
    "growth_figure.py": FIGURE,
    "measure/growth.yaml": "_target_: growing.Growth\nsides: [4, 8]\nheads: 1\n",
    "figure/growth.yaml": "_target_: growth_figure.GrowthFigure\ntitle: Growth\n",
    "sweep/growth.yaml": "blocks: [{attention: [exact, identity], measure: growth, device: cpu}]\n",
}


@pytest.fixture
def mine(tmp_path, monkeypatch):
    for module in ("growing", "growth_figure"):  # those of another test's folder
        monkeypatch.delitem(sys.modules, module, raising=False)
    folder = tmp_path / "mine"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def plain(bench, mine, *words):
    """The command with the user's folder alone."""
    return bench(*words, f"plugins=['{mine}']", sweep="+sweep=growth")


def test_a_measurement_without_model_and_task_is_planned_measured_tabled_and_drawn(bench, mine):
    plan = plain(bench, mine, "mode=plan", "measure.heads=[1,2]")
    assert plan.code == 0, plan.err
    lines = plan.out.splitlines()
    assert len(lines) == 5 and "growth(heads=2 sides=[4, 8]) exact cpu float32" in lines[1]

    run = plain(bench, mine, "measure.heads=[1,2]", "figures=[growth]")
    assert run.code == 0, run.err
    folder = bench.results / "growth"
    table = pd.read_csv(folder / "table.csv")
    assert list(table.attention) == ["exact", "exact", "identity", "identity"]
    assert (table.tokens_per_ms > 0).all() and table.model.isna().all() and table.task.isna().all()
    assert set(table.measure_parameters) == {"growth: heads=1 sides=[4, 8]", "growth: heads=2 sides=[4, 8]"}
    assert "tokens in a ms" in (folder / "table.md").read_text()
    assert "identity" in (folder / "figures" / "growth.svg").read_text()
    page = (folder / "report.html").read_text()
    assert "Time against tokens." in page
    assert "All of this is on cpu float32." in page  # nothing is said of models and tasks

    cell = bench.stored()[0]["cell"]
    assert set(cell) == {"schema", "measure", "attention", "device", "dtype", "settings"}
    assert cell["measure"]["version"] == "1" and set(cell["settings"]) == {"hardware"}
    assert "0 to measure" in plain(bench, mine, "measure.heads=[1,2]", "figures=[]").out


def test_it_stands_in_the_row_of_a_usual_measurement(bench, mine):
    words = ["measure=[memory,growth]", "attention=identity", "position_bias=native", "figures=[]"]
    run = bench(*words, f"hydra.searchpath=['file://{mine}']")
    assert run.code == 0, run.err
    table = bench.table()
    assert len(table) == 2  # one with a model, and one without
    assert table.gflops.notna().sum() == table.tokens_per_ms.notna().sum() == 1


def test_a_report_that_no_longer_finds_the_measurement_says_so(bench, mine, capfd):
    assert plain(bench, mine, "figures=[]").code == 0
    capfd.readouterr()
    assert main(["+sweep=denoise", "name=growth", f"results={bench.results}", "mode=report"]) == 1
    (sentence,) = capfd.readouterr().err.splitlines()
    assert "measure=growth" in sentence and "plugins=[DIR]" in sentence
    assert bench.stored()


BAD = {
    "syntax": ({"growing.py": "class Growth(\n"}, ["growing", "SyntaxError", "line 1"]),
    "needs": ({"growing.py": MEASUREMENT.replace("needs =", "wants =")}, ["measure=growth", "needs", "attention"]),
    "axis": ({"growing.py": MEASUREMENT.replace('"dtype")', '"dtype", "weather")')}, ["weather", "window_size"]),
    "model": ({"growing.py": MEASUREMENT.replace('"dtype")', '"dtype", "window_size")')}, ["window_size", "model"]),
    "column": ({"growing.py": MEASUREMENT.replace('Column("tokens_per_ms"', 'Column("status"')}, ["status"]),
    "class": ({"measure/growth.yaml": "_target_: pathlib.Path\n"}, ["_target_=pathlib.Path", "Measurement"]),
    "entry": ({"measure/growth.yaml": "_target_: growing.Growth\nside: 3\n"}, ["Growth", "side"]),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_measurement_that_is_none_is_told_in_one_sentence(bench, mine, kind):
    files, parts = BAD[kind]
    for name, text in files.items():
        (mine / name).write_text(text)
    outcome = plain(bench, mine, "mode=plan")
    assert outcome.code == 1 and outcome.out == ""
    for part in parts:
        assert part in outcome.sentence


def test_a_column_that_another_measurement_gives(bench, mine):
    (mine / "growing.py").write_text(MEASUREMENT.replace('Column("tokens_per_ms"', 'Column("gflops"'))
    outcome = bench("measure=[memory,growth]", f"hydra.searchpath=['file://{mine}']", "mode=plan")
    assert outcome.code == 1
    assert "column gflops" in outcome.sentence and "measure=memory" in outcome.sentence


def test_what_it_raises_is_a_row_with_its_reason(bench, mine):
    (mine / "growing.py").write_text(MEASUREMENT.replace("found = []\n", 'raise ArithmeticError("no luck")\n', 1))
    outcome = plain(bench, mine, "figures=[]")
    assert outcome.code == 2
    table = pd.read_csv(bench.results / "growth" / "table.csv")
    assert set(table.status) == {"failed"} and set(table.reason) == {"ArithmeticError: no luck"}
    assert all("raise ArithmeticError" in failure["traceback"] for failure in bench.stored("failure"))


def test_a_measurement_of_a_model_alone(bench, mine):
    """Neither window nor bias mode decides it: there is one cell, on the model as released."""
    counting = MEASUREMENT.replace('("attention", "device", "dtype")', '("model", "device", "dtype")')
    counting = counting.replace('Column("tokens_per_ms", "tokens in a ms"', 'Column("parameters_m", "parameters (M)"')
    before = counting.index("    def measure")
    after = """\
    def measure(self, bench, job):
        return {"count": sum(p.numel() for p in bench.model.parameters()), "window": bench.model.window_size}

    def scalars(self, value, cell):
        return {"parameters_m": value["count"] / 1e6}
"""
    (mine / "growing.py").write_text(counting[:before] + after)
    run = bench("measure=growth", f"hydra.searchpath=['file://{mine}']", "figures=[]")
    assert run.code == 0, run.err
    (result,) = bench.stored()
    assert result["value"]["window"] == 8
    assert {"model", "device", "dtype"} <= set(result["cell"]) and not {"window", "task"} & set(result["cell"])
    assert bench.table().parameters_m.item() > 0
