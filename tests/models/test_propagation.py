"""Errors of features layer by layer, against recordings made by hand, and what is left of it in the model: nothing."""

from __future__ import annotations

import pytest
import torch

from nystra_bench.attention.exact import ExactAttention
from nystra_bench.attention.identity import IdentityAttention
from nystra_bench.attention.nystra import NystraAttention
from nystra_bench.instruments.propagation import Propagation, block_of, propagation
from nystra_bench.models import attention_sites, load_model, named_attention_sites
from nystra_bench.models.tiling import restore_in_tiles
from nystra_bench.models.windows import plug, unplug

BLOCKS = {
    "swinir_denoise_w8": ("layers.0.residual_group.blocks.1.attn", "layers.0.residual_group.blocks.1"),
    "uformer_denoise": ("conv.blocks.0.attn", "conv.blocks.0"),
    "dehazeformer_haze": ("layer2.blocks.3.attn.attn", "layer2.blocks.3"),
}


def features_by_hand(model, x) -> list[torch.Tensor]:
    """The outputs of the blocks of a SwinIR, its forward pass written out as far as they go."""
    recorded = []
    for group in model.layers:
        for block in group.residual_group.blocks:
            original = type(block).forward

            def recording(*inputs, block=block, original=original):
                recorded.append(original(block, *inputs))
                return recorded[-1]

            block.forward = recording
    model(x)
    for group in model.layers:
        for block in group.residual_group.blocks:
            del block.forward
    return recorded


def relative(other, original) -> float:
    return ((other - original).double().norm() / original.double().norm()).item()


@torch.no_grad()
def test_errors_are_those_of_whole_forward_passes(small_model, image):
    method = NystraAttention(landmarks=4, iterations=6)
    original = features_by_hand(small_model, image)
    every = features_by_hand(plug(small_model, method), image)
    alone = []
    for place in range(4):
        attention_sites(unplug(small_model))[place].attention = method
        alone.append(features_by_hand(small_model, image)[place])
    found = propagation(unplug(small_model), image, method)
    assert [record["layer"] for record in found] == list(named_attention_sites(small_model))
    for record, f, f_every, f_alone in zip(found, original, every, alone, strict=True):
        assert record["all"] == pytest.approx(relative(f_every, f), rel=1e-4) and record["all"] > 1e-3
        assert record["alone"] == pytest.approx(relative(f_alone, f), rel=1e-4) and record["alone"] > 1e-3


def test_nothing_comes_before_the_first_layer(small_model, image):
    found = propagation(small_model, image, IdentityAttention())
    assert found[0]["all"] == pytest.approx(found[0]["alone"], rel=1e-6)
    assert found[-1]["all"] != pytest.approx(found[-1]["alone"], rel=1e-2)


def test_exact_by_exact_gives_0(small_model, image):
    found = propagation(small_model, image, ExactAttention())
    assert {record[kind] for record in found for kind in ("all", "alone")} == {0}


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_as_it_was(small_model, image, fails):
    class Failing(IdentityAttention):
        def forward(self, q, k, v, window):
            if fails:
                raise ArithmeticError("no luck")
            return super().forward(q, k, v, window)

    before, attentions = small_model(image), [site.attention for site in attention_sites(small_model)]
    state = {name: tensor.clone() for name, tensor in small_model.state_dict().items()}
    try:
        propagation(small_model, image, Failing())
    except ArithmeticError:
        assert fails
    assert all(site.attention is a for site, a in zip(attention_sites(small_model), attentions, strict=True))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in small_model.modules())
    assert all(torch.equal(tensor, state[name]) for name, tensor in small_model.state_dict().items())
    assert torch.equal(small_model(image), before)


def test_what_came_out_before_and_after_is_kept(small_model, image):
    run = Propagation(small_model, IdentityAttention())
    run.run(image)
    with torch.inference_mode():
        assert torch.equal(run.original, small_model(image))
        assert torch.equal(run.output, plug(small_model, IdentityAttention())(image))


def test_tiles_count_together(small_model):
    """Twice the same picture in tiles gives the errors of one."""
    one = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    method = IdentityAttention()
    whole = propagation(small_model, one, method)
    tiled = propagation(small_model, torch.cat([one, one], -1), method,
                        lambda x: restore_in_tiles(small_model, x, tile=64, overlap=0, scale=1))  # fmt: skip
    for a, b in zip(whole, tiled, strict=True):
        assert (a["all"], a["alone"]) == pytest.approx((b["all"], b["alone"]), rel=1e-5)


@pytest.mark.parametrize("name", BLOCKS)
def test_the_block_of_a_layer_is_the_numbered_module_around_it(name):
    model = load_model(name)
    site, block = BLOCKS[name]
    assert site in named_attention_sites(model)
    assert block_of(model, site) == block


def test_a_layer_without_a_list_around_it_has_the_module_that_holds_it(small_model):
    holder = torch.nn.Module()
    holder.body = torch.nn.Module()
    holder.body.attn = attention_sites(small_model)[0]
    assert block_of(holder, "body.attn") == "body"
    assert block_of(holder.body, "attn") == "attn"


def test_a_model_of_several_resolutions(image):
    """Layers of a U come in the order of the forward pass, whatever the order of definition."""
    model = load_model("uformer_denoise")
    found = propagation(model, torch.rand(1, 3, 16, 16), IdentityAttention())
    names = [record["layer"] for record in found]
    assert names[0].startswith("encoderlayer_0") and names[-1].startswith("decoderlayer_3")
    assert set(names) == set(named_attention_sites(model))
    assert names.index("conv.blocks.0.attn") < names.index("decoderlayer_0.blocks.0.attn")


def test_what_cannot_be_replaced(image):
    with pytest.raises(ValueError, match="no windowed attention"):
        propagation(torch.nn.Conv2d(3, 3, 1), image, IdentityAttention())


def test_a_refusal_leaves_the_model_as_it_was(small_model, image):
    before = small_model(image)
    with pytest.raises(ValueError, match="exceed the 64 tokens"):
        propagation(small_model, image, NystraAttention(landmarks=65))
    assert torch.equal(small_model(image), before)
