"""The library: the functions of ``nystra_bench`` itself, as scripts and notebooks use them."""

from __future__ import annotations

import doctest
import importlib
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from skimage.metrics import structural_similarity

import nystra_bench
from nystra_bench import (
    Timing,
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
    time_attention,
    unplug,
)
from nystra_bench.api.images import to_input
from nystra_bench.attention.base import Attention
from nystra_bench.attention.exact import ExactAttention
from nystra_bench.attention.identity import IdentityAttention
from nystra_bench.attention.nystra import NystraAttention
from nystra_bench.errors import UserError
from nystra_bench.instruments.attention_maps import attention_maps as find_maps
from nystra_bench.instruments.spectra import attention_spectra
from nystra_bench.models import attention_sites
from nystra_bench.models.swinir import SwinIR, SwinIRSpec
from nystra_bench.sweep.locks import device_lock

ROOT = Path(__file__).resolve().parents[1]
QUICK = Timing(rounds=3, min_rounds=3, budget_s=0, warmup_s=0, min_sample_ms=0)
PUBLIC = {name: getattr(nystra_bench, name) for name in nystra_bench.__all__}


@pytest.fixture(scope="module")
def model():
    return load_model("swinir_denoise_w8")


@pytest.fixture(scope="module")
def sample():
    return next(load_task("denoise", sigma=25, limit=1, crop=32).samples())


@pytest.fixture
def noisy(sample):
    return sample.degraded


class Broken(Attention):
    def forward(self, q, k, v, window):
        raise RuntimeError("something is wrong in here")


class Infinite(Attention):
    def forward(self, q, k, v, window):
        return v / 0


# --------------------------------------------------------------------------- the package


def test_importing_it_imports_nothing_large():
    asked = "import nystra_bench, sys; print([m for m in ('torch', 'pandas', 'matplotlib') if m in sys.modules])"
    told = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert told.strip() == "[]"


def test_every_name_is_there_and_listed():
    assert set(nystra_bench.__all__) <= set(dir(nystra_bench))
    assert all(callable(value) and value.__doc__ for value in PUBLIC.values())
    with pytest.raises(AttributeError, match="has no attribute compere"):
        nystra_bench.compere  # noqa: B018


def test_type_checkers_see_the_same_names():
    text = (ROOT / "nystra_bench" / "__init__.py").read_text()
    block = text.split("if TYPE_CHECKING:")[1].split("\n\n")[0]
    assert set(nystra_bench.__all__) == {word.strip(" ,)") for word in block.split() if word.strip(" ,)") in PUBLIC}
    assert (ROOT / "nystra_bench" / "py.typed").is_file()


@pytest.mark.parametrize("name", ["acceleration", "analysis", "comparison", "options"])
def test_the_examples_of_docstrings(name):
    found = doctest.testmod(importlib.import_module(f"nystra_bench.api.{name}"), extraglobs=PUBLIC)
    assert found.attempted and not found.failed


def test_the_examples_of_the_documentation():
    found = doctest.testfile(str(ROOT / "docs" / "API.md"), module_relative=False)
    assert found.attempted > 10 and not found.failed


def test_the_documentation_names_every_function():
    text = (ROOT / "docs" / "API.md").read_text(encoding="utf-8")
    assert [name for name in nystra_bench.__all__ if f"`{name}" not in text] == []


# --------------------------------------------------------------------------- options by name


def test_lists_are_those_of_the_configuration_folders():
    for choice, listed in (("attention", list_attentions()), ("model", list_models()), ("sweep", list_sweeps())):
        folder = ROOT / "configs" / choice
        files = [file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.yaml")]
        assert sorted(listed) == sorted(files)
    assert all(list_models().values()) and all(list_sweeps().values())
    assert not any(text.startswith("#") for text in list_sweeps().values())


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


# --------------------------------------------------------------------------- images


def test_all_forms_of_an_image_are_the_same_input(model, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    planes = torch.from_numpy(pixels).permute(2, 0, 1)
    forms = [pixels, pixels / 255, (pixels / 255).astype(np.float32), planes, planes[None] / 255]
    forms += [tmp_path / "image.png", str(tmp_path / "image.png"), (planes / 255).double().requires_grad_()]
    for form in forms:
        x = to_input(form, model)
        assert x.shape == (1, 3, 12, 10) and x.dtype == torch.float32
        assert torch.allclose(x, planes[None] / 255, atol=1e-6)


def test_models_of_one_channel_take_grey_images():
    grey = SwinIR(SwinIRSpec(channels=1, out_channels=1, dim=8, depths=(1,), heads=(2,), window=8)).eval()
    image = np.linspace(0, 1, 256).reshape(16, 16)
    assert to_input(image, grey).shape == to_input(image[..., None], grey).shape == (1, 1, 16, 16)
    assert compare(grey, image, "identity", timing=None).figure() is not None
    with pytest.raises(UserError, match=r"\(8, 8, 3\) does not fit a model of 1 channels: accepted are"):
        to_input(np.zeros((8, 8, 3)), grey)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((3, 16, 16)), r"image of the shape \(3, 16, 16\) does not fit a model of 3 channels: accepted are"),
        (np.zeros((16, 16)), r"image of the shape \(16, 16\)"),
        (np.zeros((2, 16, 16, 3)), r"image of the shape \(2, 16, 16, 3\)"),
        (torch.zeros(2, 3, 16, 16), r"image of the shape \(2, 3, 16, 16\)"),
        (torch.zeros(16, 16, 3), r"image of the shape \(16, 16, 3\)"),
        (np.zeros((0, 16, 3)), r"image of the shape \(0, 16, 3\)"),
        (np.full((16, 16, 3), 200.0), "image has values up to 200: accepted are"),
        (np.full((16, 16, 3), np.nan), "image has values up to nan: accepted are"),
        (np.zeros((16, 16, 3), int), "image is of the type int64: accepted are"),
        ("nowhere.png", "image=nowhere.png is no file: accepted are"),
        (None, "image is of the type NoneType: accepted are"),
    ],
)
def test_images_that_do_not_fit(model, image, said):
    with pytest.raises(UserError, match=said):
        compare(model, image, timing=None)


def test_a_broken_image_file(model, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"image: .*broken\.png cannot be read as an image"):
        compare(model, tmp_path / "broken.png", timing=None)


# --------------------------------------------------------------------------- compare


def output(model, attention, image):
    """The model's output by hand, (height, width, 3)."""
    with torch.inference_mode():
        restored = plug(model, attention)(torch.from_numpy(image).permute(2, 0, 1)[None].float())
    unplug(model)
    return restored[0].permute(1, 2, 0).numpy().astype(float)


def psnr(output, target):
    return 10 * np.log10(1 / np.square(output - target).mean())


def test_the_numbers_are_those_of_their_definitions(model, sample):
    table = compare(model, sample.degraded, ["exact", "identity", "nystra"], clean=sample.clean, timing=None)
    assert list(table.index) == ["exact", "identity", "nystra"] and table.index.name == "attention"
    assert list(table.columns) == ["deviation_psnr", "deviation_ssim", "psnr", "ssim", "status", "reason"]
    exact = output(model, ExactAttention(), sample.degraded)
    for name, attention in (("identity", IdentityAttention()), ("nystra", NystraAttention())):
        restored = output(model, attention, sample.degraded)
        assert table.deviation_psnr[name] == pytest.approx(psnr(restored, exact))
        rounded, clean = (np.round(image.clip(0, 1) * 255) / 255 for image in (restored, sample.clean.astype(float)))
        assert table.psnr[name] == pytest.approx(psnr(rounded, clean))
        gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        full = structural_similarity(exact, restored, channel_axis=-1, data_range=1, full=True, **gaussian)[1]
        assert table.deviation_ssim[name] == pytest.approx(full[5:-5, 5:-5].mean())
        assert np.allclose(table.outputs[name], restored, atol=1e-6)
    assert table.deviation_psnr["exact"] == np.inf


def test_the_model_is_left_as_it_was(model, noisy):
    own = NystraAttention(landmarks=4)
    plug(model, own)
    compare(model, noisy, ["identity"], timing=QUICK)
    spectra(model, noisy, windows=1)
    attention_maps(model, noisy, [(0, 0)], list_layers(model)[0])
    assert all(site.attention is own for site in attention_sites(model))
    unplug(model)


def test_timings_are_those_of_a_session(model, noisy):
    table = compare(model, noisy, ["exact", "sdpa", "identity", "nystra"], timing=QUICK)
    assert (table.latency_ms > 0).all() and (table.first_ms > 0).all()
    assert table.speedup_vs_exact["exact"] == 1 == table.speedup_vs_sdpa["sdpa"]
    for name in ("exact", "sdpa"):
        ratio, low, high = (table[f"speedup_vs_{name}{end}"] for end in ("", "_low", "_high"))
        assert ((low <= ratio) & (ratio <= high)).all()
    assert "speedup_vs_native" not in table
    assert table.attrs["rounds"] in (3, 6) and table.attrs["floor_ms"] == table.latency_ms["identity"]
    low, high = table.attrs["noise"][1:]
    assert low <= table.attrs["noise"][0] <= high


def test_the_released_model_is_a_reference(noisy):
    large = load_model("swinir_denoise_w8", window_size=16, position_bias="drop")
    released = load_model("swinir_denoise_w8")
    table = compare(large, noisy, "exact", released=released, timing=QUICK)
    assert table.speedup_vs_native["exact"] > 0
    expected = psnr(output(large, ExactAttention(), noisy), output(released, ExactAttention(), noisy))
    assert table.native_deviation_psnr["exact"] == pytest.approx(expected)


def test_objects_and_names_of_ones_own(model, noisy):
    table = compare(model, noisy, {"a": "nystra(landmarks=8)", "b": NystraAttention(landmarks=8)}, timing=None)
    assert list(table.index) == ["a", "b"] and table.deviation_psnr["a"] == table.deviation_psnr["b"]
    table = compare(model, noisy, [IdentityAttention(), "nystra( landmarks=8 )"], timing=None)
    assert list(table.index) == ["IdentityAttention", "nystra( landmarks=8 )"]


def test_what_cannot_run_is_a_row_with_its_reason(model, noisy, caplog):
    attentions = ["nystra(landmarks=65)", Broken(), Infinite(), "identity"]
    with caplog.at_level(logging.CRITICAL, "nystra_bench"):
        table = compare(model, noisy, attentions, timing=QUICK)
    assert list(table.status[:3]) == ["skipped", "failed", "nonfinite"]
    assert "exceed the 64 tokens" in table.reason.iloc[0]
    assert table.reason["Broken"] == "RuntimeError: something is wrong in here"
    assert "NaN or infinite" in table.reason["Infinite"]
    assert table.latency_ms.isna().tolist() == [True, True, False, False]
    assert np.isfinite(table.deviation_psnr["identity"])
    shown = table._repr_html_()
    assert "something is wrong in here" in shown and table.figure() is not None


def test_half_precision_deviates_from_the_original_in_float32(noisy):
    half = load_model("swinir_denoise_w8").to(torch.bfloat16)
    table = compare(half, noisy, "exact", timing=None)
    assert 20 < table.deviation_psnr["exact"] < 80
    assert next(half.parameters()).dtype == torch.bfloat16
    assert table.attrs["dtype"] == "bfloat16"


def test_super_resolution_is_compared_and_drawn_in_its_own_size():
    task = load_task("super_resolution", scale=2, limit=1, crop=48)
    sample = next(task.samples())
    table = compare(load_model("swinir_x2"), sample.degraded, ["identity"], clean=sample.clean,
                    convention=task.convention, timing=None)  # fmt: skip
    assert table.outputs["identity"].shape == sample.clean.shape == (48, 48, 3)
    assert 15 < table.psnr["identity"] < 60 and table.figure() is not None
    assert "border of 2 pixels" in table._repr_html_()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"attentions": []}, "attentions is empty: accepted are"),
        ({"attentions": ["exact", "exact"]}, "exact is there twice: accepted is"),
        ({"attentions": {"exact": "nystra"}}, "exact is the name of a reference: accepted is"),
        ({"attentions": {"native": "nystra"}}, "native is the name of a reference: accepted is"),
        ({"attentions": {"exact_again": "exact"}}, "exact_again is the name of a reference: accepted is"),
        ({"attentions": ["exact", 3]}, "attention=3 is no attention: accepted are"),
        ({"attentions": [["exact"]]}, r"attention=\['exact'\] is no attention: accepted are"),
        ({"metrics": ["psnr"]}, "metrics=psnr needs clean=: accepted"),
        ({"metrics": ["native_deviation_psnr"]}, "metrics=native_deviation_psnr needs released=: accepted"),
        ({"metrics": ["pnsr"]}, r"metrics=pnsr is unknown \(did you mean psnr\?\)"),
        ({"metrics": ["deviation_fid"]}, "metrics=deviation_fid is of a set of images: accepted"),
        ({"convention": "rgb"}, "convention=rgb is unknown"),
        ({"clean": np.zeros((16, 16, 3))}, "clean of 16×16 pixels does not fit: accepted is one of 32×32"),
        ({"clean": np.zeros((3, 32, 32))}, r"clean of the shape \(3, 32, 32\) does not fit"),
    ],
)
def test_arguments_that_do_not_fit(model, noisy, arguments, said):
    with pytest.raises(UserError, match=said):
        compare(model, noisy, timing=None, **arguments)


def test_the_released_model_is_another_one(model, noisy):
    with pytest.raises(UserError, match="released is the model itself: accepted is another one"):
        compare(model, noisy, released=model, timing=None)


def test_timing_keeps_off_other_runs(model, noisy):
    held = "with device_lock('cpu', quiet=True): print('held', flush=True); input()"
    code = f"from nystra_bench.sweep.locks import device_lock\n{held}"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes, text=True, cwd=ROOT) as other:
        assert other.stdout.readline().strip() == "held"
        for call in (lambda: compare(model, noisy, "exact"), lambda: time_attention("exact", 64)):
            with pytest.raises(UserError, match="device=cpu is in use by another run"):
                call()
        other.communicate("\n")
    with device_lock("cpu", quiet=True):
        pass


def test_what_pandas_makes_of_a_comparison_is_a_plain_frame(model, sample):
    table = compare(model, sample.degraded, ["exact", "identity"], clean=sample.clean, timing=None)
    assert isinstance(table, pd.DataFrame)
    for made in (table[["psnr"]], table.copy(), table.sort_values("psnr"), table.T, table[table.psnr > 0]):
        assert type(made) is pd.DataFrame
    assert table.to_csv().startswith("attention,deviation_psnr")


def test_notebooks_show_the_table_and_the_pictures(model, sample, monkeypatch):
    displayed = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: displayed.append(data))
    table = compare(model, sample.degraded, {"<b>": "nystra", "exact": "exact"}, clean=sample.clean, timing=None)
    table._ipython_display_()
    shown, pictures = displayed
    assert "&lt;b&gt;" in shown["text/html"] and "<b>" not in shown["text/html"]
    assert f"{table.psnr['exact']:.2f}" in shown["text/html"] and "∞" in shown["text/html"]
    assert "deviation_psnr" in shown["text/plain"]
    assert pictures["image/png"].startswith("iVBOR")  # PNG's magic number in base64


# --------------------------------------------------------------------------- spectra, maps, timing against N


def test_spectra_are_the_instruments(model, noisy):
    table = spectra(model, noisy, ["nystra(landmarks=8)"], windows=1, values=7)
    attentions = {"nystra(landmarks=8)": NystraAttention(landmarks=8)}
    expected = attention_spectra(model, to_input(noisy, model), attentions, windows=1, values=7)
    pd.testing.assert_frame_equal(table, pd.DataFrame(expected))
    assert set(table.attention) == {"exact", "nystra(landmarks=8)"} and set(table.layer) == set(list_layers(model))


def test_maps_are_the_instruments(model, noisy):
    layer = list_layers(model)[1]
    where = [(3, 5), (20, 30)], [layer], [1, 2]
    maps = attention_maps(model, noisy, *where, ["nystra"])
    expected = find_maps(model, to_input(noisy, model), {"nystra": NystraAttention()}, *where)
    assert len(maps) == len(expected) == 2 * 2 * 2
    assert all(np.array_equal(a.values, b.values) and a.box == b.box for a, b in zip(maps, expected, strict=True))
    exact = [found for found in maps if found.attention == "exact"]
    assert all(found.values.sum() + found.outside == pytest.approx(1, abs=1e-5) for found in exact)


def test_the_table_of_maps_tells_what_is_misplaced(model, noisy):
    maps = attention_maps(model, noisy, [(3, 5), (20, 30)], -1, 1, ["identity", "sdpa"])
    table = maps.table()
    assert list(table.columns) == ["attention", "layer", "head", "query", "outside", "map_error"]
    assert (table[table.attention == "exact"].map_error == 0).all()
    assert (table[table.attention == "sdpa"].map_error < 1e-5).all()
    exact, identity = (m for m in maps if m.query == (20, 30) and m.attention in ("exact", "identity"))
    expected = 1 - exact.values[identity.values == 1].item()  # all weight on the token itself
    found = table[(table.attention == "identity") & (table["query"] == (20, 30))].map_error.item()
    assert found == pytest.approx(expected, rel=1e-4)


def test_the_pictures_of_maps_have_a_panel_for_each(model, noisy):
    maps = attention_maps(model, noisy, [(3, 5), (9, 9)], [0, 1], [0, 2], ["nystra", "identity"])
    figures = maps.figures()
    assert len(figures) == 2 * 2
    for figure in figures:
        titles = [axes.get_title().split("\n")[0] for axes in figure.axes if axes.get_title()]
        assert [title for title in titles if not title.startswith("input")] == ["exact", "nystra", "identity"] * 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"layers": "layers.7"}, "layer=layers.7 is unknown.*accepted are layers.0"),
        ({"heads": 9}, "head=9 does not exist in layer .*: accepted are 0 to 3"),
        ({"queries": [(32, 0)]}, r"query=\[32, ?0\] lies outside of the image: accepted are rows 0 to 31"),
        ({"queries": [5]}, "query=5 is no pixel: accepted are a row and a column"),
        ({"attentions": "nystra(landmarks=65)"}, "exceed the 64 tokens"),
    ],
)
def test_maps_that_are_not_there(model, noisy, arguments, said):
    fitting = {"queries": [(0, 0)], "layers": list_layers(model)[0]}
    with pytest.raises(UserError, match=said):
        attention_maps(model, noisy, **fitting | arguments)


def test_spectra_that_are_not_there(model, noisy):
    with pytest.raises(UserError, match="windows=0 is out of range: accepted are whole numbers from 1 on"):
        spectra(model, noisy, windows=0)
    with pytest.raises(UserError, match="values=True is out of range"):
        spectra(model, noisy, values=True)


def test_time_against_tokens(model):
    table = time_attention(["exact", "nystra(landmarks=16)"], (16, 64), heads=2, dim=8, timing=QUICK)
    assert list(table.attention) == ["exact"] * 2 + ["nystra(landmarks=16)"] * 2
    assert list(table.tokens) == [16, 64] * 2
    assert (table.median_ms > 0).all() and table.reason.isna().all()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"sizes": 60}, "60.*accepted are squares"),
        ({"mode": "windows"}, r"mode=windows is unknown \(did you mean window\?\)"),
        ({"heads": 0}, "heads=0 is out of range: accepted are whole numbers from 1 on"),
        ({"dim": 1.5}, "dim=1.5 is out of range"),
        ({"dtype": "float31"}, r"dtype=float31 is unknown \(did you mean float32\?\)"),
        ({"device": "gpu"}, "device=gpu is unknown"),
        ({"attentions": "exakt"}, r"attention=exakt is unknown \(did you mean exact"),
    ],
)
def test_time_against_what_does_not_fit(arguments, said):
    with pytest.raises(UserError, match=said):
        time_attention(**{"attentions": "exact", "sizes": 64, "timing": QUICK} | arguments)
