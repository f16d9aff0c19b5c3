"""The benchmarks run, on small settings, and say what they should; how fast anything is, no test looks at."""

import argparse
import importlib
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nystra_bench import kernels
from nystra_bench.attention.base import Attention
from nystra_bench.attention.exact import ExactAttention
from nystra_bench.attention.sdpa import FusedAttention
from nystra_bench.instruments.statistics import Estimate
from nystra_bench.instruments.timer import Entry, Timing

ROOT = Path(__file__).resolve().parents[2]
QUICK = Timing(rounds=2, min_rounds=2, budget_s=1, warmup_s=0, min_sample_ms=0, again=False)


@pytest.fixture
def common(monkeypatch):
    """The module that all share, with less to copy and to multiply."""
    monkeypatch.syspath_prepend(str(ROOT))
    module = importlib.import_module("benchmarks.common")
    monkeypatch.setattr(module, "COPIED", 1 << 12)
    monkeypatch.setattr(module, "SIDE", 16)
    return module


@pytest.fixture
def model(common):
    return importlib.import_module("benchmarks.model")


class Refusing(Attention):
    def forward(self, q, k, v, window):
        raise MemoryError("the logits need 40 GB\nand more")


@pytest.mark.parametrize("name", ["attention", "model"])
def test_each_is_a_command(name):
    command = [sys.executable, "-m", f"benchmarks.{name}", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "--rounds" in done.stdout and "in one process" in done.stdout


def test_a_roofline_is_the_larger_of_the_two_least_times(common):
    roof = common.Roofline(bandwidth=1e6, speed=2e6)
    line = roof.line("ours", moved=3_000_000, operations=4_000_000, ms=6.0)
    assert "3 MB at 1.0 GB/s are 3.00 ms" in line
    assert "0.00 GFLOP at 2 GFLOP/s 2.00 ms" in line
    assert "takes 6.00 ms: 50 % of what the machine reaches" in line


def test_the_machine_is_told_by_a_copy_and_a_product(common):
    times = {"copy": Estimate(2.0, 2.0, 2.0, 1.0), "product": Estimate(4.0, 4.0, 4.0, 1.0)}
    roof = common.Roofline.of(times)
    assert roof.bandwidth == 2 * 4 * (1 << 12) / 2.0  # read and written
    assert roof.speed == 2 * 16**3 / 4.0
    copy, product = (common.machine()[name] for name in ("copy", "product"))
    assert copy.call().shape == (1 << 12,)
    assert product.call().shape == (16, 16)


def test_how_long_it_may_take_is_said_first(common, capsys):
    common.announce(4, Timing(min_rounds=5, budget_s=40.0), "all take a while")
    assert capsys.readouterr().out == (
        "4 settings, each timed for at most 40 s, or 5 rounds, where those take longer, after a warm-up; "
        "all take a while\n\n"
    )
    entry = Entry(lambda: None, lambda: None, call_ms=500.0, repeats=2)
    common.expect("a model", [entry, entry], Timing(rounds=10, again=False))
    assert capsys.readouterr().err == "a model: about 20 s\n"


def test_a_table_is_markdown(common):
    assert common.table(["a", "b"], [["1", "2"]]) == ["| a | b |", "|---|---|", "| 1 | 2 |"]


@pytest.mark.skipif(bool(kernels.refusal()), reason=f"there can be no kernels: {kernels.refusal()}")
def test_attention_alone(common, monkeypatch):
    attention = importlib.import_module("benchmarks.attention")
    monkeypatch.setattr(attention, "MAP_SIDE", 32)
    monkeypatch.setattr(attention, "HEADS", 2)
    chosen = argparse.Namespace(landmarks=4, iterations=3, rank=4, compiled=False)
    with torch.inference_mode():
        said = attention.measure(attention.Setting(16, 8), QUICK, chosen)
    text = "\n".join(said)
    assert text.startswith("### 4 × N = 256, d = 8, m = 4")
    ratios = ("sdpa / nystra_plus fused", "sdpa / nystra_plus_v5 fused")
    for part in (*ratios, "exact / nystra_plus fused", "nystra / nystra fused", "A/A", "roofline"):
        assert part in text
    assert "compiled" not in text
    deviations = [float(line.split()[-1]) for line in said if "deviates from" in line]
    assert len(deviations) == 2 and max(deviations) < 1e-5


def test_what_cannot_be_compiled_is_left_out_with_the_reason(common, monkeypatch):
    attention = importlib.import_module("benchmarks.attention")
    found = attention.Contest()

    def looking(q, k, v, window):
        return v if v.sum().item() else q

    attention._add_compiled(found, looking, (torch.ones(1, 1, 16, 4),) * 3, attention.Setting(4, 4))
    assert not found.calls
    (line,) = found.said
    assert line.startswith("* nystra compiled is left out: ") and "depends on the numbers" in line


def test_the_share_of_attention_is_what_the_time_without_it_lacks(model):
    assert model.share(Estimate(0.75, 0.7, 0.8, 0.95)) == "25 % (20–30)"


def test_closeness_is_the_psnr_of_peak_1(model):
    image = torch.rand(1, 3, 8, 8)
    assert model.decibels(image + 0.1, image) == pytest.approx(20, abs=1e-4)
    assert model.decibels(image, image) == math.inf


def test_a_model_under_each_attention(model):
    attentions = {"exact": ExactAttention(), "sdpa": FusedAttention(), "refusing": Refusing()}
    said = model.measure(model.Case("swinir_denoise_w8", 32, window=16), QUICK, lambda: dict(attentions))
    assert said[0].startswith("### swinir_denoise_w8, windows enlarged to 16, 32² pixels")
    lines = [[cell.strip() for cell in line.split("|")] for line in said if line.startswith("|")]
    rows = {cells[1]: cells for cells in lines}
    assert {"exact", "sdpa", "identity"} < {*rows} and "refusing" not in rows
    header = rows[""]
    assert rows["identity"][header.index("attention")] == "–" and "%" in rows["exact"][header.index("attention")]
    assert rows["exact"][header.index("exact / it")] == "–" and "(" in rows["sdpa"][header.index("exact / it")]
    decibels = {name: float(rows[name][header.index("dB")]) for name in ("exact", "sdpa", "identity")}
    assert decibels["exact"] == math.inf and decibels["sdpa"] > 100 > decibels["identity"]
    assert "* refusing is left out: the logits need 40 GB" in said
    assert any(line.startswith("* A/A (identity)") and "2 rounds" in line for line in said)


def test_a_model_that_was_not_fetched_is_left_out_with_the_command(model, monkeypatch, tmp_path):
    monkeypatch.setenv("NYSTRA_BENCH_CACHE", str(tmp_path))
    said = model.measure(model.Case("fiwhn_x4", 64), QUICK, lambda: {})
    assert any(line.startswith("* left out: ") and "nystra_bench.fetch fiwhn-x4" in line for line in said)
