"""What models keep for their attentions between forward passes: regions and masks by the size of the map, biases."""

from __future__ import annotations

import pytest
import torch

from nystra_bench.attention.exact import ExactAttention
from nystra_bench.attention.exact_published import PublishedExactAttention
from nystra_bench.attention.identity import IdentityAttention
from nystra_bench.attention.nystra_plus import NystraPlusAttention
from nystra_bench.attention.sdpa import FusedAttention
from nystra_bench.models import forget, setup_seconds
from nystra_bench.models import windows as shared
from nystra_bench.models.swinir import ShiftWindowAttention
from nystra_bench.models.uformer import LeWinAttention, Uformer, UformerSpec
from nystra_bench.models.windows import ShiftedMaps, attention_sites, plug

CPU = torch.device("cpu")


@pytest.fixture
def made(monkeypatch):
    """What is made, in its order: ``bias``, and ``regions``."""
    names, regions = [], shared.shift_regions
    monkeypatch.setattr(shared, "shift_regions", lambda *a: names.append("regions") or regions(*a))
    for site in (ShiftWindowAttention, LeWinAttention):
        bias = site.position_bias
        monkeypatch.setattr(site, "position_bias", lambda *a, bias=bias: names.append("bias") or bias(*a))
    return names


@pytest.mark.parametrize(
    "attention, biases, regions",
    (
        (ExactAttention(), 4, 1),
        (FusedAttention(), 4, 1),
        (NystraPlusAttention(), 4, 1),
        (IdentityAttention(), 0, 0),
        (PublishedExactAttention(), 3 * 4, 3 * 2),  # in each of three passes: four layers, two of them shifted
    ),
    ids=lambda value: type(value).__name__,
)
@torch.inference_mode()
def test_three_passes_make_bias_and_regions_once_but_in_the_published_form(
    small_model, image, made, attention, biases, regions
):
    plug(small_model, attention)
    outputs = [small_model(image) for _ in range(3)]
    assert made.count("bias") == biases and made.count("regions") == regions
    assert torch.equal(outputs[0], outputs[2])


@torch.inference_mode()
def test_uformer_keeps_the_regions_of_all_its_resolutions(randomised, made):
    model = randomised(Uformer(UformerSpec(embed_dim=2, depths=(4,) * 9, heads=(1,) * 9)))
    for side in (100, 200, 100, 200):
        model(torch.rand(1, 3, side, side))
    assert made.count("regions") == 5  # maps of 256, 128, 64, 32 and 16, some of them in both images


@torch.inference_mode()
def test_another_image_size_has_other_regions_and_the_one_seen_longest_ago_goes(small_model, made):
    for height in (19, 40, 19, 70, 19, 40):  # padded to 24, 40 and 72
        small_model(torch.rand(1, 3, height, 16))
    assert made.count("regions") == 4  # 40 is made twice


def test_maps_are_told_apart_by_size_window_and_device():
    maps = ShiftedMaps(kept=8)
    keys = [(16, 8, 8, CPU), (8, 16, 8, CPU), (16, 8, 4, CPU), (16, 8, 8, torch.device("meta"))]
    assert len({id(maps(*key)) for key in keys}) == 4
    assert maps(*keys[0]) is maps(*keys[0])
    assert maps(*keys[3])().device.type == "meta"


@pytest.mark.parametrize("attention", (ExactAttention(), FusedAttention(), NystraPlusAttention()))
@torch.inference_mode()
def test_what_is_made_for_layers_and_for_maps_counts_as_setup_also_where_another_method_made_it(
    small_model, image, attention
):
    plug(small_model, IdentityAttention())(image)
    assert setup_seconds(small_model) == 0
    plug(small_model, FusedAttention())(image)
    plug(small_model, attention)(image)
    layers = sum(site.caches.setup_seconds(attention) for site in attention_sites(small_model))
    maps = small_model.maps.setup_seconds(attention)
    assert layers > 0 and maps > 0 and setup_seconds(small_model) == layers + maps
    small_model(image)
    assert setup_seconds(small_model) == layers + maps
    forget(small_model)
    assert setup_seconds(small_model) == 0


@torch.inference_mode()
def test_exact_and_sdpa_share_the_bias(small_model, image, made):
    for attention in (ExactAttention(), FusedAttention()):
        plug(small_model, attention)(image)
    assert made.count("bias") == 4


def test_what_training_changes_is_not_kept(small_model, image):
    """An optimiser changes weights in place, which nothing tells a layer; validation in between sees the new ones."""
    table = small_model.layers[0].residual_group.blocks[0].attn.relative_position_bias_table
    with torch.no_grad():
        before = small_model.eval()(image)
        small_model.train()
        table += torch.randn(table.shape)
        after = small_model.eval()(image)
        assert (after - before).abs().max() > 1e-4
        forget(small_model)
        assert torch.equal(small_model(image), after)


def test_gradients_reach_the_bias_after_a_pass_without_them(small_model, image):
    with torch.no_grad():
        small_model(image)
    table = small_model.layers[0].residual_group.blocks[0].attn.relative_position_bias_table.requires_grad_()
    small_model(image).square().sum().backward()
    assert table.grad.abs().sum() > 0
