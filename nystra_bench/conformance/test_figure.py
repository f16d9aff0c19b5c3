"""What every figure keeps to: it bears all that a sweep can leave behind, and says how to read it."""

from __future__ import annotations

import io
import sys

import matplotlib.figure
import numpy as np
import pytest
from PIL import Image

from nystra_bench.report.base import Figure
from nystra_bench.report.plotting import style


@pytest.fixture
def figure(subject) -> Figure:
    return subject.make()


def test_it_says_what_it_is(figure):
    assert isinstance(figure, Figure)
    assert isinstance(figure.title, str) and figure.title
    assert isinstance(figure.place, int)


def test_it_draws_or_says_why_there_is_nothing(figure, data, unchanged):
    with style():
        drawings = figure.draw(data)
        assert isinstance(drawings, list)
        for suffix, drawn in drawings:
            assert isinstance(suffix, str) and isinstance(drawn, matplotlib.figure.Figure)
            assert is_picture(drawn)
    said = figure.caption(data) if drawings else figure.nothing(data)
    assert isinstance(said, str) and said.strip().endswith("."), "a caption, and a reason, are sentences"


def is_picture(drawn: matplotlib.figure.Figure) -> bool:
    """Whether it can be written as a PNG with something in it."""
    content = io.BytesIO()
    drawn.savefig(content, format="png", facecolor="white")
    shades = np.asarray(Image.open(content).convert("L"))
    return shades.min() < shades.max()


def test_it_leaves_no_figure_in_pyplots_global_state(figure, data):
    with style():
        figure.draw(data)
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()
