"""Results of earlier schemas, as earlier versions of this project wrote them (tests/data), are read and drawn."""

import json
import shutil
from pathlib import Path

import pytest

from nystra_bench.cli import main
from nystra_bench.replay import main as replay
from nystra_bench.report.reading import load
from nystra_bench.sweep.cell import SCHEMA
from nystra_bench.sweep.files import Damaged
from nystra_bench.sweep.migrations import STEPS, known_schema, migrated

DATA = Path(__file__).parents[1] / "data"
EARLIER = range(1, SCHEMA)


@pytest.fixture(params=EARLIER)
def results(request, tmp_path):
    """A results folder of that schema, with the sweep ``old``: one cell of it has failed."""
    return Path(shutil.copytree(DATA / f"schema{request.param}", tmp_path / "results"))


def stored(results, measure):
    """The values of a measurement as they stand in the files, by attention."""
    found = [json.loads(file.read_text()) for file in results.glob("store/*/result.json")]
    return {r["cell"]["attention"]["name"]: r["value"] for r in found if measure in json.dumps(r["cell"]["measure"])}


def test_each_earlier_schema_has_a_step_and_records():
    assert set(STEPS) == set(EARLIER)
    assert all((DATA / f"schema{number}" / "old" / "cells.json").is_file() for number in EARLIER)


def test_the_table_has_the_numbers_of_then(results):
    frame = load(results, "old").frame.set_index("attention")
    assert frame.status["raising"] == "failed" and "no luck" in frame.reason["raising"]
    for attention, value in stored(results, "quality").items():
        images = [image["metrics"]["psnr"] for image in value["images"]]
        assert frame.psnr[attention] == pytest.approx(sum(images) / len(images), abs=1e-12)
    for attention, value in stored(results, "memory").items():
        assert frame.gflops[attention] == value["gflops"]
    assert frame.speedup_vs_exact["nystra"] > 0 and frame.latency_ms["exact"] > 0


def test_a_report_is_drawn_again(results, capsys):
    words = ["+sweep=denoise", "name=old", f"results={results}", "mode=report", "figures=[]"]
    assert main(words) == 2  # since one has failed
    assert "no luck" in (results / "old" / "table.csv").read_text()
    assert (results / "old" / "bound.csv").is_file()
    capsys.readouterr()
    assert replay([str(next(results.glob("store/*/result.json")))]) == 1
    assert "by which configurations" in capsys.readouterr().err


@pytest.mark.parametrize("said", [0, SCHEMA + 1, "2", None, True, 1.0])
def test_other_schemas_are_damage(said):
    with pytest.raises(Damaged, match="schema"):
        known_schema({"schema": said})


def test_a_record_that_is_none_of_its_schema_is_damage():
    with pytest.raises(Damaged, match="no record of schema 1"):
        migrated({"schema": 1, "cell": {"measure": "quality"}}, 1)
