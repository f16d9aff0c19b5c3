"""Models, attentions, tasks and sweeps by name, and attentions put into models."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from nystra_bench import (
    attention_maps,
    compare,
    list_attentions,
    list_layers,
    list_models,
    list_sweeps,
    load_attention,
    load_model,
    load_task,
    plug,
    spectra,
    unplug,
)
from nystra_bench.api.images import to_input
from nystra_bench.attention.nystra import NystraAttention
from nystra_bench.errors import UserError
from nystra_bench.models import attention_sites

ROOT = Path(__file__).resolve().parents[2]


def test_lists_are_those_of_the_configuration_folders():
    for choice, listed in (("attention", list_attentions()), ("model", list_models()), ("sweep", list_sweeps())):
        folder = ROOT / "configs" / choice
        files = [file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.yaml")]
        assert sorted(listed) == sorted(files)
    assert all(list_models().values()) and all(list_sweeps().values())
    for text in list_sweeps().values():
        assert re.fullmatch(r"[A-Z][^#]*[^.]\.", text) and ". " not in text, "one sentence, and nothing after it"


def test_models_are_ready_whose_weights_are_here(monkeypatch, tmp_path):
    bundled = {file.stem for file in (ROOT / "nystra_bench" / "weights").glob("*.safetensors")}
    assert bundled <= set(list_models(ready=True)) < set(list_models())
    monkeypatch.setattr("nystra_bench.models.checkpoints.BUNDLED", tmp_path)
    assert not bundled & set(list_models(ready=True))


def test_a_model_without_its_weights_is_told_in_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr("nystra_bench.models.checkpoints.BUNDLED", tmp_path)
    with pytest.raises(UserError, match=r"model\.weights=swinir_denoise_w8 .*accepted") as raised:
        load_model("swinir_denoise_w8")
    assert raised.value._render_traceback_() == [f"UserError: {raised.value}"]


@pytest.mark.parametrize(
    ("text", "given", "expected"),
    [
        ("nystra", {}, {"landmarks": 16, "iterations": 2}),
        ("nystra(landmarks=8)", {}, {"landmarks": 8, "iterations": 2}),
        (" nystra ( landmarks = 8, iterations=6 ) ", {}, {"landmarks": 8, "iterations": 6}),
        ("nystra(init=matrix)", {}, {"init": "matrix"}),
        ("nystra(init='matrix', guard=4.5)", {}, {"init": "matrix", "guard": 4.5}),
        ("nystra()", {"landmarks": 4}, {"landmarks": 4}),
        ("nystra(landmarks=8)", {"landmarks": 4}, {"landmarks": 4}),
    ],
)
def test_attentions_by_name_with_parameters(text, given, expected):
    made = load_attention(text, **given)
    assert isinstance(made, NystraAttention)
    assert {name: getattr(made, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nistra", r"attention=nistra is unknown \(did you mean nystra\?\): accepted are .*nystra"),
        ("nystra(landmark=8)", r"no parameter landmark \(did you mean landmarks\?\): accepted are landmarks"),
        ("identity(landmarks=8)", "no parameter landmarks: accepted are none"),
        ("nystra(landmarks=few)", "landmarks=few does not fit: accepted are whole numbers"),
        ("nystra(landmarks=0)", "landmarks=0 is out of range: accepted are whole numbers from 1"),
        ("nystra(8)", "not understood: accepted are"),
        ("nystra(landmarks=8", "not understood: accepted are"),
        ("nystra(landmarks=__import__('os'))", "not understood: accepted are"),
        ("", "not understood: accepted are"),
    ],
)
def test_attentions_that_do_not_fit(text, said):
    with pytest.raises(UserError, match=said):
        load_attention(text)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: load_model("swinir_denoise"), r"model=swinir_denoise is unknown \(did you mean"),
        (lambda: load_task("denoize"), r"task=denoize is unknown \(did you mean denoise\?\)"),
        (lambda: load_task("denoise", noise=25), r"task=denoise has no parameter noise: accepted are sigma"),
        (lambda: load_task("denoise", sigma=-1), "sigma=-1 is out of range: accepted are"),
    ],
)
def test_other_options_that_do_not_fit(call, said):
    with pytest.raises(UserError, match=said):
        call()


def test_plugging_by_name_and_back(model, noisy):
    x = to_input(noisy, model)
    with torch.inference_mode():
        before = model(x)
        assert plug(model, "nystra(landmarks=8)") is model
        assert {site.attention.landmarks for site in attention_sites(model)} == {8}
        assert not torch.equal(model(x), before)
        assert torch.equal(unplug(model)(x), before)
    with pytest.raises(UserError, match=r"attention=nystra\(landmarks=65\): .* exceed the 64 tokens.*: accepted"):
        plug(model, "nystra(landmarks=65)")
    with pytest.raises(UserError, match="attention=3 is no attention: accepted are a name"):
        plug(model, 3)


@pytest.mark.parametrize(
    "call",
    [
        lambda model, image: compare(model, image, timing=None),
        lambda model, image: spectra(model, image),
        lambda model, image: attention_maps(model, image, [(0, 0)], "layer"),
        lambda model, image: plug(model, "identity"),
        lambda model, image: unplug(model),
        lambda model, image: list_layers(model),
    ],
)
@pytest.mark.parametrize("what", [torch.nn.Conv2d(3, 3, 1), "swinir_denoise_w8"], ids=["a convolution", "a name"])
def test_what_has_no_attention_is_told_in_a_sentence(call, what, noisy):
    with pytest.raises(UserError, match=f"model={type(what).__name__} .*: accepted are models of load_model"):
        call(what, noisy)
