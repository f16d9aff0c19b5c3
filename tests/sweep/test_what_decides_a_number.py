"""What decides a number is in its key or stands beside it: references, timing, code, metrics; and what is no number."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from nystra_bench.models import load_configured
from nystra_bench.tasks.denoise import GaussianDenoise

ATTENTIONS = '''\
import torch

from nystra_bench.attention.base import Attention


class NotANumber(Attention):
    def forward(self, q, k, v, window):
        return v / 0 * 0


class Transposed(Attention):
    """Of the right size, and of a wrong shape."""

    def forward(self, q, k, v, window):
        return v.transpose(-1, -2)


class Unsteady(Attention):
    """Never gives the same twice."""

    def forward(self, q, k, v, window):
        return v + 0.01 * torch.randn_like(v)
'''

METRICS = '''\
from pathlib import Path

import numpy as np

from nystra_bench.metrics.base import Metric


class Counting(Metric):
    """Notes each call in a file; fails at the third where it is told to."""

    def __init__(self, against="truth", file=None, fails=False):
        super().__init__(against)
        self.file, self.fails = Path(file), fails

    def compare(self, output, target):
        with self.file.open("a") as file:
            file.write("x")
        if self.fails and not Path(f"{self.file}.cured").exists() and len(self.file.read_text()) == 3:
            raise ArithmeticError("no luck")
        return float(np.mean(output))
'''


@pytest.fixture
def mine(tmp_path):
    folder = tmp_path / "mine"
    (folder / "attention").mkdir(parents=True)
    (folder / "metric").mkdir()
    (folder / "odd_attentions.py").write_text(ATTENTIONS)
    (folder / "counting_metrics.py").write_text(METRICS)
    for name, target in (("broken", "NotANumber"), ("transposed", "Transposed"), ("unsteady", "Unsteady")):
        (folder / "attention" / f"{name}.yaml").write_text(f"_target_: odd_attentions.{target}\n")
    for name, fails in (("counted", "false"), ("halting", "true")):
        text = f"_target_: counting_metrics.Counting\nagainst: truth\nfile: {folder / name}\nfails: {fails}\n"
        (folder / "metric" / f"{name}.yaml").write_text(text)
    return folder


@pytest.fixture
def run(bench, mine, here):
    """The command on the released model with the folder's options; gives the table."""

    def command(*words, code=0):
        usual = ["position_bias=native", "figures=[]", f"hydra.searchpath=['file://{mine}']"]
        outcome = bench(*usual, *words)
        assert outcome.code == code, outcome.err
        return bench.table().set_index("attention")

    return command


QUALITY = ("measure=quality", "metrics=[psnr,deviation_psnr]")


def test_deviations_from_another_reference_are_other_numbers(run):
    odd = run(*QUALITY, "attention=[exact,identity]", "references.exact=identity")
    assert odd.deviation_psnr["identity"] == float("inf") and odd.deviation_psnr["exact"] < 100
    plain = run(*QUALITY, "attention=[exact,identity]")
    assert plain.deviation_psnr["exact"] == float("inf")
    assert plain.deviation_psnr["identity"] == pytest.approx(odd.deviation_psnr["exact"], abs=1e-6)
    assert (plain.psnr == odd.psnr).all()


def test_the_deviation_of_exact_attention_is_measured(run):
    table = run(*QUALITY, "attention=unsteady", "references.exact=unsteady")
    assert 20 < table.deviation_psnr["unsteady"] < 100


def keys(bench):
    cells = json.loads((bench.results / "tiny" / "cells.json").read_text())["cells"]
    return {c["cell"]["measure"]["name"]: c["key"] for c in cells}


def test_timing_settings_references_and_code_are_in_the_keys_of_timings(bench, looked_at_here, mine, tmp_path):
    def planned(*words):
        usual = ["mode=report", "position_bias=native", "tables=[]", "figures=[]"]
        assert bench(*usual, "attention=broken", f"hydra.searchpath=['file://{mine}']", *words).code == 0
        return keys(bench)

    first = planned()
    longer = planned("timing.rounds=4")
    assert longer["latency"] != first["latency"] and longer["quality"] == first["quality"]
    other = planned("references.sdpa=exact")
    assert other["latency"] != first["latency"] and other["quality"] == first["quality"]
    assert planned() == first
    (mine / "odd_attentions.py").write_text(ATTENTIONS.replace("v / 0 * 0", "v * 0 / 0"))
    edited = planned()
    assert edited["latency"] != first["latency"] and edited["memory"] != first["memory"]
    assert edited["quality"] == first["quality"]  # there it is the declared version that counts


def test_a_new_metric_is_computed_alone_and_the_others_are_kept(run, bench, mine):
    words = ("measure=quality", "attention=[exact,identity]")
    first = run(*words, "metrics=[psnr,counted]")
    assert (mine / "counted").read_text() == "x" * 2 * (2 + 1)  # two cells, and the input once for both
    more = run(*words, "metrics=[psnr,ssim,deviation_psnr,counted]")
    assert (mine / "counted").read_text() == "x" * 6
    assert (more.psnr == first.psnr).all() and (more.counted == first.counted).all()
    assert more.ssim.notna().all() and more.input_ssim.notna().all() and more.deviation_psnr.notna().all()
    plan = bench(*words, "position_bias=native", "metrics=[psnr,ssim,deviation_psnr]", "mode=plan")
    assert plan.out.splitlines()[-1].endswith("2 cells: 2 done; 0 to measure")
    fewer = run(*words, "metrics=[ssim]")
    assert fewer.psnr.isna().all() and (fewer.ssim == more.ssim).all()
    plan = bench(*words, "position_bias=native", "metrics=[psnr,deviation_rms]", "mode=plan")
    assert "(not yet measured: deviation_rms)" in plan.out.splitlines()[0]


def test_images_that_are_done_are_kept_when_their_cell_breaks_off(run, mine):
    words = ("measure=quality", "attention=identity", "metrics=[halting,psnr]")
    broken = run(*words, code=2)
    assert broken.status["identity"] == "failed"
    assert (mine / "halting").read_text() == "xxx"  # output and input of the first image, and the second's output
    (mine / "halting.cured").touch()
    table = run(*words)
    assert (mine / "halting").read_text() == "xxx" + "xx"  # the second image alone
    assert table.images["identity"] == 2 and np.isfinite(table.halting["identity"])


def test_outputs_that_are_no_numbers_are_a_status_with_a_reason(run, bench):
    table = run("attention=[broken,identity]", "measure=[quality,latency]", "metrics=[psnr,deviation_psnr]", code=2)
    assert table.status["broken"] == "nonfinite" and "NaN" in table.reason["broken"]
    assert "2 of 2 images" in table.reason["broken"]
    assert np.isnan(table.psnr["broken"]) and table.status["identity"] in ("done", "unstable")
    assert "nonfinite" in (bench.results / "tiny" / "report.html").read_text()


def test_an_output_of_a_wrong_shape_gets_no_numbers(run):
    table = run("attention=[transposed]", *QUALITY, code=2)
    assert table.status["transposed"] == "failed" and "shape" in table.reason["transposed"]


def test_weights_that_are_no_numbers(run, tiny_weights, tmp_path):
    state = load_file(tiny_weights)
    state["conv_first.bias"][0] = float("nan")
    save_file(state, tmp_path / "broken.safetensors")
    table = run("attention=exact", *QUALITY, f"model.weights={tmp_path / 'broken.safetensors'}", code=2)
    assert table.status["exact"] == "nonfinite"
    assert "weights" in table.reason["exact"] and "conv_first.bias" in table.reason["exact"]


def test_half_precision_is_compared_with_the_original_in_float32(run, bench, tiny_weights, images):
    run(*QUALITY, "attention=[exact,identity]", "dtype=[float32,bfloat16]")
    table = bench.table().set_index(["attention", "dtype"])
    assert table.deviation_psnr["exact", "float32"] == float("inf")
    assert 30 < table.deviation_psnr["exact", "bfloat16"] < 90
    config = {"_target_": "nystra_bench.models.swinir.load_swinir", "weights": str(tiny_weights)}
    precise, rounded = load_configured(config), load_configured(config).bfloat16()
    errors = []
    for sample in GaussianDenoise(25, images=str(images), crop=24).samples():
        x = torch.from_numpy(sample.degraded).permute(2, 0, 1)[None]
        with torch.inference_mode():
            original, half = precise(x), rounded(x.bfloat16())
        errors.append(-10 * torch.log10((half.float() - original).square().mean()).item())
    assert table.deviation_psnr["exact", "bfloat16"] == pytest.approx(np.mean(errors), abs=0.01)


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("references.exact=[exact,sdpa]", ["references.exact=['exact', 'sdpa']", "accepted are"]),
        ("references.sdpa=null", ["references.sdpa=null", "accepted are"]),
        ("references.identity=identiti", ["references.identity=identiti", "did you mean identity?"]),
        ("references.mine=exact", ["references.mine"]),
        ("tf32=perhaps", ["tf32=perhaps", "true and false"]),
    ],
)
def test_references_that_are_none(bench, looked_at_here, word, parts):
    outcome = bench(word)
    assert outcome.code == 1
    for part in parts:
        assert part in outcome.sentence


def test_what_ran_is_recorded(bench, looked_at_here):
    """By the worker's own process."""
    assert bench("attention=identity", "position_bias=native", "figures=[]", *QUALITY).code == 0
    (result,) = bench.stored()
    assert result["environment"]["tf32"] is False
    assert len(result["environment"]["source"]) == 64


def test_plug_ins_and_baselines_are_part_of_the_sources_digest(tmp_path):
    from nystra_bench.instruments import environment

    folder = tmp_path / "mine"
    folder.mkdir()
    without = environment.source_digest([str(folder)])
    (folder / "more.py").write_text("x = 1\n")
    assert environment.source_digest([str(folder)]) != without
    assert pd.Series([without]).str.len().item() == 64
