"""measure=bound: from the command line to the store and the table."""

import math

import pandas as pd
import pytest

pytestmark = pytest.mark.usefixtures("here")

NAMES = {"matrix_error", "kernel_error", "kernel_error_pinv", "kernel_floor", "kernel_projection", "kernel_bound"}
NAMES |= {"gap"}


def test_spectral_errors_are_measured_in_every_layer(bench):
    words = ["measure=[bound]", "attention=[exact,nystra,nystra_plus]", "attention.landmarks=4", "position_bias=native"]
    assert bench(*words).code == 0
    values = {result["cell"]["attention"]["name"]: result["value"] for result in bench.stored()}
    assert set(values) == {"exact", "nystra", "nystra_plus"}
    for name, value in values.items():
        assert (value["image"], value["height"], value["width"]) == ("picture0", 24, 24)
        assert [layer["layer"] for layer in value["layers"]] == [
            f"layers.0.residual_group.blocks.{block}.attn" for block in range(2)
        ]
        for layer in value["layers"]:
            assert set(layer["values"]) == (NAMES if name == "nystra" else {"matrix_error"})
            shapes = {(len(heads), *{len(windows) for windows in heads}) for heads in layer["values"].values()}
            assert shapes == {(2, len(layer["windows"]))}
    # All look at the same windows.
    assert len({str([layer["windows"] for layer in value["layers"]]) for value in values.values()}) == 1

    table = pd.read_csv(bench.results / "tiny" / "bound.csv").set_index("attention")
    assert set(table.layers) == {2} and set(table.looked_at) == {2 * 2 * 2}
    assert table.matrix_error_max["exact"] < 1e-12 < table.matrix_error_median["nystra_plus"]
    nystra = table.loc["nystra"]
    assert 0 < nystra.kernel_floor_median < nystra.kernel_error_pinv_median < nystra.kernel_projection_median
    assert nystra.kernel_projection_median < nystra.kernel_bound_median < math.inf
    assert list((bench.results / "tiny" / "figures").glob("bound-*.svg"))

    plan = bench(*words, "mode=plan")
    assert plan.out.splitlines()[-1].endswith("3 cells: 3 done; 0 to measure")


def test_a_sweep_measures_no_bounds_unless_it_is_asked_to(bench):
    plan = bench("mode=plan")
    assert {line.split()[1] for line in plan.out.splitlines()[:-1]} == {"quality", "latency", "memory"}
