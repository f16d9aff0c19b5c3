"""The figure of single layers' errors against operations: what stands where."""

import pytest
from matplotlib.container import ErrorbarContainer

from nystra_bench.report import plotting
from nystra_bench.report.figures.layer_errors import LayerErrors
from nystra_bench.report.reading import load

ERRORS = (0.9, 0.01), (0.9, 0.04), (0.9, 0.09)
"""Of three layers, all attentions replaced and the layer's own alone."""


@pytest.fixture
def figure() -> LayerErrors:
    return LayerErrors("Errors of single layers")


def both(store, attention: str, params: dict | None = None, errors=ERRORS, gflops: float = 2.0, **changes) -> None:
    store.propagation(store.cell("propagation", attention, params, **changes), *errors)
    store.memory(store.cell("memory", attention, params, **changes), attention=gflops)


def drawn(figure, store) -> list:
    with plotting.style():
        return [axes for _, picture in figure.draw(load(store.write(), "demo")) for axes in picture.axes]


def bars(axes) -> list[ErrorbarContainer]:
    return [container for container in axes.containers if isinstance(container, ErrorbarContainer)]


def test_a_mark_is_the_median_and_its_bar_reaches_to_the_best_and_worst_layer(figure, synthetic):
    both(synthetic, "nystra", synthetic.nystra)
    (axes,) = drawn(figure, synthetic)
    (bar,) = bars(axes)
    line, _, (ends,) = bar
    assert line.get_xydata().tolist() == [[2.0, 0.04]]
    assert ends.get_segments()[0].tolist() == [[2.0, pytest.approx(0.01)], [2.0, pytest.approx(0.09)]]


def test_settings_that_differ_in_their_landmarks_alone_are_joined(figure, synthetic):
    for landmarks in (8, 16):
        both(synthetic, "nystra", synthetic.nystra | {"landmarks": landmarks}, gflops=landmarks)
    (bar,) = bars(*drawn(figure, synthetic))
    assert bar[0].get_xdata().tolist() == [8, 16]


def test_references_are_lines_of_their_own_axes(figure, synthetic):
    """The upright one is what exact attention costs there, the dotted one what no attention loses."""
    for bias, cost in (("interpolate", 7.0), ("drop", 11.0)):
        both(synthetic, "nystra", synthetic.nystra, position_bias=bias)
        both(synthetic, "sdpa", errors=((0.0, 0.0),), gflops=cost, position_bias=bias)
        both(synthetic, "identity", errors=((0.9, 0.2), (0.9, 0.4), (0.9, 0.8)), gflops=0.0, position_bias=bias)
    for axes, cost in zip(drawn(figure, synthetic), (7.0, 11.0), strict=True):
        assert len(bars(axes)) == 1
        others = [line for line in axes.lines if line is not bars(axes)[0][0]]
        assert {(line.get_linestyle(), *line.get_xydata()[0]) for line in others} == {("-", cost, 0), (":", 0, 0.4)}


@pytest.mark.parametrize("missing", ["memory", "propagation"])
def test_what_has_one_of_the_two_is_not_drawn(figure, synthetic, missing):
    if missing == "memory":
        synthetic.propagation(synthetic.cell("propagation", "nystra", synthetic.nystra), *ERRORS)
    else:
        synthetic.memory(synthetic.cell("memory", "nystra", synthetic.nystra))
    assert drawn(figure, synthetic) == []


def test_rounding_is_no_error(figure, synthetic):
    both(synthetic, "flex", errors=((1e-8, 1e-8), (1e-8, 1e-7)))
    assert drawn(figure, synthetic) == []
