"""Spectra, attention maps, and times against the number of tokens."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from nystra_bench import Timing, attention_maps, list_layers, spectra, time_attention
from nystra_bench.api.images import to_input
from nystra_bench.attention.nystra import NystraAttention
from nystra_bench.errors import UserError
from nystra_bench.instruments.attention_maps import attention_maps as find_maps
from nystra_bench.instruments.spectra import attention_spectra

QUICK = Timing(rounds=3, min_rounds=3, budget_s=0, warmup_s=0, min_sample_ms=0)


def test_spectra_are_the_instruments(model, noisy):
    table = spectra(model, noisy, ["nystra(landmarks=8)"], windows=1, values=7)
    attentions = {"nystra(landmarks=8)": NystraAttention(landmarks=8)}
    expected = attention_spectra(model, to_input(noisy, model), attentions, windows=1, values=7)
    pd.testing.assert_frame_equal(table, pd.DataFrame(expected))
    assert set(table.attention) == {"exact", "nystra(landmarks=8)"} and set(table.layer) == set(list_layers(model))


def test_maps_are_the_instruments(model, noisy):
    layer = list_layers(model)[1]
    where = [(3, 5), (20, 30)], [layer], [1, 2]
    maps = attention_maps(model, noisy, *where, ["nystra"])
    expected = find_maps(model, to_input(noisy, model), {"nystra": NystraAttention()}, *where)
    assert len(maps) == len(expected) == 2 * 2 * 2
    assert all(np.array_equal(a.values, b.values) and a.box == b.box for a, b in zip(maps, expected, strict=True))
    exact = [found for found in maps if found.attention == "exact"]
    assert all(found.values.sum() + found.outside == pytest.approx(1, abs=1e-5) for found in exact)


def test_the_table_of_maps_tells_what_is_misplaced(model, noisy):
    maps = attention_maps(model, noisy, [(3, 5), (20, 30)], -1, 1, ["identity", "sdpa"])
    table = maps.table()
    assert list(table.columns) == ["attention", "layer", "head", "query", "outside", "map_error"]
    assert (table[table.attention == "exact"].map_error == 0).all()
    assert (table[table.attention == "sdpa"].map_error < 1e-5).all()
    exact, identity = (m for m in maps if m.query == (20, 30) and m.attention in ("exact", "identity"))
    expected = 1 - exact.values[identity.values == 1].item()  # all weight on the token itself
    found = table[(table.attention == "identity") & (table["query"] == (20, 30))].map_error.item()
    assert found == pytest.approx(expected, rel=1e-4)


def test_the_pictures_of_maps_have_a_panel_for_each(model, noisy):
    maps = attention_maps(model, noisy, [(3, 5), (9, 9)], [0, 1], [0, 2], ["nystra", "identity"])
    figures = maps.figures()
    assert len(figures) == 2 * 2
    for figure in figures:
        titles = [axes.get_title().split("\n")[0] for axes in figure.axes if axes.get_title()]
        assert [title for title in titles if not title.startswith("input")] == ["exact", "nystra", "identity"] * 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"layers": "layers.7"}, "layer=layers.7 is unknown.*accepted are layers.0"),
        ({"heads": 9}, "head=9 does not exist in layer .*: accepted are 0 to 3"),
        ({"queries": [(32, 0)]}, r"query=\[32, ?0\] lies outside of the image: accepted are rows 0 to 31"),
        ({"queries": [5]}, "query=5 is no pixel: accepted are a row and a column"),
        ({"attentions": "nystra(landmarks=65)"}, "exceed the 64 tokens"),
    ],
)
def test_maps_that_are_not_there(model, noisy, arguments, said):
    fitting = {"queries": [(0, 0)], "layers": list_layers(model)[0]}
    with pytest.raises(UserError, match=said):
        attention_maps(model, noisy, **fitting | arguments)


def test_spectra_that_are_not_there(model, noisy):
    with pytest.raises(UserError, match="windows=0 is out of range: accepted are whole numbers from 1 on"):
        spectra(model, noisy, windows=0)
    with pytest.raises(UserError, match="values=True is out of range"):
        spectra(model, noisy, values=True)


def test_time_against_tokens(model):
    table = time_attention(["exact", "nystra(landmarks=16)"], (16, 64), heads=2, dim=8, timing=QUICK)
    assert list(table.attention) == ["exact"] * 2 + ["nystra(landmarks=16)"] * 2
    assert list(table.tokens) == [16, 64] * 2
    assert (table.median_ms > 0).all() and table.reason.isna().all()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"sizes": 60}, "60.*accepted are squares"),
        ({"mode": "windows"}, r"mode=windows is unknown \(did you mean window\?\)"),
        ({"heads": 0}, "heads=0 is out of range: accepted are whole numbers from 1 on"),
        ({"dim": 1.5}, "dim=1.5 is out of range"),
        ({"dtype": "float31"}, r"dtype=float31 is unknown \(did you mean float32\?\)"),
        ({"device": "gpu"}, "device=gpu is unknown"),
        ({"attentions": "exakt"}, r"attention=exakt is unknown \(did you mean exact"),
    ],
)
def test_time_against_what_does_not_fit(arguments, said):
    with pytest.raises(UserError, match=said):
        time_attention(**{"attentions": "exact", "sizes": 64, "timing": QUICK} | arguments)
