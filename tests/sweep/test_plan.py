"""The plan: cells with their reasons, from facts about weights, images and devices."""

import json

import pytest
import torch

from nystra_bench.sweep import engine
from nystra_bench.sweep.plan import plan
from nystra_bench.sweep.session import group

pytestmark = pytest.mark.usefixtures("looked_at_here")


def last_line(outcome):
    assert outcome.code == 0, outcome.err
    return outcome.out.splitlines()[-1]


def test_a_plan_of_a_thousand_cells(bench):
    landmarks = ",".join(map(str, [*range(1, 11), 12, 16]))
    guards = ",".join(map(str, range(1, 29)))
    words = ["attention=[exact,nystra]", f"attention.landmarks=[{landmarks}]", f"attention.guard=[{guards}]"]
    outcome = bench(*words, "position_bias=native", "mode=plan")
    assert last_line(outcome) == "tiny: 1011 cells: 1011 missing; 1011 to measure"
    assert len(outcome.out.splitlines()) == 1012
    assert len(set(outcome.out.splitlines())) == 1012
    assert not bench.results.exists()


def test_what_does_not_fit_one_window_is_skipped_there(bench):
    words = ["attention=nystra", "attention.landmarks=128", "measure=quality", "mode=plan"]
    lines = bench(*words).out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["skipped", "missing"]
    assert "landmarks=128 exceed the 64 tokens of a 8x8 window" in lines[0]


def test_interpolating_to_the_native_window_is_the_native_model(bench):
    words = ["window_size=native", "position_bias=[native,interpolate]", "attention=exact", "measure=quality"]
    assert last_line(bench(*words, "mode=plan")).startswith("tiny: 1 cells")


def test_the_devices_of_the_machine_are_planned_and_no_others(bench):
    lines = bench("mode=plan", "attention=exact", "measure=quality", "position_bias=native").out.splitlines()[:-1]
    assert [line.split()[-2] for line in lines] == ["cpu", "cuda"][: 1 + torch.cuda.is_available()]


def test_threads_are_part_of_timings_alone(bench):
    words = ["mode=report", "attention=exact", "position_bias=native", "tables=[]", "figures=[]"]

    def keys(*more):
        assert bench(*words, *more).code == 0
        cells = json.loads((bench.results / "tiny" / "cells.json").read_text())["cells"]
        return {c["cell"]["measure"]["name"]: c for c in cells}

    one, two = keys("device.threads=1"), keys("device.threads=2")
    assert one["quality"]["key"] == two["quality"]["key"]
    assert one["latency"]["cell"]["settings"]["threads"] == 1
    assert two["latency"]["cell"]["settings"]["threads"] == 2
    # What an attention does not take is not in its cell; what the model's weights are called is.
    assert one["quality"]["cell"]["attention"] == {"name": "exact", "version": "1", "params": {}}
    assert one["quality"]["cell"]["task"]["params"] == {"sigma": 25.0, "seed": 0}
    assert one["quality"]["cell"]["model"]["name"] == "tiny"


def test_the_range_of_values_is_part_of_the_key_where_it_is_not_the_usual_one(bench):
    words = ["mode=report", "attention=exact", "position_bias=native", "measure=quality", "tables=[]", "figures=[]"]

    def model(*more):
        assert bench(*words, *more).code == 0
        (cell,) = json.loads((bench.results / "tiny" / "cells.json").read_text())["cells"]
        return cell["key"], cell["cell"]["model"]

    usual, wide = model(), model("model.image_range=255")
    assert model("model.image_range=1") == usual and "settings" not in usual[1]
    assert wide[0] != usual[0]
    assert wide[1] == usual[1] | {"name": "tiny image_range=255.0", "settings": {"image_range": 255.0}}


def test_sessions_hold_what_may_be_compared(bench, monkeypatch):
    planned = []
    monkeypatch.setattr(engine, "plan", lambda *arguments: planned.extend(plan(*arguments)) or planned)
    bench("mode=plan", "task.sigma=[15,25]")
    sessions = group(planned)
    assert sum(len(session.planned) for session in sessions) == len(planned) == 2 * 4 * 3
    assert len(sessions) == 4
    for session in sessions:
        cells = [p.cell.content for p in session.planned]
        for part in ("model", "task", "window", "position_bias", "device", "dtype"):
            assert all(cell[part] == cells[0][part] for cell in cells)
