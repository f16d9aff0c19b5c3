"""``accelerate``: the target is kept with less work, and the report says what was checked and what was not."""

from __future__ import annotations

import numpy as np
import pytest

from nystra_bench import Timing, accelerate, compare, list_layers, load_model, load_task
from nystra_bench.api.acceleration import MARGIN
from nystra_bench.errors import UserError
from nystra_bench.models import named_attention_sites

SETTINGS = ["nystra_plus(landmarks=4)", "nystra_plus(landmarks=16)", "nystra_plus(landmarks=32)"]
QUICK = Timing(rounds=3, min_rounds=3, budget_s=0, warmup_s=0)


@pytest.fixture
def model():
    return load_model("swinir_denoise_w8")


@pytest.fixture(scope="module")
def images():
    """The middles of four photographs with noise: astronaut, coffee, chelsea and rocket."""
    return [sample.degraded for sample in load_task("denoise", sigma=25, limit=4, crop=48).samples()]


def test_the_target_is_kept_with_less_work_and_checked_on_other_images(model, images):
    gain = accelerate(model, images, 45, attentions=SETTINGS, timing=None)
    assert list(gain.images["chosen_on"]) == [True, False, True, False]
    assert gain.images.loc[gain.images["chosen_on"], "deviation_psnr"].min() >= 45 + MARGIN - 0.1
    assert gain.images["deviation_psnr"].min() >= 45 - 2
    assert gain.layers["gflops"].sum() < gain.layers["gflops_exact"].sum()
    assert list(gain.layers.index) == list_layers(model)
    told = str(gain)
    assert "45.0 dB were asked for, with a margin of 2.0 dB" in told and "on others" in told
    assert told.split(".")[0] in gain._repr_html_()
    # What is told is what is plugged in.
    again = compare(model, images[1], {"plugged": gain.attention}, metrics=["deviation_psnr"], timing=None)
    assert again.loc["plugged", "deviation_psnr"] == pytest.approx(gain.images["deviation_psnr"][1])
    plugged = {name: site.attention for name, site in named_attention_sites(model).items()}
    assert plugged == gain.attention.by_layer


def test_a_higher_target_takes_more_work_up_to_exact_attention(model, images):
    low, high = (accelerate(model, images[0], dB, attentions=SETTINGS[:1], timing=None) for dB in (20, 190))
    assert low.layers["gflops"].sum() < high.layers["gflops"].sum()
    assert set(high.layers["attention"]) == {"exact"} and "0 of" in str(high)
    assert "no other image to check it on" in str(high)


def test_where_nothing_is_said_version_5_keeps_with_less_work_what_version_4_cannot(images):
    model = load_model("swinir_denoise_w8", window_size=32, position_bias="interpolate")
    of_version_4 = [f"nystra_plus_fused(landmarks={landmarks})" for landmarks in (8, 16, 32, 64)]
    before = accelerate(model, images[0], 50, attentions=of_version_4, timing=None)
    gain = accelerate(model, images[0], 50, timing=None)
    assert gain.images["deviation_psnr"].min() >= 50 + MARGIN - 0.1
    assert gain.layers["attention"].str.startswith("nystra_plus_v5_fused").any()
    assert gain.layers["gflops"].sum() < before.layers["gflops"].sum()


def test_the_gain_is_timed_against_both_forms_of_exact_attention(model, images):
    gain = accelerate(model, images[0], 30, attentions=SETTINGS[:1], timing=QUICK)
    assert gain.timed["latency_ms"] > 0 and gain.timed["speedup_vs_sdpa"] > 0
    assert "times as fast as with fused exact attention" in str(gain)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"target_deviation": 0}, "target_deviation=0 is out of range: accepted are 0 to 200 dB"),
        ({"margin": -1}, "margin=-1 is out of range: accepted are 0 to 50 dB"),
        ({"images": []}, "images is empty"),
        ({"attentions": []}, "attentions is empty"),
        ({"attentions": "nystra_pluss"}, "nystra_pluss"),
        ({"images": np.zeros((32, 32, 2))}, "does not fit a model of 3 channels"),
    ],
)
def test_mistakes_are_told_in_a_sentence(model, images, arguments, told):
    with pytest.raises(UserError, match=told) as caught:
        accelerate(model, **({"images": images[0]} | arguments))
    assert "\n" not in str(caught.value)
