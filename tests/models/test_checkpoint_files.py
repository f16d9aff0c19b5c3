"""Checkpoints as people have them: what is meant is loaded, and each of the rest is refused for its own cause."""

from __future__ import annotations

import argparse
import io
import json
import re
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn

from nystra_bench.errors import UserError
from nystra_bench.models.swinir import load_swinir


@pytest.fixture
def state(small_model):
    return {key: value.clone() for key, value in small_model.state_dict().items()}


def below(state, prefix):
    return {prefix + key: value for key, value in state.items()}


def zeros(state):
    return {key: torch.zeros_like(value) for key, value in state.items()}


OTHERS = {"loss.vgg.weight": torch.ones(3), "net_d.conv_first.bias": torch.ones(3)}
FORMS = {
    "net": lambda s: {"net": s, "epoch": 3},
    "ema before net": lambda s: {"net": zeros(s), "ema": s},
    "ema that is no state dict": lambda s: {"ema": {"decay": 0.999, "shadow": [torch.ones(1)]}, "model": s},
    "generator beside discriminator": lambda s: {"discriminator": OTHERS, "generator": s},
    "model with params": lambda s: {"model": {"params": s}},
    "model with params_ema": lambda s: {"model": {"params": zeros(s), "params_ema": s}},
    "an empty params_ema": lambda s: {"params_ema": {}, "params": s},
    "compiled": lambda s: below(s, "_orig_mod."),
    "compiled and distributed": lambda s: {"params": below(s, "module._orig_mod.")},
    "lightning": lambda s: {"state_dict": below(s, "model."), "pytorch-lightning_version": "2", "global_step": 1},
    "lightning with a loss": lambda s: {"state_dict": below(s, "net_g.") | OTHERS},
    "lightning, compiled": lambda s: {"state_dict": below(s, "model._orig_mod.") | OTHERS},
    "a prefix of its own": lambda s: below(s, "restorer."),
    "a prefix of its own below a known one": lambda s: below(s, "module.restorer."),
    "timm": lambda s: {"state_dict": zeros(s), "state_dict_ema": s, "metric": 1.0},
    "deepspeed": lambda s: {"module": s, "dp_world_size": 1},
    "a NumPy scalar": lambda s: {"state_dict": s, "best_psnr": np.float64(30.1), "step": np.int64(4)},
    "a NumPy array": lambda s: {"params": s, "history": np.arange(4.0), "names": np.array(["a", "b"])},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_what_is_meant_is_loaded(small_model, state, image, tmp_path, form):
    path = tmp_path / "model.pth"
    torch.save(form(state), path)
    assert torch.equal(load_swinir(str(path))(image), small_model(image))


@pytest.mark.parametrize("name", ["a.SAFETENSORS", "a.Safetensors", "a.pth", "a.ckpt", "a.bin", "a"])
def test_the_safetensors_format_is_known_by_its_content(small_model, state, image, tmp_path, name):
    save_file(state, tmp_path / name)
    assert torch.equal(load_swinir(str(tmp_path / name))(image), small_model(image))


@pytest.mark.parametrize("name", ["a.ckpt", "a.pt", "a.bin", "a"])
def test_a_file_of_torch_may_have_any_ending(small_model, state, image, tmp_path, name):
    torch.save(state, tmp_path / name)
    assert torch.equal(load_swinir(str(tmp_path / name))(image), small_model(image))


# --------------------------------------------------------------------------- what is refused, each for its own cause


def saved(content) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def optimizer_of(state):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def scripted() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), buffer)
    return buffer.getvalue()


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as bundle:
        bundle.writestr("model.txt", "hello")
    return buffer.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
REFUSED = {
    "git-lfs pointer": (lambda s: POINTER, "is a Git-LFS pointer"),
    "web page": (lambda s: b"\n<!DOCTYPE html><html><body>Google Drive - Virus scan warning", "is a web page"),
    "web page without a type": (lambda s: b"<html>404</html>", "is a web page"),
    "an error in XML": (lambda s: b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is XML"),
    "empty": (lambda s: b"", "is empty"),
    "zeros": (lambda s: bytes(5000), "holds zeros alone"),
    "hdf5": (lambda s: b"\x89HDF\r\n\x1a\n" + bytes(100), "is an HDF5 file"),
    "gguf": (lambda s: b"GGUF\3\0\0\0" + bytes(100), "is a GGUF file"),
    "json": (lambda s: json.dumps({"dim": 180}).encode(), "no checkpoint of PyTorch"),
    "another zip": (lambda s: zipped(), "cannot be read"),
    "torchscript": (lambda s: scripted(), "is a TorchScript archive"),
    "cut safetensors": (lambda s: save(s)[:-50], "cannot be read"),
    "an optimizer's file": (lambda s: saved(optimizer_of(s)), r"state of an optimizer \(state, param_groups\)"),
    "a training state": (
        lambda s: saved({"epoch": 1, "iter": 2, "optimizers": [], "schedulers": []}),
        r"state of a training \(epoch, iter, optimizers, schedulers\)",
    ),
    "unknown keys": (lambda s: saved({"encoder": s, "epoch": 3}), "under its keys encoder, epoch: .*params_ema"),
    "empty wrappers": (lambda s: saved({"params": {}, "params_ema": {}}), "under its keys params, params_ema"),
    "a value that is no tensor": (lambda s: saved({**s, "scale": 2}), r"no tensors \(scale is a int\)"),
    "nothing": (lambda s: saved({}), "holds nothing"),
    "a list": (lambda s: saved([torch.ones(2)]), "but one list"),
    "a whole model": (lambda s: saved(nn.Linear(2, 2)), "holds torch.nn.modules.linear.Linear beside tensors"),
    "a training's arguments": (
        lambda s: saved({"state_dict": s, "args": argparse.Namespace(lr=1)}),
        "holds argparse.Namespace beside tensors.*state dict alone is wanted",
    ),
    "another architecture": (lambda s: saved({"encoder.weight": torch.ones(2)}), "it holds encoder.weight"),
}


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("write, cause", REFUSED.values(), ids=REFUSED)
def test_each_of_the_rest_has_its_own_cause(state, tmp_path, write, cause):
    path = tmp_path / "model.pth"
    path.write_bytes(write(state))
    with pytest.raises(UserError, match=cause) as error:
        load_swinir(str(path))
    said = str(error.value)
    assert said.startswith(f"model.weights={path}") and "\n" not in said
    assert re.search(r"(accepted (is|are)|wanted) ", said)


@pytest.mark.parametrize("expect", [3, "large", [1, 2]])
def test_what_is_expected_is_a_mapping(state, tmp_path, expect):
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="model.expect=.* does not fit: accepted are null and {NAME: value}, of chan"):
        load_swinir(str(tmp_path / "model.safetensors"), expect)


# --------------------------------------------------------------------------- the range of values


def test_the_range_of_values_is_that_of_the_released_models_unless_given(small_model, state, image, tmp_path):
    file = tmp_path / "model.safetensors"
    save_file(state, file)
    usual, same, wide = (load_swinir(str(file), image_range=given) for given in (None, 1, 255))
    assert torch.equal(usual(image), small_model(image)) and torch.equal(same(image), usual(image))
    assert usual.settings == same.settings == {}
    assert wide.settings == {"image_range": 255.0}
    # With img_range=255 the released code takes (x - mean) * 255, and gives y / 255 + mean.
    mean = usual.mean
    expected = (usual((image - mean) * 255 + mean) - mean) / 255 + mean
    assert torch.allclose(wide(image), expected, atol=1e-5)
    assert not torch.allclose(wide(image), usual(image), atol=1e-3)


@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan")])
def test_a_range_that_there_is_not(state, tmp_path, value):
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="model.image_range=.* is out of range: accepted are numbers above 0, or null"):
        load_swinir(str(tmp_path / "model.safetensors"), image_range=value)
