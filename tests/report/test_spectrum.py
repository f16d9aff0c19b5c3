"""Spectra in the report, against numbers computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nystra_bench.conformance.synthetic import spectrum_record
from nystra_bench.report.build import build_report
from nystra_bench.report.figures.spectra import Spectra
from nystra_bench.report.figures.spectrum import Decay
from nystra_bench.report.reading import load
from nystra_bench.report.tables.spectrum import SpectrumTable

COLUMNS = ["model", "window", "attention"]
TABLE = {"_target_": "nystra_bench.report.tables.spectrum.SpectrumTable", "title": "T", "columns": COLUMNS}
FIGURES = {
    "spectrum": {"_target_": "nystra_bench.report.figures.spectrum.Decay", "title": "Decay"},
    "spectra": {"_target_": "nystra_bench.report.figures.spectra.Spectra", "title": "Spectra"},
}
HEADS = (0.5, 0.6, 0.8)


@pytest.fixture
def spectra(synthetic):
    """Three heads of exact attention in windows of 64 tokens, one in a window of 16, and a method; two models."""
    other = {"name": "other", "weights": "cc" * 32, "version": "1", "native_window": 8}
    for changes in ({}, {"model": other}):
        records = [spectrum_record(n, decay) for n, decay in enumerate(HEADS)]
        small = spectrum_record(3, 0.1, tokens=16)
        synthetic.spectrum(synthetic.cell("spectrum", "exact", **changes), [*records, small])
        about = {"effective_tokens": None, "logit_std": None, "logit_min": None, "logit_max": None, "rank_99": "inf"}
        own = [spectrum_record(n, 0.4, matrix_mse=1e-3, **about) for n in range(2)]
        synthetic.spectrum(synthetic.cell("spectrum", "nystra", synthetic.nystra, **changes), own)
    return synthetic


def test_scalars_are_medians_over_all_heads(spectra):
    data = load(spectra.write(), "demo")
    exact, nystra = data.frame.loc[0], data.frame.loc[1]
    # 0.1 holds nearly all of its energy in one value.
    shares = [(1 - decay**10) / (1 - decay ** (2 * tokens)) for decay, tokens in ((0.1, 16), (0.5, 64), (0.6, 64))]
    assert exact["energy_5"] == pytest.approx((shares[1] + shares[2]) / 2)
    assert exact["matrix_mse"] == 1e-5 and nystra["matrix_mse"] == 1e-3
    assert math.isnan(nystra["effective_tokens"]) and nystra["rank_99"] == math.inf
    assert len(data.rows("spectrum")) == 2 * (4 + 2)


def test_lines_are_medians_and_the_band_quartiles_of_the_largest_windows(spectra):
    (_, figure), (other, _) = Decay("d").draw(load(spectra.write(), "demo"))
    assert other.startswith("other")
    (axes,) = figure.axes
    exact, nystra, mark = axes.lines
    places = np.arange(50)
    np.testing.assert_allclose(exact.get_ydata(), 0.6**places)  # the median of three; the small window is left out
    np.testing.assert_allclose(nystra.get_ydata(), 0.4**places)
    assert list(exact.get_xdata()) == list(range(1, 51)) and exact.get_linewidth() > nystra.get_linewidth()
    assert set(mark.get_xdata()) == {20}
    band = axes.collections[0].get_paths()[0].vertices
    assert (band[:, 0] == 2).any() and band[band[:, 0] == 2][:, 1] == pytest.approx([0.55, 0.7], abs=1e-9)
    assert axes.get_yscale() == "log" and "N = 64" in axes.get_title("left")


def test_captions_tell_the_share_of_the_first_twenty(spectra):
    data = load(spectra.write(), "demo")
    said = Decay("d").caption(data)
    shares = [100 * (1 - decay**40) / (1 - decay**128) for decay in HEADS]
    assert f"toy_w8, window 32, bias interpolate, N = 64: {shares[1]:.1f} % (quartiles " in said
    assert "other, window 32" in said and "N = 32²" in said
    assert Spectra("s").caption(data).endswith(said[said.index("Figure 1 of") :])


def test_models_stand_side_by_side_with_exact_attention_alone(spectra):
    ((_, figure),) = Spectra("s").draw(load(spectra.write(), "demo"))
    assert [axes.get_title("left") for axes in figure.axes] == ["toy_w8", "other"]
    for axes in figure.axes:
        exact, _ = axes.lines
        np.testing.assert_allclose(exact.get_ydata(), 0.6 ** np.arange(50))


def test_a_bias_has_one_colour_in_all_axes(synthetic):
    other = {"name": "other", "weights": "cc" * 32, "version": "1", "native_window": 8}
    drop, kept = {"position_bias": "drop"}, {"position_bias": "interpolate"}
    for changes in (kept, drop, {"model": other, **drop}):
        synthetic.spectrum(synthetic.cell("spectrum", "exact", **changes), [spectrum_record(0, 0.5)])
    ((_, figure),) = Spectra("s").draw(load(synthetic.write(), "demo"))
    first, second = ({line.get_label(): line.get_color() for line in axes.lines[:-1]} for axes in figure.axes)
    (colour,) = second.values()
    assert [colour == own for own in first.values()] == [False, True]


def test_the_table_holds_medians_and_quartiles(spectra):
    data = load(spectra.write(), "demo")
    table = SpectrumTable("t", COLUMNS).table(data)
    assert list(table["heads"]) == [4, 2, 4, 2] and set(table["tokens_min"]) == {16, 64}
    first = table.iloc[0]
    assert first["energy_20_median"] == data.frame.at[0, "energy_20"]
    assert first["rank_90_q1"] <= first["rank_90_median"] <= first["rank_90_q3"]
    shown = SpectrumTable("t", COLUMNS).readable(data)
    texts = [[cell.text for cell in row] for row in shown.rows]
    assert any("∞ (∞–∞)" in row for row in texts) and "0.001 (0.001–0.001)" in texts[1]


def test_they_are_in_the_report_and_nowhere_without_spectra(spectra, tmp_path):
    page = build_report(spectra.write(), "demo", {"tables": {"spectrum": TABLE}, "figures": FIGURES}, "").page
    assert "failed" not in page.read_text().split("<main>")[1]
    assert len(list((page.parent / "figures").glob("*.png"))) == 3
    assert "0.001 (0.001–0.001)" in (page.parent / "spectrum.md").read_text()
    empty = type(spectra)(tmp_path / "empty")
    empty.quality(empty.cell("quality", "exact"), [{"psnr": 30.0}])
    data = load(empty.write(), "demo")
    assert Decay("d").draw(data) == Spectra("s").draw(data) == []
    assert SpectrumTable("t", COLUMNS).nothing(data) == "The sweep has no spectra (measure=spectrum)."
