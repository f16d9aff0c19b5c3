"""Spectral errors in the report, against numbers computed by hand."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from nystra_bench.report.build import build_report
from nystra_bench.report.figures.bound import Bound
from nystra_bench.report.reading import load
from nystra_bench.report.tables.bound import BoundTable

TABLES = {"bound": {"_target_": "nystra_bench.report.tables.bound.BoundTable", "title": "Bounds",
                    "columns": ["model", "attention", "landmarks"]}}  # fmt: skip
FIGURES = {"bound": {"_target_": "nystra_bench.report.figures.bound.Bound", "title": "Bounds"}}


def kernel(error: float, bound: float) -> dict:
    names = {"kernel_error": error, "kernel_error_pinv": error / 2, "kernel_floor": error / 4, "gap": 3.0}
    names |= {"kernel_projection": bound / 10, "kernel_bound": bound}
    return {name: [[value, value]] for name, value in names.items()}


@pytest.fixture
def bounds(synthetic):
    """nystra with 4 and 8 landmarks on two layers of one head and two windows, and a method without a kernel."""
    for landmarks, scale in ((4, 1.0), (8, 0.5)):
        cell = synthetic.cell("bound", "nystra", synthetic.nystra | {"landmarks": landmarks})
        first = {"matrix_error": [[0.1, 0.2]]} | kernel(0.4 * scale, 40.0)
        synthetic.bound(cell, first, {"matrix_error": [[0.3, 0.8]]} | kernel(0.8 * scale, math.inf))
    uniform = synthetic.cell("bound", "uniform")
    synthetic.bound(uniform, {"matrix_error": [[0.9, 0.9]]}, {"matrix_error": [[0.9, 1.1]]})
    return synthetic


def test_the_table_holds_medians_and_maxima(bounds):
    data = load(bounds.write(), "demo")
    assert len(data.rows("bound")) == 3 * 4
    table = BoundTable("t", []).table(data).set_index("landmarks")
    row = table.loc[4]
    assert row["matrix_error_median"] == pytest.approx(0.25) and row["matrix_error_max"] == 0.8
    assert row["kernel_error_median"] == pytest.approx(0.6) and row["kernel_bound_max"] == math.inf
    assert (row["layers"], row["looked_at"]) == (2, 4)
    uniform = BoundTable("t", []).table(data).set_index("attention").loc["uniform"]
    assert uniform["matrix_error_max"] == 1.1 and math.isnan(uniform["kernel_error_median"])


def test_the_note_counts_in_how_many_kernels_the_bounds_hold(bounds):
    data = load(bounds.write(), "demo")
    said = BoundTable("t", []).notes(data)[1]
    # Of 2 x 4 kernels half have no bound. Errors are 0.2 and 0.1, projections 4 and bounds 40.
    assert "8 kernels: in 4 of them A is singular" in said
    assert "in the other 4, the error" in said.lower()
    assert "floor in 4, at most the projection bound in 4 and at most the lemma's bound in 4" in said
    assert "30 times the error in the median, the lemma's 300 times" in said
    data.rows("bound").loc[0, "kernel_error_pinv"] = 5.0  # beyond the projection bound
    assert "projection bound in 3 and at most the lemma's bound in 4" in BoundTable("t", []).notes(data)[1]


def test_the_readable_table_and_the_figure_are_in_the_report(bounds):
    page = build_report(bounds.write(), "demo", {"tables": TABLES, "figures": FIGURES}, "").page
    folder = page.parent
    assert "0.6 (0.8)" in (folder / "bound.md").read_text()
    assert "0.25 (0.8)" in page.read_text() and "failed" not in page.read_text().split("<main>")[1]
    assert (folder / "bound.tex").read_text().isascii()
    assert len(list((folder / "figures").glob("bound-*.png"))) == 1


def test_lines_are_the_medians_and_end_where_there_is_no_bound(bounds):
    ((_, figure),) = Bound("b").draw(load(bounds.write(), "demo"))
    left, right = figure.axes
    lines = {(line.get_color(), line.get_linestyle()): list(line.get_ydata()) for line in left.lines}
    assert list(lines.values())[0] == pytest.approx([0.6, 0.3])
    assert any(all(math.isnan(value) for value in values) for values in lines.values())  # the median of 40 and ∞
    assert list(right.lines[0].get_ydata()) == pytest.approx([0.25, 0.25])
    assert [text.get_text() for text in right.texts] == ["uniform 0.90"]


def test_a_sweep_without_spectral_errors_has_no_part_for_them(synthetic):
    synthetic.quality(synthetic.cell("quality", "nystra", synthetic.nystra), [{"psnr": 30.0}])
    stale = synthetic.write() / synthetic.sweep / "bound.csv"
    stale.write_text("of an earlier run")
    page = build_report(synthetic.results, "demo", {"tables": TABLES, "figures": FIGURES}, "").page
    assert "table-bound" not in page.read_text() and "figure-bound" not in page.read_text()
    assert not stale.exists() and not list(page.parent.glob("bound.*"))
    assert isinstance(load(synthetic.results, "demo").rows("bound"), pd.DataFrame)


def test_spectral_errors_that_were_planned_and_are_missing_are_told(synthetic):
    synthetic.cell("bound", "nystra", synthetic.nystra)
    page = build_report(synthetic.write(), "demo", {"tables": TABLES, "figures": FIGURES}, "").page.read_text()
    assert "Table bound is empty." in page and "Figure bound is not drawn." in page
    assert 'id="noise"' not in page and "No replacement" not in page  # no timing, no quality: nothing is said of them
