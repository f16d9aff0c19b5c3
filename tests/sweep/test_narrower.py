"""A run that is narrower than the report that is there, and has no name of its own, says that it takes its place."""

import json

import pytest

from nystra_bench.instruments import environment
from nystra_bench.sweep.planfile import of_other_machines

pytestmark = pytest.mark.usefixtures("looked_at_here")

DRAW = ("mode=report", "measure=quality", "position_bias=native", "tables=[]", "figures=[]")


def cells(bench, name="tiny"):
    return len(json.loads((bench.results / name / "cells.json").read_text())["cells"])


@pytest.mark.parametrize("mode", ["mode=report", "mode=plan"])
def test_it_says_so_before(bench, mode):
    assert bench(*DRAW).err == "" and cells(bench) == 3
    narrower = bench(*DRAW, "attention=exact", mode)
    assert narrower.code == 0
    told = f"the report in {bench.results / 'tiny'} has 3 cells; 2 of them are not in this run"
    assert narrower.sentence.startswith(told)
    assert "name=FOLDER" in narrower.sentence
    assert cells(bench) == (1 if mode == "mode=report" else 3)


def test_with_a_name_both_are_kept(bench):
    bench(*DRAW)
    assert bench(*DRAW, "attention=exact", "name=narrow").err == ""
    assert (cells(bench), cells(bench, "narrow")) == (3, 1)
    assert bench(*DRAW, "attention=exact", "name=1.10").err == ""
    assert bench(*DRAW, "attention=[exact,nystra]", "name=1.1").err == ""
    assert (cells(bench, "1.10"), cells(bench, "1.1")) == (1, 4)


def test_the_same_again_and_a_wider_one_say_nothing(bench):
    bench(*DRAW, "attention=exact")
    assert bench(*DRAW, "attention=exact").err == ""
    assert bench(*DRAW).err == ""


def test_machines_that_share_a_results_folder_share_a_report(bench, monkeypatch):
    words = ["mode=report", "measure=[quality,latency]", "position_bias=native", "tables=[main]", "figures=[]"]

    told = []

    def of(machine):
        monkeypatch.setattr(environment, "hardware", lambda device: machine)
        outcome = bench(*words)
        assert (outcome.code, outcome.err) == (0, "")
        told.append("3 cells of other machines stay in its report" in outcome.out)
        content = json.loads((bench.results / "tiny" / "cells.json").read_text())["cells"]
        return sorted(str(cell["cell"]["settings"].get("hardware")) for cell in content)

    assert of("one") == ["None"] * 3 + ["one"] * 3
    assert of("another") == ["None"] * 3 + ["another"] * 3 + ["one"] * 3
    assert of("one") == ["None"] * 3 + ["another"] * 3 + ["one"] * 3
    assert told == [False, True, True]
    assert sorted(bench.table()["hardware"]) == ["another"] * 3 + ["one"] * 3
    monkeypatch.setattr(environment, "hardware", lambda device: "one")
    narrower = bench(*words, "attention=exact")
    assert "has 9 cells; 6 of them are not in this run" in narrower.sentence
    for damaged in ("{", "[]", '{"schema": 2, "cells": [{"cell": {"device": "cpu", "settings": {}}}]}'):
        (bench.results / "tiny" / "cells.json").write_text(damaged)
        assert of_other_machines(bench.results / "tiny" / "cells.json", []) == []
