"""``compare``: its numbers are those of their definitions, and what cannot run is a row with its reason."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from skimage.metrics import structural_similarity

from nystra_bench import (
    Timing,
    attention_maps,
    compare,
    list_layers,
    load_model,
    load_task,
    plug,
    spectra,
    time_attention,
    unplug,
)
from nystra_bench.attention.base import Attention
from nystra_bench.attention.exact import ExactAttention
from nystra_bench.attention.identity import IdentityAttention
from nystra_bench.attention.nystra import NystraAttention
from nystra_bench.errors import UserError
from nystra_bench.models import attention_sites
from nystra_bench.sweep.locks import device_lock

ROOT = Path(__file__).resolve().parents[2]
QUICK = Timing(rounds=3, min_rounds=3, budget_s=0, warmup_s=0, min_sample_ms=0)


class Broken(Attention):
    def forward(self, q, k, v, window):
        raise RuntimeError("something is wrong in here")


class Infinite(Attention):
    def forward(self, q, k, v, window):
        return v / 0


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
