"""Calibrated methods: a target is reached with as little work as is found, layer by layer."""

from __future__ import annotations

import pytest
import torch

from nystra_bench.attention.calibration import choose
from nystra_bench.attention.exact import ExactAttention
from nystra_bench.attention.identity import IdentityAttention
from nystra_bench.attention.nystra_plus import NystraPlusAttention
from nystra_bench.attention.nystra_plus_v5 import NystraPlusV5Attention
from nystra_bench.attention.sdpa import FusedAttention
from nystra_bench.models import attention_sites, calibrate, named_attention_sites, plug
from nystra_bench.models.swinir import SwinIR, SwinIRSpec
from nystra_bench.tasks.denoise import GaussianDenoise


@pytest.fixture(scope="module")
def model():
    """Random weights with logits large enough for the landmarks to matter."""
    torch.manual_seed(0)
    model = SwinIR(SwinIRSpec(dim=8, depths=(2, 2), heads=(2, 2), window=8, mlp_ratio=1.0)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.ndim > 1 else 1)
    return model


@pytest.fixture(scope="module")
def images():
    rng = torch.Generator().manual_seed(1)
    return [torch.rand(1, 3, 24, 32, generator=rng), torch.rand(1, 3, 16, 16, generator=rng)]


def deviation(model, attention, images) -> float:
    """PSNR in dB of the mean squared error over the images."""
    with torch.inference_mode():
        outputs = [[plug(model, a)(x).clamp(0, 1) for x in images] for a in (attention, ExactAttention())]
    errors = [(x - y).square().mean() for x, y in zip(*outputs, strict=True)]
    return -10 * torch.stack(errors).mean().log10().item()


@pytest.mark.parametrize("method", [NystraPlusAttention, NystraPlusV5Attention])
@pytest.mark.parametrize("target", [20.0, 40.0, 55.0])
def test_the_target_is_reached_and_measured(model, images, method, target):
    attention = method(target_deviation=target)
    record = calibrate(model, attention, images)
    reached = deviation(model, attention, images)
    assert reached >= target - 0.01
    assert record["deviation"] is None or record["deviation"] == pytest.approx(reached, abs=0.05)
    assert set(record["layers"]) == set(named_attention_sites(model))


def test_a_higher_target_costs_no_less(model, images):
    work = [calibrate(model, NystraPlusAttention(target_deviation=t), images)["gflops"] for t in (15, 35, 50, 90)]
    assert work == sorted(work)
    assert work[0] < work[-1]


def test_what_landmarks_cannot_reach_is_exact(model, images):
    attention = NystraPlusAttention(target_deviation=199)
    record = calibrate(model, attention, images)
    assert set(record["layers"].values()) == {"exact"}
    assert record["deviation"] is None
    plug(model, attention)
    assert all(isinstance(site.attention, FusedAttention) for site in attention_sites(model))


def test_the_choice_is_the_same_again(model, images):
    first, second = (calibrate(model, NystraPlusAttention(target_deviation=40), images) for _ in range(2))
    assert {**first, "seconds": 0} == {**second, "seconds": 0}


def test_layers_have_their_attention_back(model, images):
    plug(model, ExactAttention())
    before = [site.attention for site in attention_sites(model)]
    calibrate(model, NystraPlusAttention(target_deviation=30), images)
    assert all(site.attention is old for site, old in zip(attention_sites(model), before, strict=True))


class Refusing(IdentityAttention):
    def refuses(self, height, width):
        return "it always refuses"


class Costly(ExactAttention):
    def flops(self, *shape):
        return 100 * super().flops(*shape)


def test_refusing_and_worthless_candidates_are_never_chosen(model, images):
    sites, candidates = named_attention_sites(model), {"refusing": Refusing(), "costly": Costly()}
    choice = choose(sites, model, images, candidates, 60)
    assert set(choice.record["layers"].values()) == {"exact"}


def test_it_has_to_be_calibrated_first(model):
    before = [site.attention for site in attention_sites(model)]
    with pytest.raises(ValueError, match="target_deviation=40.* calibrated first"):
        plug(model, NystraPlusAttention(target_deviation=40))
    assert all(site.attention is old for site, old in zip(attention_sites(model), before, strict=True))
    with pytest.raises(ValueError, match="has none"):
        calibrate(model, NystraPlusAttention(target_deviation=40), [])


@pytest.mark.parametrize("target", [0, -3, 400])
@pytest.mark.parametrize("method", [NystraPlusAttention, NystraPlusV5Attention])
def test_targets_out_of_range_are_refused(method, target):
    with pytest.raises(ValueError, match=f"target_deviation={target}"):
        method(target_deviation=target)


def test_calibration_looks_at_other_images_where_there_are_some():
    some, all_of_them = GaussianDenoise(25, limit=2, crop=64), GaussianDenoise(25)
    samples, measured_too = some.calibration(2)
    assert not measured_too
    assert not {s.id for s in samples} & {s.id for s in some.samples()}
    assert all(max(s.degraded.shape[:2]) <= 128 for s in samples)
    samples, measured_too = all_of_them.calibration(2)
    assert measured_too
    assert len(samples) == 2
    assert all(s.degraded.shape == s.clean.shape and max(s.degraded.shape[:2]) <= 128 for s in samples)
