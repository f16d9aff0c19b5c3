"""measure=scaling: from the command line to the store, the table of exponents and the figures; no model, no task."""

import pandas as pd
import pytest

pytestmark = pytest.mark.usefixtures("here")

SMALL = ["measure.shape=1x4", "measure.mode=window", "measure.sizes=[[64,1024,1600,4096]]", "measure.rounds=2"]
SMALL += ["measure.min_sample_ms=0", "measure.budget_s=0", "device=cpu"]


def scaling(bench, *words):
    return bench(*SMALL, *words, sweep="+sweep=scaling")


def test_a_sweep_without_models_is_measured_tabled_and_drawn(bench):
    outcome = scaling(bench, "attention=[exact,nystra]", "tables=[main,scaling]", "figures=[scaling]")
    assert outcome.code == 0, outcome.err
    folder = bench.results / "scaling"
    cells = bench.stored()
    assert {cell["cell"]["attention"]["name"] for cell in cells} == {"exact", "nystra"}
    for cell in cells:
        assert not {"model", "task", "window", "position_bias"} & set(cell["cell"])
        assert [size["tokens"] for size in cell["value"]["sizes"]] == [64, 1024, 1600, 4096]
        assert all(len(size["samples_ms"]) == 2 for size in cell["value"]["sizes"])
        assert len({cell["session"] for cell in cells}) == 1  # timed together
    table = pd.read_csv(folder / "scaling.csv")
    assert list(table["mode"].unique()) == ["window"] and set(table["shape"]) == {"1x4"}
    fitted = table.dropna(subset="time_exponent")
    assert len(fitted) == len(table) == 3  # exact, and nystra with 2 and with 6 iterations
    for row in fitted.itertuples():
        assert row.time_exponent_low <= row.time_exponent <= row.time_exponent_high
    assert (table.largest_tokens == 4096).all()
    text = (folder / "scaling.md").read_text()
    assert "time ∝ N^b" in text and "nystra (16 landmarks, 6 iterations)" in text
    drawn = {file.name for file in (folder / "figures").glob("*.svg")}
    assert "scaling-time-1x4-cpu-float32.svg" in drawn
    assert "b = " in (folder / "figures" / "scaling-time-1x4-cpu-float32.svg").read_text()
    page = (folder / "report.html").read_text()
    assert 'class="note failed"' not in page
    assert "No replacement has" not in page  # nothing is said of latencies and deviations

    again = scaling(bench, "attention=[exact,nystra]", "mode=plan")
    assert again.code == 0 and "0 to measure" in again.out


def test_a_curve_that_ends_is_done_and_says_why(bench):
    outcome = scaling(bench, "attention=exact", "measure.call_s=1e-9", "figures=[scaling]", "tables=[main,scaling]")
    assert outcome.code == 0, outcome.err
    (cell,) = bench.stored()
    (size,) = cell["value"]["sizes"]
    assert (size["tokens"], size["kind"], size["samples_ms"]) == (64, "time", [])
    table = pd.read_csv(bench.results / "scaling" / "scaling.csv")
    assert table.curve_end.item().startswith("N = 64: a call would take about")
    assert table.curve_end.item().endswith("more than 1e-09 s")


def test_one_that_fits_no_size_is_a_row_with_its_reason(bench):
    words = ["attention=nystra", "attention.landmarks=128", "measure.sizes=[[64]]", "figures=[]", "tables=[main]"]
    outcome = scaling(bench, *words)
    assert outcome.code == 2
    failures = bench.stored("failure")
    assert failures and all("no size fits: landmarks=128 exceed the 64 tokens" in f["reason"] for f in failures)


def test_one_that_needs_a_model_says_so(bench):
    words = ["attention=[exact,nystra_plus]", "attention.target_deviation=45", "figures=[]", "tables=[main]"]
    outcome = scaling(bench, *words, "measure.sizes=[[64]]")
    assert outcome.code == 2
    (failure,) = bench.stored("failure")
    assert "measure=scaling has neither" in failure["reason"]
    assert len(bench.stored()) == 1  # exact is measured all the same


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("measure.sizes=[[64,1000]]", ["sizes=1000", "961 and 1024"]),
        ("measure.sizes=[[few]]", ["sizes=few", "squares"]),
        ("measure.shape=swinir_x", ["shape=swinir_x", "did you mean swinir_m"]),
        ("measure.mode=images", ["mode=images", "window, image"]),
        ("measure.rounds=1", ["measure.rounds=1", "above 1"]),
        ("measure.rounds=many", ["rounds=many", "whole numbers"]),
        ("measure.call_s=0", ["measure.call_s=0", "above 0"]),
        ("measure.logit_std=-1", ["measure.logit_std=-1", "above 0"]),
    ],
)
def test_mistakes_are_told_in_one_sentence(bench, word, parts):
    outcome = bench(word, "mode=plan", sweep="+sweep=scaling")
    assert outcome.code == 1
    for part in parts:
        assert part in outcome.sentence
