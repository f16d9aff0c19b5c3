"""measure=propagation: from the command line to the store, the table and the figure."""

import math

import pytest
import torch

from nystra_bench.attention.nystra import NystraAttention
from nystra_bench.instruments.propagation import propagation
from nystra_bench.models import load_model
from nystra_bench.tasks.denoise import GaussianDenoise

pytestmark = pytest.mark.usefixtures("here")


def test_it_is_measured_tabled_and_drawn(bench, tiny_weights, images):
    words = ["measure=propagation", "attention=[exact,nystra]", "attention.landmarks=4", "device=cpu"]
    outcome = bench(*words, "tables=[main]", "figures=[propagation]")
    assert outcome.code == 0, outcome.err
    results = {(c["cell"]["attention"]["name"], c["cell"]["window"]): c for c in bench.stored()}
    assert set(results) == {("exact", 8), ("nystra", 8), ("exact", 16), ("nystra", 16)}
    exact, nystra = results["exact", 8]["value"], results["nystra", 8]["value"]
    assert exact["mean_square_error"] == 0
    assert {layer[kind] for layer in exact["layers"] for kind in ("all", "alone")} == {0}

    sample = next(iter(GaussianDenoise(sigma=25, images=str(images), crop=24).samples()))
    x = torch.from_numpy(sample.degraded).permute(2, 0, 1)[None].contiguous()
    here = propagation(load_model("swinir", weights=str(tiny_weights)), x, NystraAttention(4))
    assert len(nystra["layers"]) == len(here) == 2
    for stored, own in zip(nystra["layers"], here, strict=True):
        assert stored["layer"] == own["layer"]
        assert (stored["all"], stored["alone"]) == pytest.approx((own["all"], own["alone"]), rel=1e-3)

    table = bench.table()
    row = table[(table.attention == "nystra") & (table.window == 8)].iloc[0]
    worst = max(nystra["layers"], key=lambda layer: layer["alone"])
    assert row.last_layer_error == pytest.approx(nystra["layers"][-1]["all"])
    assert row.worst_alone_layer.endswith(worst["layer"])
    assert row.first_image_deviation == pytest.approx(-10 * math.log10(nystra["mean_square_error"]))
    assert table[table.attention == "exact"].first_image_deviation.eq(math.inf).all()
    drawn = {file.name for file in (bench.results / "tiny" / "figures").glob("*.svg")}
    assert "propagation-as-released-cpu-float32.svg" in drawn


def test_an_output_that_is_not_finite_is_a_status(bench, plugins):
    (plugins / "breaking.py").write_text(
        "from nystra_bench.attention.identity import IdentityAttention\n\n\n"
        "class Breaking(IdentityAttention):\n"
        "    def forward(self, q, k, v, window):\n"
        "        return v / 0\n"
    )
    (plugins / "attention" / "breaking.yaml").write_text("_target_: breaking.Breaking\n")
    words = ["measure=propagation", "attention=breaking", "position_bias=native", "device=cpu", "figures=[]"]
    bench(*words, "tables=[]")
    (result,) = bench.stored()
    assert (result["status"], result["reason"]) == ("nonfinite", "features or the output hold NaN or infinite numbers")
