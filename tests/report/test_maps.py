"""Attention maps in the report."""

from __future__ import annotations

import numpy as np
import pytest

from nystra_bench.report.build import build_report
from nystra_bench.report.figures.maps import AttentionMaps
from nystra_bench.report.reading import load

FIGURES = {"maps": {"_target_": "nystra_bench.report.figures.maps.AttentionMaps", "title": "Maps"}}


@pytest.fixture
def maps(synthetic):
    """Exact attention and two methods, 4 x 6 tokens of two pixels."""
    exact = np.linspace(0, 1, 24, dtype=np.float32).reshape(4, 6)
    exact /= exact.sum()
    synthetic.maps(synthetic.cell("maps", "exact"), exact, exact)
    synthetic.maps(synthetic.cell("maps", "nystra", synthetic.nystra), exact[::-1], exact, outside=0.2)
    synthetic.maps(synthetic.cell("maps", "uniform"), np.full_like(exact, 1 / 24), exact)
    return synthetic, exact


def test_maps_and_differences_are_drawn_on_one_scale(maps):
    store, exact = maps
    ((label, figure),) = AttentionMaps("m").draw(load(store.write(), "demo"))
    assert label.startswith("blocks.0, head 0, toy_w8")
    above, below = np.array(figure.axes[:8]).reshape(2, 4)
    shown = [axes.images[0] for axes in above]
    np.testing.assert_allclose(shown[1].get_array(), exact)
    np.testing.assert_allclose(shown[2].get_array(), exact[::-1])
    assert all(image.norm is shown[1].norm for image in shown[1:]) and shown[1].norm.vmax == exact.max()
    differences = [axes.images[0] for axes in below[2:]]
    np.testing.assert_allclose(differences[0].get_array(), exact[::-1] - exact)
    assert differences[0].get_clim() == differences[1].get_clim()
    # The box is 8 x 12 pixels from row 8 and column 16 on; pixels are centred on whole numbers.
    assert shown[1].get_extent() == [15.5, 27.5, 15.5, 7.5]
    frame = above[0].patches[0]
    assert (frame.get_x(), frame.get_y(), frame.get_width(), frame.get_height()) == (15.5, 7.5, 12, 8)
    for axes in [*above, below[0], *below[2:]]:
        mark = axes.lines[0]
        assert (mark.get_xdata()[0], mark.get_ydata()[0]) == (19, 11)
    assert [axes.get_title() for axes in above[:2]] == ["input, row 11, column 19", "exact"]
    assert above[2].get_title().endswith("% misplaced, 20 % outside)") and "outside" not in above[3].get_title()


def test_many_methods_are_drawn_in_several_figures(maps):
    store, exact = maps
    data = load(store.write(), "demo")
    figures = AttentionMaps("m", columns=1).draw(data)
    assert len(figures) == 2 and figures[1][0].startswith("blocks.0, head 0 2, toy")
    assert all("exact" in [axes.get_title() for axes in figure.axes] for _, figure in figures)


def test_exact_attention_alone_is_drawn(synthetic):
    exact = np.full((2, 2), 0.25, np.float32)
    synthetic.maps(synthetic.cell("maps", "exact"), exact, exact)
    ((_, figure),) = AttentionMaps("m").draw(load(synthetic.write(), "demo"))
    assert [len(axes.images) for axes in figure.axes[:4]] == [1, 1, 1, 0]


def test_they_are_in_the_report_and_a_row_says_how_much_is_misplaced(maps):
    store, exact = maps
    page = build_report(store.write(), "demo", {"tables": {}, "figures": FIGURES}, "").page
    assert "failed" not in page.read_text().split("<main>")[1]
    assert len(list((page.parent / "figures").glob("maps-*.png"))) == 1
    data = load(store.results, "demo")
    misplaced = data.frame.set_index("attention")["map_error"]
    assert misplaced["exact"] == 0
    assert misplaced["nystra"] == pytest.approx(np.abs(exact - exact[::-1]).sum() / 2, rel=1e-6)


def test_without_maps_there_is_nothing(synthetic):
    synthetic.cell("maps", "exact")
    assert AttentionMaps("m").draw(load(synthetic.write(), "demo")) == []
