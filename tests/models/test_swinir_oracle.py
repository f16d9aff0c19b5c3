"""SwinIR against spandrel's on the same random weights: all released kinds, shrunk in width and depth."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from spandrel.architectures.SwinIR import SwinIRArch
from spandrel_swinir import official
from unmasked import without_masks

from nystra_bench.models.swinir import SwinIR, SwinIRSpec, infer_spec

pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid")  # spandrel's

BASE = SwinIRSpec(dim=12, depths=(2, 2), heads=(3, 2), window=8, mlp_ratio=2.0, mask_size=16)
LARGE = replace(BASE, dim=16, depths=(2, 2, 2), heads=(4, 2, 4), convolutions=3)

VARIANTS = {
    "classical x2": replace(BASE, upsampler="pixelshuffle", scale=2),
    "classical x3": replace(BASE, upsampler="pixelshuffle", scale=3),
    "classical x4": replace(BASE, upsampler="pixelshuffle", scale=4),
    "classical x8": replace(BASE, upsampler="pixelshuffle", scale=8),
    "lightweight x2": replace(BASE, depths=(2, 3), upsampler="pixelshuffledirect", scale=2),
    "lightweight x3": replace(BASE, upsampler="pixelshuffledirect", scale=3),
    "lightweight x4": replace(BASE, upsampler="pixelshuffledirect", scale=4),
    "real medium x4": replace(BASE, upsampler="nearest+conv", scale=4),
    "real medium x2": replace(BASE, upsampler="nearest+conv", scale=2),
    "real large x4": replace(LARGE, upsampler="nearest+conv", scale=4),
    "grey denoise": replace(BASE, channels=1, out_channels=1),
    "colour denoise": BASE,
    "colour denoise large": LARGE,
    "grey JPEG": replace(BASE, channels=1, out_channels=1, window=7, image_range=255.0, mask_size=21),
    "colour JPEG": replace(BASE, window=7, image_range=255.0, mask_size=14),
    "wide mlp": replace(BASE, mlp_ratio=4.0),
}
SIZES = ((16, 16), (17, 23), (31, 9))
"""The training size, where spandrel takes its stored mask; odd sizes; padding by almost a whole window."""


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def spec(request) -> SwinIRSpec:
    return request.param


@pytest.fixture
def state(spec, randomised) -> dict:
    return randomised(official(spec)).state_dict()


@pytest.fixture
def ours(state) -> SwinIR:
    model = SwinIR(infer_spec(state))
    model.load_state_dict(state, strict=True)
    return model.eval()


def test_the_hyper_parameters_are_read_off_an_official_state_dict(spec, state):
    assert infer_spec(state) == spec


@torch.inference_mode()
def test_output_equals_spandrels(spec, state, ours):
    oracle = SwinIRArch().load(dict(state)).model
    oracle.load_state_dict(state, strict=True)
    oracle.eval()
    generator = torch.Generator().manual_seed(1)
    for height, width in SIZES:
        image = torch.rand(2, spec.channels, height, width, generator=generator)
        expected, actual = oracle(image), ours(image)
        assert actual.shape == (2, spec.out_channels, spec.scale * height, spec.scale * width)
        assert (actual - expected).norm() <= 1e-5 * expected.norm(), f"{height}x{width}"


@torch.inference_mode()
def test_the_comparison_feels_position_bias_and_shift_mask():
    """If either had no influence on the output, equality with the oracle would say nothing about it."""
    state = _state(BASE)
    image = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(2))
    original, no_bias, no_mask = (_load(state) for _ in range(3))
    for name, parameter in no_bias.named_parameters():
        if name.endswith("relative_position_bias_table"):
            parameter.zero_()
    without_masks(no_mask)
    expected = original(image)
    for changed in (no_bias, no_mask):
        assert (changed(image) - expected).norm() > 1e-3 * expected.norm()


def test_our_state_dict_loads_into_spandrel_with_the_same_keys():
    model = _load(_state(BASE))
    oracle = SwinIRArch().load(dict(model.state_dict())).model
    assert oracle.state_dict().keys() == model.state_dict().keys()


def test_a_saved_training_mask_is_the_one_that_was_loaded():
    state = _state(BASE)
    saved = _load(state).state_dict()
    assert state.keys() == saved.keys()
    assert all(torch.equal(saved[key], state[key]) for key in state)


def test_a_fresh_model_carries_the_official_buffers():
    """So that a checkpoint saved from it means the same in the official code, which uses these masks."""
    expected, actual = official(BASE).state_dict(), SwinIR(BASE).state_dict()
    for key in expected:
        if key.endswith(("attn_mask", "relative_position_index")):
            assert torch.equal(actual[key], expected[key]), key


def _state(spec: SwinIRSpec) -> dict:
    torch.manual_seed(5)
    model = official(spec)
    for name, parameter in model.named_parameters():
        if name.endswith("relative_position_bias_table"):
            torch.nn.init.normal_(parameter)
        elif name.endswith(("qkv.weight", "attn.proj.weight")):
            torch.nn.init.normal_(parameter, std=0.5)
    return model.state_dict()


def _load(state) -> SwinIR:
    model = SwinIR(infer_spec(state))
    model.load_state_dict(state, strict=True)
    return model.eval()
