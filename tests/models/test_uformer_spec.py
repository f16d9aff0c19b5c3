"""The official sizes of Uformer: hyper-parameters read back, names and shapes as spandrel's; wrong checkpoints."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import save_file
from spandrel_uformer import official

from nystra_bench.errors import UserError
from nystra_bench.models import load_model
from nystra_bench.models.swinir import load_swinir
from nystra_bench.models.uformer import Uformer, UformerSpec, infer_spec, load_uformer

pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid")  # spandrel's

T, S = UformerSpec(embed_dim=16), UformerSpec(embed_dim=32)
B = replace(S, depths=(1, 2, 8, 8, 2, 8, 8, 2, 1))
OFFICIAL = {
    **{f"{name} {kind}": replace(spec, projection=kind) for name, spec in dict(T=T, S=S, B=B).items()
       for kind in ("linear", "conv")},
    "T without modulators": replace(T, modulator=False),
    "B fastleff": replace(B, mlp="fastleff"),
    "S ffn": replace(S, mlp="ffn"),
}  # fmt: skip
TINY = UformerSpec(embed_dim=8, depths=(1,) * 9, heads=(1, 2, 4, 8, 16, 16, 8, 4, 2))


@pytest.fixture(params=OFFICIAL.values(), ids=OFFICIAL.keys())
def spec(request) -> UformerSpec:
    return request.param


def state_of(spec: UformerSpec) -> dict:
    with torch.device("meta"):
        return Uformer(spec).state_dict()


def shapes(state) -> dict:
    return {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in state.items()}


def test_hyper_parameters_are_read_off_the_state_dict(spec):
    assert infer_spec(state_of(spec)) == spec


def test_names_shapes_and_dtypes_are_those_of_the_released_code(spec, monkeypatch):
    # spandrel turns a linspace into numbers, which the meta device cannot.
    monkeypatch.setattr(torch, "linspace", partial(torch.linspace, device="cpu"))
    with torch.device("meta"):
        released = official(spec)
    assert shapes(state_of(spec)) == shapes(released.state_dict())


@pytest.mark.parametrize(
    "spec, millions", ((replace(T, modulator=False), 5.23), (replace(S, modulator=False), 20.63), (B, 50.88)), ids="TSB"
)
def test_the_number_of_parameters_is_the_published_one(spec, millions):
    """The published numbers count the modulators in B alone."""
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in Uformer(spec).parameters())
    assert round(count / 1e6, 2) == millions


@pytest.mark.parametrize(
    "change",
    (
        {},
        dict(embed_dim=12),
        dict(embed_dim=16, depths=(1, 2, 3, 1, 2, 1, 4, 2, 11)),
        dict(heads=(1, 1, 2, 2, 4, 4, 2, 2, 1)),
        dict(window=4),
        dict(window=16),
        dict(mlp_ratio=2.5),
        dict(mlp="ffn", modulator=False),
        dict(mlp="fastleff", mlp_ratio=1.0),
        dict(qkv_bias=False),
        dict(projection="conv", mlp_ratio=3.0),
        dict(channels=1, out_channels=1),
        dict(channels=6),
    ),
    ids=str,
)
def test_any_hyper_parameters_are_read_back(change):
    spec = replace(TINY, **change)
    assert infer_spec(state_of(spec)) == spec


@pytest.mark.parametrize("dim, ratio", ((12, 2.7), (10, 1.25), (8, 3.3)))
def test_any_width_of_the_mlp_is_read_back(dim, ratio):
    state = state_of(replace(TINY, embed_dim=dim, heads=(1,) * 9, mlp_ratio=ratio))
    assert shapes(state_of(infer_spec(state))) == shapes(state)


@pytest.mark.parametrize(
    "wrong, message",
    (
        (dict(projection="dense"), "projection='dense' is unknown: accepted are linear, conv"),
        (dict(mlp="glu"), "mlp='glu' is unknown: accepted are leff, fastleff, ffn"),
        (dict(heads=(3, 2, 4, 8, 16, 16, 8, 4, 2)), "8 channels are no multiple of heads=3"),
        (dict(depths=(1,) * 7), "depths=.* does not fit: accepted are 9 numbers from 1 on"),
        (dict(depths=(1,) * 8 + (0,)), "depths=.* does not fit"),
        (dict(heads=(1,) * 8 + (0,)), "heads=.* does not fit"),
    ),
)
def test_impossible_hyper_parameters_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **wrong)


def test_the_spec_is_plain_data():
    assert UformerSpec(**TINY.as_dict()) == TINY


# --------------------------------------------------------------------------- files


def assert_refused(load, path, architecture: str) -> None:
    with pytest.raises(UserError) as error:
        load(str(path))
    message = str(error.value)
    assert message.startswith(f"model.weights={path} is not of the architecture {architecture}")
    assert re.search(r"accepted (is|are) ", message) and "\n" not in message


@pytest.fixture
def file(tmp_path, randomised):
    path = tmp_path / "uformer.safetensors"
    save_file(randomised(Uformer(TINY)).state_dict(), path)
    return path


def test_a_file_gives_the_model_back_by_its_configuration(file, randomised):
    x = torch.rand(1, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    model = load_model("uformer", weights=file)
    assert model.spec == TINY and not model.training and not any(p.requires_grad for p in model.parameters())
    assert torch.equal(model(x), randomised(Uformer(TINY))(x))


def test_the_released_form_of_a_checkpoint_is_read(tmp_path, randomised):
    """``{"epoch": ..., "state_dict": {"module.…": …}}``, as the released training script writes it."""
    path = tmp_path / "model_best.pth"
    state = {f"module.{key}": value for key, value in randomised(Uformer(TINY)).state_dict().items()}
    torch.save({"epoch": 7, "state_dict": state, "optimizer": {"param_groups": [{"lr": 2e-4}]}}, path)
    assert load_uformer(str(path)).spec == TINY


def test_weights_of_swinir_are_refused_and_the_reverse(file, small_model, tmp_path):
    swinir = tmp_path / "swinir.safetensors"
    save_file(small_model.state_dict(), swinir)
    assert_refused(load_uformer, swinir, "Uformer")
    assert_refused(load_swinir, file, "SwinIR")


TABLE = "encoderlayer_2.blocks.0.attn.relative_position_bias_table"
OTHERS = {
    "one tensor more": lambda state: {**state, "extra.weight": torch.ones(1)},
    "one tensor less": lambda state: {key: value for key, value in state.items() if key != "dowsample_2.conv.0.bias"},
    "no bottleneck": lambda state: {key: value for key, value in state.items() if not key.startswith("conv.")},
    "cross modulators": lambda state: {**state, "decoderlayer_0.blocks.0.cross_modulator.weight": torch.ones(64, 128)},
    "another shape": lambda state: {**state, "encoderlayer_0.blocks.0.norm1.weight": torch.ones(5)},
    "a vector for a bias table": lambda state: {**state, TABLE: torch.ones(225)},
    "no heads": lambda state: {**state, TABLE: torch.ones(225, 0)},
    "impossible heads": lambda state: {**state, TABLE: torch.ones(225, 7)},
    "no MLP": lambda state: {key: value for key, value in state.items() if ".mlp." not in key},
    "a number for a convolution": lambda state: {**state, "input_proj.proj.0.weight": torch.tensor(1.0)},
    "no width": lambda state: {**state, "input_proj.proj.0.weight": torch.ones(0, 3, 3, 3)},
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS.keys())
def test_a_state_dict_that_is_almost_right_is_refused(change, tmp_path):
    path = tmp_path / "model.pth"
    torch.save(change(Uformer(TINY).state_dict()), path)
    assert_refused(load_uformer, path, "Uformer")
