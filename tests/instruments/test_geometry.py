"""Numbers of tokens that windows can hold, and shapes by name."""

import pytest

from nystra_bench.errors import UserError
from nystra_bench.instruments.geometry import MAP, SERIES, SHAPES, Shape, shape_of, sides_of


def test_the_series_reach_from_64_to_65536_tokens():
    for mode, sides in SERIES.items():
        assert (sides[0] ** 2, sides[-1] ** 2) == (64, 65_536)
        assert sides_of(None, mode) == sorted(sides) == sides_of([side * side for side in sides], mode)
    assert all(MAP % side == 0 for side in SERIES["image"])


def test_sizes_are_sorted_and_counted_once():
    assert sides_of([1024, 64, 64], "window") == [8, 32]
    assert sides_of(49, "window") == [7]


@pytest.mark.parametrize("tokens", [50, 0, -4, 1, 2.25, "64x64", True, None])
def test_tokens_that_no_window_holds_are_told_with_their_neighbours(tokens):
    with pytest.raises(UserError, match=r"sizes=.* accepted are squares of whole numbers from 2 on, such as \d+"):
        sides_of([tokens], "window")


def test_the_neighbours_are_squares_on_either_side():
    with pytest.raises(UserError, match=r"sizes=2000 .* such as 1936 and 2025$"):
        sides_of([64, 2000], "window")


@pytest.mark.parametrize("tokens", [144, 512, 4 * 65_536])
def test_a_map_is_cut_into_equal_windows(tokens):
    with pytest.raises(UserError, match=rf"sizes={tokens} .* map of 256x256 tokens .* accepted are 4, 16, 64,.*65536"):
        sides_of([tokens], "image")


def test_other_mistakes():
    with pytest.raises(UserError, match="mode=images is unknown .*did you mean image"):
        sides_of(None, "images")
    with pytest.raises(UserError, match="holds no number of tokens"):
        sides_of([], "window")
    with pytest.raises(UserError, match=r"shape=swinir is unknown \(did you mean swinir_m\?\): .*6x30"):
        shape_of("swinir")
    for name in ("0x30", "6x", "6x30x2"):
        with pytest.raises(UserError, match="HEADSxCHANNELS"):
            shape_of(name)


def test_shapes():
    assert shape_of("swinir_m") == Shape(6, 30) == shape_of("6x30")
    assert SHAPES["global"] == Shape(9, 16)
