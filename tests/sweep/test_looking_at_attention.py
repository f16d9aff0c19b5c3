"""measure=spectrum and measure=maps: from the command line to the store, the table and the figures."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from nystra_bench.instruments.spectra import RECORDED
from nystra_bench.measure.maps import Maps
from nystra_bench.measure.spectrum import Spectrum

pytestmark = pytest.mark.usefixtures("here")

LAYERS = [f"layers.0.residual_group.blocks.{block}.attn" for block in range(2)]
SMALL = ["position_bias=native", "attention.landmarks=4"]


def values(bench, measure: str) -> dict[str, dict]:
    stored = [result for result in bench.stored() if result["cell"]["measure"]["name"] == measure]
    return {result["cell"]["attention"]["name"]: result["value"] for result in stored}


def test_spectra_are_measured_together_and_one_failure_stays_alone(bench):
    words = ["measure=spectrum", "attention=[exact,nystra,raising,identity]", *SMALL]
    assert bench(*words).code == 2
    found = values(bench, "spectrum")
    assert set(found) == {"exact", "nystra", "identity"}
    for value in found.values():
        (image,) = value["images"]
        assert (image["id"], image["height"], image["width"]) == ("picture0", 24, 24)
        heads = [(layer, head) for layer in LAYERS for head in (0, 1)]
        assert [(record["layer"], record["head"]) for record in image["records"]] == heads
        assert all(set(RECORDED) < set(record) for record in image["records"])
    (failure,) = bench.stored("failure")
    assert failure["cell"]["attention"]["name"] == "raising" and failure["reason"].startswith("NotImplementedError")

    table = bench.table().set_index("attention")
    assert table.loc["exact", "matrix_mse"] == 0 and table.loc["nystra", "matrix_mse"] > 0
    assert table.loc["identity", "self_mass"] == 1 and table.loc["identity", "energy_20"] == pytest.approx(20 / 64)
    sides = pd.read_csv(bench.results / "tiny" / "spectrum.csv")
    assert list(sides["heads"]) == [4, 4, 4] and set(sides["tokens_max"]) == {64}
    drawn = {file.name.split("-")[0] for file in (bench.results / "tiny" / "figures").glob("*.svg")}
    assert {"spectra", "spectrum"} <= drawn
    assert bench(*words, "attention=[exact,nystra]", "mode=plan").out.splitlines()[-1].endswith("2 done; 0 to measure")


def test_maps_are_stored_with_the_image(bench):
    words = ["measure=maps", "measure.layer=[0,-1]", "measure.head=null", "attention=[exact,nystra]", *SMALL]
    assert bench(*words).code == 0
    stored = bench.stored()
    assert len(stored) == 4
    for result in stored:
        value, layer = result["value"], LAYERS[result["cell"]["measure"]["params"]["layer"]]
        told = [(m["layer"], m["head"], tuple(m["query"])) for m in value["maps"]]
        assert told == [(layer, head, query) for query in ((12, 12), (7, 16)) for head in (0, 1)]
        with np.load(bench.results / "store" / result["key"] / "maps.npz") as arrays:
            assert arrays["image"].shape == (24, 24, 3) and len(arrays) == 1 + 2 * 4
            for n, found in enumerate(value["maps"]):
                own, exact = arrays[f"map{n}"], arrays[f"exact{n}"]
                assert own.shape == exact.shape == tuple(found["box"][2:])
                is_exact = result["cell"]["attention"]["name"] == "exact"
                assert np.array_equal(own, exact) == is_exact and (found["map_error"] == 0) == is_exact
    assert len(list((bench.results / "tiny" / "figures").glob("maps-*.png"))) == 2 * 2
    assert bench.table()["map_error"].gt(0).sum() == 2


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["measure=maps", "measure.layer=nothing"], "measure=maps: layer=nothing is unknown: accepted are layers.0"),
        (["measure=maps", "measure.layer=2"], "layer=2 does not exist: accepted are -2 to 1, and names of layers"),
        (["measure=maps", "measure.queries=[[24,3]]"], "measure=maps: query=[24,3] lies outside of the image: "),
        (["measure=maps", "measure.queries=[[1,2,3]]"], "measure.queries=[1, 2, 3] are no pixels: accepted are [row,"),
        (["measure=maps", "measure.head=-1"], "measure.head=-1 is out of range: accepted are whole numbers from 0"),
        (["measure=spectrum", "measure.windows=0"], "measure.windows=0 is out of range: accepted are whole numbers"),
        (["measure=spectrum", "measure.values=few"], "values=few does not fit: accepted are whole numbers"),
    ],
)
def test_what_does_not_exist_is_told_before_anything_is_measured(bench, words, sentence):
    outcome = bench(*words, "attention=exact", "position_bias=native")
    assert outcome.code == 1 and sentence in outcome.sentence
    assert not bench.stored() and not bench.stored("failure")


def test_a_head_that_does_not_exist_is_the_reason_of_the_cell(bench):
    assert bench("measure=maps", "measure.head=2", "attention=exact", "position_bias=native").code == 2
    (failure,) = bench.stored("failure")
    assert failure["reason"] == f"head=2 does not exist in layer {LAYERS[1]}: accepted are 0 to 1"


def test_a_model_without_attention_is_refused():
    for made in (Spectrum(), Maps()):
        assert made.refuses([], [(8, 8)]).startswith("the model has no attention to look at: accepted are")
        assert made.refuses(LAYERS, []) is None


def test_one_pixel_or_several():
    assert Maps(queries=[3, 4]).queries == Maps(queries=[[3, 4]]).queries == [(3, 4)]
    assert Maps(queries=[[3, 4], [5, 6]]).queries == [(3, 4), (5, 6)]
    assert Maps(queries=[[3, 4], [5, 60]]).refuses(LAYERS, [(8, 8), (20, 61)]) is None
    assert "query=[5,60]" in Maps(queries=[[3, 4], [5, 60]]).refuses(LAYERS, [(8, 8), (20, 60)])
