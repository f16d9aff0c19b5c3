"""The worker's quality part and what the report makes of it, on a tiny random super-resolution model."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from nystra_bench.metrics.psnr import Psnr
from nystra_bench.metrics.ssim import Ssim
from nystra_bench.models.swinir import SwinIR, SwinIRSpec
from nystra_bench.report.figures.panel import VisualPanel
from nystra_bench.report.reading import load
from nystra_bench.sweep.cell import SCHEMA, Cell
from nystra_bench.sweep.store import Store, write_atomically
from nystra_bench.sweep.worker import Worker
from nystra_bench.tasks.super_resolution import SuperResolution

PLUGIN = '''
import numpy as np
from nystra_bench.metrics.base import Metric, SetMetric

class MeanShift(SetMetric):
    """Distance of the means of all pixels of two sets."""
    unit, higher_is_better = "levels", False
    def features(self, image):
        return image.reshape(-1, image.shape[-1])
    def compare(self, outputs, targets):
        return 255 * abs(outputs.mean() - targets.mean())

class Absent(Metric):
    def available(self):
        return "it is never there"

class Large(Metric):
    smallest = 40
    def compare(self, output, target):
        raise ValueError("it was asked all the same")
'''
EXACT = {"_target_": "nystra_bench.attention.exact.ExactAttention"}
IDENTITY = {"_target_": "nystra_bench.attention.identity.IdentityAttention"}
METRICS = {
    "psnr": {"_target_": "nystra_bench.metrics.psnr.Psnr"},
    "psnr_rgb": {"_target_": "nystra_bench.metrics.psnr.Psnr", "convention": "rgb8"},
    "ssim": {"_target_": "nystra_bench.metrics.ssim.Ssim"},
    "deviation_psnr": {"_target_": "nystra_bench.metrics.psnr.Psnr", "against": "exact"},
    "shift": {"_target_": "mean_shift_plugin.MeanShift"},
    "deviation_shift": {"_target_": "mean_shift_plugin.MeanShift", "against": "exact"},
    "absent": {"_target_": "mean_shift_plugin.Absent"},
    "large": {"_target_": "mean_shift_plugin.Large"},
}
LARGE = "it needs images of 40 pixels a side, and the smallest one is 48x40"
"""With the border of 2 pixels of super-resolution there are 36."""


QUALITY = {"_target_": "nystra_bench.measure.quality.Quality"}
PARTS = {name: {"version": "1"} for name in METRICS if name != "absent"}


def quality_cell(attention, scale=2):
    content = {
        "measure": {"name": "quality", "version": "1", "params": {}},
        "model": {"name": "tiny", "weights": "aa" * 32, "version": "1", "native_window": 8},
        "window": 8,
        "position_bias": "native",
        "task": {"name": "super_resolution", "version": "1", "dataset": "d", "params": {"scale": scale}, "data": "bb"},
        "attention": {"name": attention, "version": "1", "params": {}},
        "device": "cpu",
        "dtype": "float32",
        "settings": {},
    }
    return Cell.of(content)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Quality of exact and of no attention: the folder ``results``, the task, and the values by attention."""
    folder = tmp_path_factory.mktemp("quality")
    (folder / "images").mkdir()
    for n in range(2):
        small = np.random.default_rng(n).integers(0, 256, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(small).resize((49, 40), Image.Resampling.BICUBIC).save(folder / "images" / f"{n}.png")
    (folder / "mean_shift_plugin.py").write_text(PLUGIN)
    torch.manual_seed(0)
    spec = SwinIRSpec(dim=8, depths=(2,), heads=(2,), mlp_ratio=1.0, scale=2, upsampler="pixelshuffledirect")
    model = SwinIR(spec)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "tiny.safetensors")
    task = {"_target_": "nystra_bench.tasks.super_resolution.SuperResolution", "scale": 2}
    request = {
        "store": str(folder / "results" / "store"),
        "sys_path": [],
        "metrics": METRICS,
        "references": {"exact": EXACT, "identity": IDENTITY},
        "tf32": False,
        "timing": {},
        "tiling": None,
        "seed": 0,
        "model": {"_target_": "nystra_bench.models.swinir.load_swinir", "weights": str(folder / "tiny.safetensors")},
        "task": {**task, "images": str(folder / "images")},
        "window": 8,
        "position_bias": "native",
        "device": {"_type_": "cpu", "threads": 1},
        "dtype": "float32",
        "cells": [
            {"cell": quality_cell(name).text, "measure": QUALITY, "attention": attention, "parts": PARTS}
            for name, attention in (("exact", EXACT), ("identity", IDENTITY))
        ],
    }
    (folder / "results" / "store").mkdir(parents=True)
    threads, events = torch.get_num_threads(), []
    sys.path.insert(0, str(folder))
    try:
        worker = Worker(request, events.append)
        worker.run()
    finally:
        sys.path.remove(str(folder))
        torch.set_num_threads(threads)
    assert [event["event"] for event in events] == ["start", "alive", "alive", "done"] * 2, events
    assert all(event["passes_s"] > 0 for event in events if event["event"] == "done")
    values = {name: worker.bench.store.result(quality_cell(name).key)["value"] for name in ("exact", "identity")}
    cells = [{"key": c.key, "cell": c.content, "status": "planned", "reason": None} for c in map(quality_cell, values)]
    plan = {"schema": SCHEMA, "sweep": "demo", "cells": cells}
    write_atomically(folder / "results" / "demo" / "cells.json", json.dumps(plan))
    return folder / "results", SuperResolution(2, images=str(folder / "images")), values


def test_the_inputs_numbers_are_those_of_bicubic_enlargement(run):
    _, task, values = run
    for sample, image in zip(task.samples(), values["identity"]["images"], strict=True):
        enlarged = task.as_output(sample.degraded)
        assert enlarged.shape == sample.clean.shape == (40, 48, 3)
        assert (image["height"], image["width"]) == (40, 48)
        assert image["input"]["psnr"] == Psnr()(enlarged, sample.clean, task.convention)
        assert image["input"]["psnr_rgb"] == Psnr(convention="rgb8")(enlarged, sample.clean, task.convention)
        assert image["input"]["ssim"] == Ssim()(enlarged, sample.clean, task.convention)
        assert set(image["input"]) == {"psnr", "psnr_rgb", "ssim"}
        assert set(image["metrics"]) == {"psnr", "psnr_rgb", "ssim", "deviation_psnr"}
    assert values["exact"]["images"][0]["input"] == values["identity"]["images"][0]["input"]


def test_a_set_has_one_number(run):
    _, task, values = run
    samples = list(task.samples())
    of_set = values["identity"]["set"]
    assert set(of_set) == {"metrics", "input"}
    assert set(of_set["metrics"]) == {"shift", "deviation_shift"} and set(of_set["input"]) == {"shift"}
    outputs = [task.convention.prepare(task.as_output(sample.degraded)) for sample in samples]
    targets = [task.convention.prepare(sample.clean) for sample in samples]
    assert of_set["input"]["shift"] == pytest.approx(255 * abs(np.mean(outputs) - np.mean(targets)), abs=1e-6)
    assert values["exact"]["set"]["metrics"]["deviation_shift"] == 0
    assert of_set["metrics"]["deviation_shift"] > 0


def test_the_table_has_columns_for_images_and_sets(run):
    results, _, values = run
    data = load(results, "demo")
    frame = data.frame.set_index("attention")
    assert frame.at["identity", "shift"] == values["identity"]["set"]["metrics"]["shift"]
    assert frame.at["identity", "input_shift"] == values["identity"]["set"]["input"]["shift"]
    assert frame.at["identity", "psnr_rgb"] == np.mean([i["metrics"]["psnr_rgb"] for i in values["identity"]["images"]])
    assert frame.at["exact", "deviation_psnr"] == float("inf")
    assert list(frame["images"]) == [2, 2]
    assert not data.images["metric"].str.contains("shift").any()
    assert "sr_y: luma Y" in data.descriptions["psnr"]["convention"]
    assert "rgb8: RGB, border of 2 pixels" in data.descriptions["psnr_rgb"]["convention"]
    assert data.unavailable == {"absent": "it is never there", "large": LARGE}


def test_a_released_model_that_spoils_its_input_says_so_and_no_other_cell_does(run):
    results, task, values = run
    reasons = {name: Store(results / "store").result(quality_cell(name).key)["reason"] for name in values}
    first = values["exact"]["images"][0]
    assert first["metrics"]["psnr"] < first["input"]["psnr"] - 3  # the weights are random
    said = f"({first['metrics']['psnr']:.1f} dB in 0) than its input ({first['input']['psnr']:.1f} dB)"
    assert said in reasons["exact"] and "model.image_range" in reasons["exact"]
    assert reasons["identity"] is None


def test_the_panel_shows_the_input_in_the_size_of_the_outputs(run):
    results, task, _ = run
    data = load(results, "demo")
    (panel,) = data.panels()
    sample = next(iter(task.samples()))
    assert panel.input() == pytest.approx(task.as_output(sample.degraded), abs=1e-3)
    assert panel.input().shape == panel.clean().shape == panel.output(0).shape == (40, 48, 3)
    ((_, drawing),) = VisualPanel("panel").draw(data)
    shown = [image.get_array().shape[:2] for axes in drawing.axes for image in axes.images]
    assert shown.count((40, 48)) >= 4


def test_conventions_of_different_tasks_are_all_told():
    from nystra_bench.report.reading import _descriptions

    y, rgb = {"unit": "dB", "convention": "sr_y"}, {"unit": "dB", "convention": "rgb8"}
    merged = _descriptions([("denoise", {"psnr": rgb}), ("sr", {"psnr": y, "ssim": y}), ("deblur", {"psnr": rgb})])
    assert merged["psnr"] == {"unit": "dB", "convention": "denoise, deblur: rgb8; sr: sr_y"}
    assert merged["ssim"] == y


def test_means_with_numbers_that_are_not_finite():
    from nystra_bench.measure.quality import Quality

    def mean(*numbers):
        return Quality().scalars({"images": [{"metrics": {"psnr": number}} for number in numbers]}, {})["psnr"]

    assert mean(30.0, 32.0) == 31
    assert mean(30.0, "inf") == float("inf")
    assert mean(30.0, "-inf") == float("-inf")
    for nothing in ((30.0, "nan"), ("inf", "-inf"), (30.0, None)):
        assert np.isnan(mean(*nothing))
