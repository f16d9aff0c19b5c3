"""Replacing all attentions of a model, and giving it its own back."""

from __future__ import annotations

import pytest
import torch
from attention_references import relative_error

from nystra_bench.attention.exact import ExactAttention
from nystra_bench.attention.identity import IdentityAttention
from nystra_bench.attention.nystra import NystraAttention
from nystra_bench.attention.sdpa import FusedAttention
from nystra_bench.models import load_model
from nystra_bench.models.windows import WindowAttention, attention_sites, plug, unplug

METHODS = (ExactAttention(), FusedAttention(), IdentityAttention(), NystraAttention(landmarks=8))


@pytest.mark.parametrize("attention", METHODS, ids=lambda a: type(a).__name__)
def test_every_site_gets_the_attention_and_the_state_dict_stays_as_it_was(small_model, attention, image):
    before = {key: value.clone() for key, value in small_model.state_dict().items()}
    assert plug(small_model, attention) is small_model
    assert len(attention_sites(small_model)) == 4
    assert all(site.attention is attention for site in attention_sites(small_model))
    after = small_model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert small_model(image).isfinite().all()
    assert not any(module.training for module in small_model.modules())


@pytest.mark.parametrize("attention", METHODS, ids=lambda a: type(a).__name__)
def test_unplug_gives_the_original_output_back_to_the_bit(small_model, attention, image):
    before = small_model(image)
    assert unplug(plug(small_model, attention)) is small_model
    assert torch.equal(small_model(image), before)


def test_approximations_change_the_output_and_the_fused_form_does_not(small_model, image):
    before = small_model(image)
    assert relative_error(plug(small_model, FusedAttention())(image), before) < 1e-5
    identity = plug(small_model, IdentityAttention())(image)
    nystra = plug(small_model, NystraAttention(landmarks=8))(image)
    assert relative_error(identity, before) > 1e-3 and relative_error(nystra, before) > 1e-3
    assert relative_error(identity, nystra) > 1e-3


def test_a_refusal_leaves_the_model_as_it_was(small_model, image):
    attention = NystraAttention(landmarks=8)
    before = plug(small_model, attention)(image)
    with pytest.raises(ValueError, match="NystraAttention cannot work here: landmarks=65 exceed the 64 tokens"):
        plug(small_model, NystraAttention(landmarks=65))
    assert all(site.attention is attention for site in attention_sites(small_model))
    assert torch.equal(small_model(image), before)


def test_nothing_is_replaced_when_only_the_last_window_is_refused():
    model = torch.nn.Sequential(torch.nn.Linear(1, 1), WindowAttention(8), WindowAttention(2))
    originals = [site.attention for site in attention_sites(model)]
    with pytest.raises(ValueError, match="exceed the 4 tokens"):
        plug(model, NystraAttention(landmarks=16))
    assert all(site.attention is original for site, original in zip(attention_sites(model), originals, strict=True))


def test_a_model_without_windows_is_named():
    with pytest.raises(ValueError, match="Linear has no windowed attention"):
        plug(torch.nn.Linear(1, 1), IdentityAttention())


def test_weights_load_strictly_while_another_attention_is_plugged(small_model, image):
    state = {key: value.clone() for key, value in small_model.state_dict().items()}
    before = small_model(image)
    with torch.no_grad():
        small_model.conv_first.weight.zero_()
    plug(small_model, IdentityAttention()).load_state_dict(state, strict=True)
    assert torch.equal(unplug(small_model)(image), before)


@pytest.mark.parametrize("training", (True, False))
def test_the_attention_takes_the_models_mode(small_model, training):
    attention = IdentityAttention().train(not training)
    plug(small_model.train(training), attention)
    assert attention.training is training


def test_what_is_kept_of_the_bias_goes_when_its_weights_are_written_to():
    """In evaluation mode, too, where nothing else tells that a weight has changed."""
    model = load_model("swinir_denoise_w8")
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(image)
        for name, parameter in model.named_parameters():
            if name.endswith("relative_position_bias_table"):
                parameter.mul_(-3)
        after, fresh = model(image), load_model("swinir_denoise_w8")
        fresh.load_state_dict(model.state_dict())
        assert torch.equal(after, fresh(image)) and not torch.allclose(after, before)
