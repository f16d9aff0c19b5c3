"""A checkpoint of another library in a sweep: recognised, planned by its own windows, measured, told in the table."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch
from spandrel_models import spandrel_model

from nystra_bench.cli import main

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.meshgrid"),  # spandrel's
    pytest.mark.usefixtures("looked_at_here"),
]

SETTINGS = ["timing.rounds=2", "timing.min_rounds=1", "timing.budget_s=2", "timing.warmup_s=0", "device=cpu"]


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """Runs the sweep of a small DAT, with windows of 4x8 and 8x4, and gives exit code and what was said."""
    torch.save({"params": spandrel_model("DAT").state_dict()}, tmp_path / "dat.pth")
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "mine.yaml").write_text(
        "blocks:\n"
        f"  - model: {{name: file, weights: {tmp_path / 'dat.pth'}}}\n"
        "    task: {name: super_resolution, limit: 1, crop: 34}\n"
        "    attention: [exact, {name: nystra, landmarks: [16, 64]}]\n"
    )

    def run(*words):
        code = main(["+sweep=mine", f"plugins=[{tmp_path}]", f"results={tmp_path / 'results'}", *SETTINGS, *words])
        said = capsys.readouterr()
        return code, said.out + said.err

    run.results = tmp_path / "results" / "mine"
    return run


def test_it_is_measured_in_its_own_windows_and_the_table_says_what_stays(run):
    code, said = run("measure=[quality,memory]", "metrics=[psnr,deviation_psnr]", "figures=[]")
    assert code == 0, said
    table = pd.read_csv(run.results / "table.csv")
    assert list(table["window"]) == ["4×8, 8×4"] * 3 and list(table["model"].unique()) == ["dat"]
    assert list(table["status"]) == ["done", "done", "skipped"]
    assert "landmarks=64 exceed the 32 tokens of a 4x8 window" in table["reason"][2]
    assert table["deviation_psnr"][0] == float("inf") and 0 < table["deviation_psnr"][1] < 100
    page = (run.results / "table.md").read_text()
    assert "4 × Adaptive_Channel_Attention (it attends between channels, not tokens)" in page
    cells = json.loads((run.results / "cells.json").read_text())["cells"]
    assert {cell["cell"]["model"]["version"] for cell in cells} == {"1/1"}


def test_it_takes_no_other_windows(run):
    words = ["window_size=[native,16]", "position_bias=interpolate", "measure=quality", "attention=exact", "mode=plan"]
    code, said = run(*words)
    assert code == 1 and "works in its own windows alone" in said


def test_a_file_of_no_known_architecture_is_one_sentence(run, tmp_path):
    torch.save({"params": {"a": torch.zeros(3)}}, tmp_path / "dat.pth")
    code, said = run("mode=plan")
    assert code == 1 and "of no architecture that is known here: accepted are DAT, DRCT" in said
