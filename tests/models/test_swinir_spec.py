"""The official sizes of SwinIR: hyper-parameters read back, names and shapes as spandrel's. On the meta device."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from spandrel_swinir import official

from nystra_bench.models.swinir import SwinIR, SwinIRSpec, infer_spec

pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid")  # spandrel's

MEDIUM = SwinIRSpec(dim=180, depths=(6,) * 6, heads=(6,) * 6, window=8, mlp_ratio=2.0)
CLASSICAL = replace(MEDIUM, upsampler="pixelshuffle", mask_size=48)
SMALL = replace(MEDIUM, dim=60, depths=(6,) * 4, heads=(6,) * 4, upsampler="pixelshuffledirect", mask_size=64)
DENOISE = replace(MEDIUM, mask_size=128)

OFFICIAL = {
    **{f"classical M x{scale}": replace(CLASSICAL, scale=scale) for scale in (2, 3, 4, 8)},
    "classical M x2, DF2K": replace(CLASSICAL, scale=2, mask_size=64),
    **{f"lightweight S x{scale}": replace(SMALL, scale=scale) for scale in (2, 3, 4)},
    "real M x4": replace(MEDIUM, upsampler="nearest+conv", scale=4, mask_size=64),
    "real L x4": replace(
        MEDIUM,
        dim=240,
        depths=(6,) * 9,
        heads=(8,) * 9,
        convolutions=3,
        upsampler="nearest+conv",
        scale=4,
        mask_size=64,
    ),
    "colour denoise M": DENOISE,
    "grey denoise M": replace(DENOISE, channels=1, out_channels=1),
    "grey JPEG M": replace(MEDIUM, channels=1, out_channels=1, window=7, image_range=255.0, mask_size=126),
    "colour JPEG M": replace(MEDIUM, window=7, image_range=255.0, mask_size=126),
}


@pytest.fixture(params=OFFICIAL.values(), ids=OFFICIAL.keys())
def spec(request) -> SwinIRSpec:
    return request.param


@pytest.fixture
def state(spec) -> dict:
    with torch.device("meta"):
        return SwinIR(spec).state_dict()


def shapes(state) -> dict:
    return {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in state.items()}


def test_hyper_parameters_are_read_off_the_state_dict(spec, state):
    assert infer_spec(state) == spec


def test_names_shapes_and_dtypes_are_those_of_the_released_files(spec, state, monkeypatch):
    # spandrel turns a linspace into numbers, which the meta device cannot.
    monkeypatch.setattr(torch, "linspace", partial(torch.linspace, device="cpu"))
    with torch.device("meta"):
        released = official(spec)
    assert shapes(state) == shapes(released.state_dict())


@pytest.mark.parametrize("name, millions", (("classical M x2", 11.75), ("real L x4", 28.0)))
def test_the_number_of_parameters_is_the_published_one(name, millions):
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in SwinIR(OFFICIAL[name]).parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize(
    "change",
    (
        dict(mask_size=None),
        dict(depths=(1, 1), heads=(2, 3), mask_size=None),
        dict(depths=(2, 4, 3), heads=(2, 3, 6)),
        dict(window=16, mask_size=64),
        dict(mlp_ratio=4.0),
        dict(upsampler="pixelshuffle", scale=4, features=32),
        dict(upsampler="nearest+conv", scale=2, features=48),
        dict(channels=1, out_channels=1, upsampler="pixelshuffledirect", scale=3),
        dict(channels=4, out_channels=3),
    ),
    ids=str,
)
def test_any_hyper_parameters_are_read_back(change):
    spec = replace(SwinIRSpec(dim=60, depths=(2, 2), heads=(6, 6), mask_size=48), **change)
    with torch.device("meta"):
        assert infer_spec(SwinIR(spec).state_dict()) == spec


@pytest.mark.parametrize("dim, hidden", ((60, 123), (60, 120), (180, 63), (240, 490)))
def test_any_width_of_the_mlp_is_read_back(dim, hidden):
    """hidden / dim is no exact binary fraction, so that hidden must not be rounded down from it."""
    with torch.device("meta"):
        state = SwinIR(SwinIRSpec(dim=dim, depths=(1,), heads=(6,), mlp_ratio=(hidden + 0.25) / dim)).state_dict()
        assert state["layers.0.residual_group.blocks.0.mlp.fc1.weight"].shape[0] == hidden
        again = SwinIR(infer_spec(state)).state_dict()
    assert shapes(again) == shapes(state)


@pytest.mark.parametrize(
    "wrong, message",
    (
        (dict(upsampler="bilinear"), "upsampler='bilinear' is unknown"),
        (dict(heads=(6, 7)), "dim=60 is no multiple of heads=7"),
        (dict(upsampler="pixelshuffle", scale=5), "scale=5 is unknown"),
    ),
)
def test_impossible_hyper_parameters_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        SwinIR(SwinIRSpec(**{"dim": 60, "depths": (1, 1), "heads": (6, 6), **wrong}))


@pytest.mark.parametrize(
    "key", ("conv_first.weight", "layers.0.residual_group.blocks.0.attn.relative_position_bias_table")
)
def test_a_state_dict_without_what_every_swinir_has_is_a_key_error(key):
    with torch.device("meta"):
        state = SwinIR(SwinIRSpec(dim=12, depths=(1,), heads=(2,))).state_dict()
    del state[key]
    with pytest.raises(KeyError):
        infer_spec(state)
