"""Curves of time and memory in the report, against numbers computed by hand."""

from __future__ import annotations

import pandas as pd
import pytest

from nystra_bench.report.build import build_report
from nystra_bench.report.figures.scaling import Scaling
from nystra_bench.report.reading import load
from nystra_bench.report.tables.scaling import ScalingTable
from nystra_bench.report.wording import findings

COLUMNS = ["shape", "mode", "method", "time_exponent", "memory_exponent", "largest_tokens", "largest_ms", "curve_end"]
TABLES = {"scaling": {"_target_": "nystra_bench.report.tables.scaling.ScalingTable", "title": "Exponents",
                      "columns": COLUMNS},
          "main": {"_target_": "nystra_bench.report.tables.main.MainTable", "title": "All", "stem": "table",
                   "columns": ["model", "attention", "time_exponent", "status"]}}  # fmt: skip
FIGURES = {"scaling": {"_target_": "nystra_bench.report.figures.scaling.Scaling", "title": "Curves"}}
END = "a call would take about 9 s, more than 2 s"


def times(power: float, sizes=(1024, 4096, 16384)) -> dict[int, float]:
    """A power law from N = 1024 on; below it a constant, as overhead is."""
    return {64: 7.0, 256: 7.0} | {n: 1e-4 * n**power for n in sizes}


@pytest.fixture
def curves(synthetic):
    """exact, which ends early, and nystra, in both modes."""
    for mode in ("window", "image"):
        where = {"shape": "swinir_m", "mode": mode}
        synthetic.scaling(synthetic.alone("scaling", "exact", **where), times(2.0), END)
        synthetic.scaling(synthetic.alone("scaling", "nystra", synthetic.nystra, **where), times(1.0))
    return synthetic


def test_the_exponents_are_those_of_the_sizes_that_count(curves):
    table = ScalingTable("Exponents", COLUMNS).table(load(curves.write(), "demo"))
    window = table[table["mode"] == "window"].set_index("attention")
    assert window.time_exponent["exact"] == pytest.approx(2) and window.time_exponent["nystra"] == pytest.approx(1)
    assert window.memory_exponent.tolist() == pytest.approx([1, 1])
    assert window.largest_tokens.tolist() == [16384, 16384]
    assert window.largest_ms.tolist() == pytest.approx([1e-4 * 16384**2, 1.6384])
    assert window.largest_mb.tolist() == pytest.approx([16.384, 16.384])
    assert window.curve_end["exact"] == f"N = 65536: {END}" and pd.isna(window.curve_end["nystra"])
    image = table[table["mode"] == "image"].set_index("attention")
    assert image.time_exponent["nystra"] < 0.5  # here the small windows count, too


def test_text_and_page_have_exponents_intervals_and_ends(curves):
    build_report(curves.write(), "demo", {"tables": TABLES, "figures": FIGURES}, "")
    folder = curves.results / "demo"
    text = (folder / "scaling.md").read_text()
    assert "2.00 (2.00 to 2.00)" in text and f"N = 65536: {END}" in text
    drawing = (folder / "figures" / "scaling-time-swinir-m-cpu-float32.svg").read_text()
    for said in ("exact: b = 2.00 (2.00 to 2.00)", "nystra 16/2: b = 1.00", "exceed the time budget", "16,384"):
        assert said in drawing
    assert (folder / "figures" / "scaling-memory-swinir-m-cpu-float32.svg").is_file()
    assert "failed" not in (folder / "report.html").read_text().partition("<main>")[2].partition("<script>")[0]


def test_nothing_is_found_of_latencies_that_nobody_planned(curves):
    assert findings(load(curves.write(), "demo")) == []


def test_each_shape_has_figures_of_its_own(curves):
    curves.scaling(curves.alone("scaling", "exact", shape="global", mode="window"), times(2.0))
    drawn = Scaling("Curves").draw(load(curves.write(), "demo"))
    assert [suffix for suffix, _ in drawn] == [
        "time, swinir_m, cpu float32", "memory, swinir_m, cpu float32",
        "time, global, cpu float32", "memory, global, cpu float32",
    ]  # fmt: skip
    assert [len(figure.axes) for _, figure in drawn] == [4, 4, 2, 2]


def test_a_sweep_without_curves_has_neither(filled):
    data = load(filled.results, "demo")
    assert Scaling("Curves").draw(data) == []
    assert "measure=scaling" in ScalingTable("Exponents", COLUMNS).nothing(data)
