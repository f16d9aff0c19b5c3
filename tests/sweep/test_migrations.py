"""Results of earlier schemas, as earlier versions of this project wrote them (tests/data), are read and drawn."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from nystra_bench.cli import main
from nystra_bench.replay import main as replay
from nystra_bench.report.reading import load
from nystra_bench.sweep.cell import SCHEMA
from nystra_bench.sweep.files import Damaged
from nystra_bench.sweep.migrations import STEPS, known_schema, migrated
from nystra_bench.sweep.store import Store

DATA = Path(__file__).parents[1] / "data"
EARLIER = range(1, SCHEMA)
REAL = (
    "03eb24cd5a750e791dc3f32d26a8070bec6c20db31560713b041f366c672fc8f",
    "0c643cd177c4323724921ff4049d275b32a04bbb86cf61bccefbc75b32317000",
)


@pytest.fixture(params=EARLIER)
def results(request, tmp_path):
    """A results folder of that schema, with the sweep ``demo``."""
    return Path(shutil.copytree(DATA / f"schema{request.param}", tmp_path / "results"))


def test_each_earlier_schema_has_a_step_and_records():
    assert set(STEPS) == set(EARLIER)
    assert all((DATA / f"schema{number}" / "demo" / "cells.json").is_file() for number in EARLIER)


def test_the_table_has_the_numbers_of_then(results):
    data, seen = load(results, "demo"), set()
    for cell in data.cells.itertuples():
        file, row = results / "store" / cell.key / "result.json", data.frame.loc[cell.row]
        if not file.is_file():
            assert cell.status in ("failed", "missing", "skipped")
            continue
        value = json.loads(file.read_text())["value"]
        seen.add(cell.measure)
        if cell.measure == "quality":
            numbers = [float(image["metrics"]["psnr"]) for image in value["images"]]
            assert row.psnr == pytest.approx(np.mean(numbers), abs=1e-12)
        elif cell.measure == "latency":
            assert row.latency_ms == pytest.approx(np.median(value["samples_ms"]), abs=1e-12)
        elif cell.measure == "memory":
            assert row.gflops == value["gflops"]
    assert seen == {"quality", "latency", "memory", "bound"}
    (broken,) = data.frame[data.frame.status == "failed"].itertuples()
    assert "luck" in broken.reason


def test_results_of_a_run_of_then_are_read(results):
    """Two quality cells that were measured on 2026-11-25; the others were made up by the conformance tests of then."""
    store = Store(results / "store")
    for key in REAL:
        found = store.result(key)
        assert found["status"] == "done" and found["schema"] == SCHEMA
        assert found["cell"]["measure"] == {"name": "quality", "version": "1", "params": {}}
        assert found["cell"]["settings"] == {}
        assert found["value"]["parts"]["psnr"] == {"version": "1", "params": {"against": "truth"}}
        assert "fid" not in found["value"]["parts"]  # it was absent


def test_a_report_is_drawn_again(results, capsys):
    words = ["+sweep=denoise", "name=demo", f"results={results}", "mode=report", "figures=[]"]
    assert main(words) == 2  # since one has failed
    assert "luck" in (results / "demo" / "table.csv").read_text()
    assert (results / "demo" / "bound.csv").is_file()
    capsys.readouterr()
    assert replay([str(results / "store" / REAL[0])]) == 1
    assert "by which configurations" in capsys.readouterr().err


@pytest.mark.parametrize("said", [0, SCHEMA + 1, "2", None, True, 1.0])
def test_other_schemas_are_damage(said):
    with pytest.raises(Damaged, match="schema"):
        known_schema({"schema": said})


def test_a_record_that_is_none_of_its_schema_is_damage():
    with pytest.raises(Damaged, match="no record of schema 1"):
        migrated({"schema": 1, "cell": {"measure": "quality"}}, 1)
