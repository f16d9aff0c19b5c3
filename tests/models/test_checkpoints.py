"""Reading checkpoints: every accepted form, and one sentence for everything else."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import re

import pytest
import torch
from safetensors.torch import save_file

from nystra_bench.errors import UserError
from nystra_bench.models import checkpoints
from nystra_bench.models.checkpoints import build, read_state_dict, resolve, sha256
from nystra_bench.models.swinir import SwinIR, SwinIRSpec, infer_spec, load_swinir


def load(path):
    return build(resolve(path), "swinir", infer_spec, SwinIR)


def assert_one_sentence(error: pytest.ExceptionInfo, value) -> None:
    """Names the option and the value and what would be accepted, in one line."""
    message = str(error.value)
    assert message.startswith(f"model.weights={value}")
    assert re.search(r"accepted (is|are) ", message)
    assert "\n" not in message


def parameters_of(small_model) -> dict:
    return {key: value.clone() for key, value in small_model.state_dict().items()}


# --------------------------------------------------------------------------- what is accepted

FORMS = {
    "plain": lambda state: state,
    "params": lambda state: {"params": state},
    "params_ema": lambda state: {"params_ema": state},
    "params_ema before params": lambda state: {
        "params": {key: torch.zeros_like(value) for key, value in state.items()},
        "params_ema": state,
    },
    "state_dict with other content": lambda state: {"epoch": 3, "state_dict": state, "best": 30.1},
    "module. prefix": lambda state: {f"module.{key}": value for key, value in state.items()},
    "wrapped module. prefix": lambda state: {"params": {f"module.{key}": value for key, value in state.items()}},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_a_pth_file_gives_the_model_back(small_model, image, tmp_path, form):
    path = tmp_path / "model.pth"
    torch.save(form(parameters_of(small_model)), path)
    model = load(path)
    assert torch.equal(model(image), small_model(image))
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("prefix", ("", "module."))
def test_a_safetensors_file_gives_the_model_back(small_model, image, tmp_path, prefix):
    path = tmp_path / "model.safetensors"
    save_file({prefix + key: value for key, value in parameters_of(small_model).items()}, path)
    assert torch.equal(load(path)(image), small_model(image))


def test_the_legacy_format_of_torch_is_read(small_model, image, tmp_path):
    path = tmp_path / "model.pth"
    torch.save(parameters_of(small_model), path, _use_new_zipfile_serialization=False)
    assert torch.equal(load(path)(image), small_model(image))


def test_only_a_leading_module_is_removed_from_a_name(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"module.a.module.b": torch.ones(1)}, path)
    assert list(read_state_dict(path)) == ["a.module.b"]


def test_bundled_weights_are_found_by_name(small_model, image, tmp_path, monkeypatch):
    save_file(parameters_of(small_model), tmp_path / "tiny.safetensors")
    monkeypatch.setattr(checkpoints, "BUNDLED", tmp_path)
    assert resolve("tiny") == tmp_path / "tiny.safetensors"
    assert torch.equal(load("tiny")(image), small_model(image))


def test_bundled_weights_are_found_beside_a_folder_of_that_name(small_model, tmp_path, monkeypatch):
    bundled = tmp_path / "bundled"
    bundled.mkdir()
    save_file(parameters_of(small_model), bundled / "tiny.safetensors")
    monkeypatch.setattr(checkpoints, "BUNDLED", bundled)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    assert resolve("tiny") == bundled / "tiny.safetensors"


def test_bundled_names_may_hold_a_dot(small_model, tmp_path, monkeypatch):
    save_file(parameters_of(small_model), tmp_path / "tiny-0.3m.safetensors")
    monkeypatch.setattr(checkpoints, "BUNDLED", tmp_path)
    assert resolve("tiny-0.3m") == tmp_path / "tiny-0.3m.safetensors"


def test_a_file_of_the_working_folder_goes_before_bundled_weights(small_model, tmp_path, monkeypatch):
    bundled = tmp_path / "bundled"
    bundled.mkdir()
    for folder in (bundled, tmp_path):
        save_file(parameters_of(small_model), folder / "tiny.safetensors")
    monkeypatch.setattr(checkpoints, "BUNDLED", bundled)
    monkeypatch.chdir(tmp_path)
    assert resolve("tiny.safetensors") == tmp_path / "tiny.safetensors"


def test_sha256_is_that_of_the_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"nystra" * 1000)
    assert sha256(path) == hashlib.sha256(b"nystra" * 1000).hexdigest()


# --------------------------------------------------------------------------- what is not


@pytest.mark.parametrize("weights", ("absent.pth", "absent", "folder/absent.safetensors", "", ".", "/", ".."))
def test_an_absent_file_is_named_with_the_bundled_names(tmp_path, monkeypatch, weights):
    (tmp_path / "one.safetensors").touch()
    (tmp_path / "two.safetensors").touch()
    monkeypatch.setattr(checkpoints, "BUNDLED", tmp_path)
    with pytest.raises(UserError) as error:
        resolve(weights)
    assert_one_sentence(error, weights)
    assert "(one, two)" in str(error.value)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(UserError) as error:
        resolve(tmp_path)
    assert_one_sentence(error, tmp_path)


def whole_pth(small_model) -> bytes:
    buffer = io.BytesIO()
    torch.save(parameters_of(small_model), buffer)
    return buffer.getvalue()


def whole_safetensors(small_model) -> bytes:
    from safetensors.torch import save

    return save(parameters_of(small_model))


CORRUPT = {
    "empty": lambda whole: b"",
    "text": lambda whole: b"<html>404: Not Found</html>\n",
    "zeros": lambda whole: bytes(1000),
    "cut short": lambda whole: whole[: len(whole) // 2],
    "beginning lost": lambda whole: whole[100:],
}


@pytest.mark.parametrize("damage", CORRUPT.values(), ids=CORRUPT.keys())
@pytest.mark.parametrize("suffix, whole", ((".pth", whole_pth), (".safetensors", whole_safetensors)))
def test_a_corrupt_file_is_named(small_model, tmp_path, suffix, whole, damage):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(damage(whole(small_model)))
    with pytest.raises(UserError) as error:
        load(path)
    assert_one_sentence(error, path)


class Executes:
    """Creates a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("where", ("torch file", "torch file beside the weights", "plain pickle"))
def test_a_file_that_would_execute_code_is_refused_and_not_executed(small_model, tmp_path, where):
    path, trace = tmp_path / "model.pth", tmp_path / "executed"
    if where == "plain pickle":
        path.write_bytes(pickle.dumps(Executes(trace), protocol=2))
    else:
        content = {"params": parameters_of(small_model)} if "beside" in where else {}
        torch.save({**content, "payload": Executes(trace)}, path)
    with pytest.raises(UserError) as error:
        load(path)
    assert_one_sentence(error, path)
    assert not trace.exists()


def test_the_file_above_would_indeed_execute_code(tmp_path):
    trace = tmp_path / "executed"
    pickle.loads(pickle.dumps(Executes(trace), protocol=2))
    assert trace.exists()


NO_STATE_DICT = {
    "a tensor": torch.ones(3),
    "a list": [torch.ones(3)],
    "nothing": {},
    "an empty wrapper": {"params": {}},
    "numbers": {"a": 1.0, "b": torch.ones(1)},
}


@pytest.mark.parametrize("content", NO_STATE_DICT.values(), ids=NO_STATE_DICT.keys())
def test_a_file_without_a_state_dict_is_named(tmp_path, content):
    path = tmp_path / "model.pth"
    torch.save(content, path)
    with pytest.raises(UserError) as error:
        load(path)
    assert_one_sentence(error, path)


def without(state, part):
    return {key: value for key, value in state.items() if part not in key}


TABLE = "layers.0.residual_group.blocks.0.attn.relative_position_bias_table"
OTHER_ARCHITECTURES = {
    "nothing in common": lambda state: {"encoder.weight": torch.ones(2, 2)},
    "the first convolution in common": lambda state: {"conv_first.weight": torch.ones(8, 3, 3, 3)},
    "one tensor more": lambda state: {**state, "extra.weight": torch.ones(1)},
    "one tensor less": lambda state: without(state, "conv_after_body"),
    "no blocks": lambda state: without(state, "residual_group"),
    "another shape": lambda state: {**state, "norm.weight": torch.ones(5)},
    "a vector for a convolution": lambda state: {**state, "conv_first.weight": torch.ones(8)},
    "a vector for a bias table": lambda state: {**state, TABLE: torch.ones(225)},
    "a number for a bias table": lambda state: {**state, TABLE: torch.tensor(1.0)},
    "no heads": lambda state: {**state, TABLE: torch.ones(225, 0)},
    "no width": lambda state: {**state, "conv_first.weight": torch.ones(0, 3, 3, 3)},
    "another number of heads": lambda state: {**state, TABLE: torch.ones(225, 7)},
    "a number for a norm": lambda state: {**state, "norm.weight": torch.tensor(1.0)},
}


@pytest.mark.parametrize("change", OTHER_ARCHITECTURES.values(), ids=OTHER_ARCHITECTURES.keys())
def test_a_checkpoint_of_another_architecture_is_named(small_model, tmp_path, change):
    path = tmp_path / "model.pth"
    torch.save(change(parameters_of(small_model)), path)
    with pytest.raises(UserError) as error:
        load(path)
    assert_one_sentence(error, path)
    assert "swinir" in str(error.value)


@pytest.mark.parametrize(
    ("expect", "said"),
    [({"dim": 180}, "has dim=8, but model.expect says dim=180"), ({"width": 3}, "width")],
)
def test_weights_of_another_size_than_expected_are_refused(tmp_path, expect, said):
    model = SwinIR(SwinIRSpec(dim=8, depths=(2,), heads=(2,), window=8))
    file = tmp_path / "it.safetensors"
    save_file(model.state_dict(), file)
    assert load_swinir(str(file), {"dim": 8, "depths": [2]}).spec == model.spec
    with pytest.raises(UserError, match=said):
        load_swinir(str(file), expect)
