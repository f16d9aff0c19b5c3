"""The report's sentences: what they claim of which data, and no more."""

from __future__ import annotations

import html
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hydra.utils import instantiate

from nystra_bench.report import columns, wording
from nystra_bench.report.build import Part
from nystra_bench.report.html.page import render
from nystra_bench.report.markup import latex, latex_escape, markdown
from nystra_bench.report.reading import load
from nystra_bench.report.tables.main import MainTable

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture
def data(filled):
    return load(filled.results, "demo")


@pytest.fixture
def main() -> MainTable:
    return instantiate(yaml.safe_load((CONFIGS / "table" / "main.yaml").read_text()), _convert_="all")


def row_of(data, attention: str) -> pd.Series:
    """The first row of an attention."""
    return data.frame[data.frame["attention"] == attention].iloc[0]


def test_a_speedup_is_hidden_without_a_deviation_and_grey_where_it_is_none(data):
    column = columns.column("speedup_vs_exact", data)
    row = row_of(data, "nystra")
    assert columns.table_cell(row, column).text == "5.00 (5.00–5.00)"
    assert columns.table_cell(row.where(~row.index.str.startswith("deviation_")), column).text == "–"
    unsure = columns.table_cell(row_of(data, "a<b>&|_%"), column)
    assert unsure.kind == "unsure" and unsure.text.startswith("≈1 (") and "interval" in unsure.hint


def test_of_one_round_there_is_no_interval(synthetic):
    companions = {name: samples[:1] for name, samples in synthetic.companions.items()}
    synthetic.quality(synthetic.cell("quality", "nystra", synthetic.nystra), [{"psnr": 20.0, "deviation_psnr": 30.0}])
    synthetic.latency(synthetic.cell("latency", "nystra", synthetic.nystra), [50.0], companions)
    data = load(synthetic.write(), "demo")
    row = row_of(data, "nystra")
    assert pd.isna(row["speedup_vs_exact_low"]) and pd.isna(row["speedup_vs_exact_high"])
    shown = columns.table_cell(row, columns.column("speedup_vs_exact", data))
    assert shown.text.endswith(" (1 round)") and "≈" not in shown.text and "no interval" in shown.hint
    (finding,) = wording.findings(data)
    assert "times as fast as exact (of one round: there is no interval)" in finding.said
    assert "and no interval" in wording.noise(data, data.sessions[0])


def test_the_summary_names_the_fastest_with_its_deviation_and_the_native_model(data):
    (finding,) = wording.findings(data)
    assert "fastest replacement is nystra (8 landmarks, 2 iterations, init=global) with 70.0 ms" in finding.said
    assert "its deviation from the exact output is 30.00 dB" in finding.said
    assert "closest is nystra (16 landmarks, 2 iterations, init=global): 32.00 dB at 80.0 ms" in finding.said
    assert "native model takes 90.0 ms" in finding.said and "less than any" not in finding.said


def test_the_summary_says_when_the_native_model_is_faster(synthetic):
    companions = synthetic.companions | {"native": [50.0] * 5}
    synthetic.quality(synthetic.cell("quality", "nystra", synthetic.nystra), [{"psnr": 20.0, "deviation_psnr": 30.0}])
    latency = synthetic.cell("latency", "nystra", synthetic.nystra)
    synthetic.latency(latency, [400.0, 410.0, 391.0, 399.0, 405.0], companions)
    (finding,) = wording.findings(load(synthetic.write(), "demo"))
    assert "less than any replacement here" in finding.said
    assert "not distinguishable from exact in speed" in finding.said


def measured(store, attention: str, deviation: float | None = None, latency: float | None = None, **params) -> None:
    """A configuration with a deviation, a latency of five rounds, both or nothing."""
    quality = store.cell("quality", attention, params)
    if deviation is not None:
        store.quality(quality, [{"psnr": 20 + min(deviation, 80) / 10, "deviation_psnr": deviation}])
    timing = store.cell("latency", attention, params)
    if latency is not None:
        store.latency(timing, [latency + n / 10 for n in range(5)], store.companions)


def said(store) -> str:
    (finding,) = wording.findings(load(store.write(), "demo"))
    return finding.said


def test_where_only_quality_was_measured_the_summary_tells_the_deviations(synthetic):
    deviations = {"exact": float("inf"), "identity": 33.0, "near": 45.0, "far": 30.0, "farther": 20.0}
    for name, deviation in deviations.items():
        measured(synthetic, name, deviation)
    synthetic.cell("quality", "unmeasured")
    assert said(synthetic) == (
        "The closest replacement is near: its deviation from the exact output is 45.00 dB, its PSNR 24.50 dB (exact "
        "attention: 28.00 dB). Without any attention (identity) the deviation is 33.00 dB: 2 of 3 replacements are "
        "farther from the original than that. 1 replacement without a deviation is left out of this."
    )


def test_where_only_latency_was_measured_the_summary_claims_no_speed_up(synthetic):
    for name, latency in (("exact", 400.0), ("quick", 70.0), ("slow", 90.0)):
        measured(synthetic, name, latency=latency)
    text = said(synthetic)
    assert text == (
        "The fastest replacement is quick with 70.2 ms; in the same session take exact attention 400.0 ms, sdpa 150.0 "
        "ms, no attention (identity) 60.0 ms, the native model 90.0 ms. No deviation of it was measured, so what its "
        "speed costs is unknown."
    )
    assert "times as fast" not in text


def test_the_summary_claims_nothing_of_what_was_not_measured(synthetic):
    measured(synthetic, "near", deviation=45.0)
    measured(synthetic, "quick", latency=70.0)
    text = said(synthetic)
    assert "The one replacement with a deviation is near" in text
    assert "The one replacement with a latency is quick" in text
    assert text.endswith("No replacement has both, so no speed-up is told.")
    measured(synthetic, "whole", deviation=40.0, latency=80.0)
    text = said(synthetic)
    assert text.startswith("The fastest replacement is whole with 80.2 ms")
    assert text.endswith("2 replacements without a latency or a deviation are left out of this.")
    assert "closest" not in text


def test_the_summary_of_nothing(synthetic):
    measured(synthetic, "exact", float("inf"), 400.0)
    measured(synthetic, "nothing")
    assert said(synthetic) == "No replacement has a latency or a deviation yet."


def test_the_level_of_few_rounds_is_told(data, main):
    """Five rounds: the range, whose level is 93.75 %."""
    (finding,) = wording.findings(data)
    assert "5.71 times as fast as exact (93.8 % interval" in finding.said
    (line,) = wording.noise_lines(data)
    assert "(93.8 % interval" in line
    assert "of fewer than 6 rounds the range" in main.notes(data)[0]


def test_many_rounds_have_the_nominal_level(synthetic):
    companions = {name: samples * 4 for name, samples in synthetic.companions.items()}
    quality = synthetic.cell("quality", "nystra", synthetic.nystra)
    synthetic.quality(quality, [{"psnr": 20.0, "deviation_psnr": 30.0}])
    synthetic.latency(synthetic.cell("latency", "nystra", synthetic.nystra), [80.0, 82.0, 78.0, 80.0] * 5, companions)
    assert "times as fast as exact (95 % interval" in said(synthetic)
    (line,) = wording.noise_lines(load(synthetic.results, "demo"))
    assert "20 rounds" in line and "(95.9 % interval" in line


@pytest.mark.parametrize("status", ["nonfinite", "of <tomorrow>"])
def test_a_status_that_is_new_is_shown_like_the_others(data, main, status):
    row = row_of(data, "nystra").name
    data.frame.loc[row, ["status", "reason"]] = status, "NaN in 3 of 4 images"
    data.cells.loc[data.cells["row"] == row, ["status", "reason"]] = status, "NaN in 3 of 4 images"
    assert f"1 {status}" in wording.overview(data)
    cell = columns.table_cell(data.frame.loc[row], columns.column("status", data))
    assert (cell.text, cell.kind, cell.hint) == (status, f"status-{status}", "NaN in 3 of 4 images")
    grid, notes = main.readable(data), main.notes(data)
    page = render(data, [Part("main", "Main", grid=grid, notes=notes)], [], "")
    assert f'<td class="status-{html.escape(status)}">{html.escape(status)}</td>' in page
    assert status in markdown("Main", grid, notes).replace("&lt;", "<").replace("&gt;", ">")
    assert latex_escape(status) in latex("Main", grid, notes)
    assert "nonfinite" in columns.column("status", data).meaning


def test_a_noise_interval_without_1_is_called_unsteady(synthetic):
    companions = synthetic.companions | {"exact_again": [500.0, 510.0, 490.0, 500.0, 505.0]}
    synthetic.latency(synthetic.cell("latency", "exact"), synthetic.companions["exact"], companions)
    (line,) = wording.noise_lines(load(synthetic.write(), "demo"))
    assert "excludes 1" in line and "5 rounds" in line
    assert "by chance at most 6.2 times in 100" in line
