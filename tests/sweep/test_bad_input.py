"""Mistakes of a user: one sentence that names option, value and what is accepted; exit code 1; nothing is written."""

import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from nystra_bench.cli import main
from nystra_bench.sweep.inspection import child_environment

pytestmark = pytest.mark.usefixtures("looked_at_here")


def contents(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture
def refused(bench, tmp_path):
    """Runs a command that is a mistake; gives its sentence."""

    def run(*words, **about):
        before = contents(tmp_path)
        outcome = bench(*words, **about)
        assert outcome.code == 1
        assert outcome.out == ""
        assert contents(tmp_path) == before
        assert not bench.results.exists()
        return outcome.sentence

    return run


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("measur=[quality]", ["measur", "did you mean measure?"]),
        ("timing.round=3", ["timing.round", "did you mean timing.rounds?"]),
        ("atention.landmarks=8", ["atention.landmarks=8", "did you mean attention"]),
        ("attention=nistra", ["attention=nistra", "did you mean nystra?", "exact"]),
        ("attention.landmark=8", ["attention.landmark=8", "did you mean attention.landmarks?"]),
        ("attention=[exact", ["attention=[exact", "option=value"]),
        ("attention=[]", ["attention=[]", "no value"]),
        ("attention.landmarks=[]", ["attention.landmarks=[]", "no value"]),
        ("attention=glob(*)", ["attention=glob(*)", "accepted"]),
        ("denoise", ["denoise", "option=value"]),
        ("model=swinir_denois_w8", ["model=swinir_denois_w8", "did you mean swinir_denoise_w8?"]),
        ("task=denoize", ["task=denoize", "did you mean denoise?"]),
        ("metrics=[psnrr]", ["metrics=psnrr", "did you mean psnr?", "ssim"]),
        ("metrics=[]", ["metrics=[]", "psnr"]),
        ("metrics=null", ["metrics=null", "psnr"]),
        ("tables=[nope]", ["tables=nope", "main"]),
        ("figures=[paret]", ["figures=paret", "did you mean pareto?"]),
        ("references.exact=exakt", ["references.exact=exakt", "did you mean exact?"]),
        ("retry=[x]", ["retry=x", "failed, oom, timeout, crashed"]),
        ("mode=foo", ["mode=foo", "run, plan, report"]),
        ("window_size=0", ["window_size=0", "from 2 on"]),
        ("window_size=abc", ["window_size=abc", "native"]),
        ("position_bias=interpolated", ["position_bias=interpolated", "did you mean interpolate?"]),
        ("device=tpu", ["device=tpu", "cpu, cuda"]),
        ("dtype=int8", ["dtype=int8", "float32"]),
        ("runtime=fast", ["runtime=fast", "eager, compiled, graphs"]),
        ("threads=0", ["threads=0", "from 1 on"]),
        ("threads=many", ["threads=many", "whole numbers"]),
        ("batch=0", ["batch=0", "from 1 on"]),
        ("batch=1.5", ["batch=1.5", "whole numbers"]),
        ("batch=1000000", ["batch=1000000", "up to 1024"]),
        ("memory_format=nhwc", ["memory_format=nhwc", "contiguous, channels_last"]),
        ("runtim=compiled", ["runtim", "did you mean runtime?"]),
        ("measure=[speed]", ["measure=speed", "latency", "quality"]),
        ("name=../x", ["name=../x", "without a dot"]),
        ("name=a//x", ["name=a//x", "joined by /"]),
        ("name=store/x", ["name=store/x", "other than store"]),
        ("name=..", ["name=..", "dot"]),
        ("name=store", ["name=store"]),
        ("results=null", ["results=null", "path"]),
        ("timing=5", ["timing=5", "timing.rounds"]),
        ("timing.rounds=1", ["timing.rounds=1", "from 2 on"]),
        ("timing.warmup_s=-1", ["timing.warmup_s=-1", "from 0 on"]),
        ("timing.budget_s=.inf", ["timing.budget_s", "numbers"]),
        ("timeout_s=0", ["timeout_s=0", "from 1 on"]),
        ("timeout_s=long", ["timeout_s=long"]),
        ("seed=abc", ["seed=abc", "whole numbers"]),
        ("plugins=[/nowhere]", ["/nowhere", "folder"]),
        ("~mode", ["~mode", "option=value"]),
        ("timing.min_rounds=1000000000", ["timing.min_rounds=1000000000", "up to 10000"]),
        ("timing.min_sample_ms=1e300", ["timing.min_sample_ms=1e+300", "up to 60000"]),
        ("task.images=a,b", ["task.images=a,b", "task.images=[a,b]"]),
        ("seed=1,2", ["seed=1,2", "several values"]),
    ],
)
def test_words_that_are_no_options_or_hold_no_accepted_value(refused, word, parts):
    sentence = refused(word)
    for part in parts:
        assert part in sentence


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("window_size=999", ["window_size=999", "24 pixels", "accepted"]),
        ("attention.landmarks=300", ["attention.landmarks=300", "64 tokens", "accepted"]),
        ("attention.landmarks=0", ["landmarks=0", "from 1 on"]),
        ("attention.landmarks=few", ["landmarks=few", "whole numbers"]),
        ("attention.landmarks=8.5", ["landmarks=8.5", "whole numbers"]),
        ("attention.iterations=-1", ["iterations=-1", "from 0 on"]),
        ("attention.init=foo", ["init=foo", "global, matrix"]),
        ("attention.guard=high", ["guard=high", "numbers"]),
        ("attention.guard=nan", ["guard=nan", "numbers"]),
        ("attention.guard=-5", ["guard=-5", "from 0 on"]),
        ("device.threads=99999999999", ["device.threads=99999999999", "cores of this machine"]),
        ("threads=999", ["threads=999", "cores of the machine"]),
        ("device.threads=true", ["device.threads=True", "whole numbers"]),
        ("device.threads=0", ["device.threads=0", "from 1 on"]),
        ("device.threads=many", ["device.threads=many", "whole numbers"]),
        ("device.type=tpu", ["device.type=tpu", "device.threads"]),
        ("task.sigma=-1", ["task.sigma=-1", "above 0"]),
        ("task.sigma=loud", ["sigma=loud", "numbers"]),
        ("task.limit=0", ["task.limit=0", "from 1 on"]),
        ("task.crop=wide", ["crop=wide", "whole numbers"]),
        ("task.seed=x", ["seed=x", "whole numbers"]),
        ("task.images=/nowhere", ["task.images=/nowhere", "bundled"]),
        ("model.weights=/nowhere.pth", ["model.weights=/nowhere.pth", ".safetensors"]),
        ("model.weights=null", ["model.weights", ".safetensors"]),
    ],
)
def test_values_that_only_the_objects_can_judge(refused, word, parts):
    sentence = refused(word)
    for part in parts:
        assert part in sentence


@pytest.mark.parametrize("word", ["runtime=compiled", "batch=2", "memory_format=channels_last"])
def test_a_way_to_run_that_nothing_obeys(refused, word):
    sentence = refused(word, "measure=spectrum")
    for part in (word, "measure=spectrum", "latency, memory"):
        assert part in sentence


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_the_machine_lacks(refused):
    sentence = refused("device=cuda")
    assert "device=cuda" in sentence
    assert "no CUDA GPU" in sentence


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("further", ["window_size=16", "window_size=999", "attention.landmarks=300", "attention=exact"])
def test_an_absent_device_is_named_whatever_else_there_is(refused, further):
    sentence = refused("device=cuda", further)
    assert sentence.startswith("device=cuda does not fit: ") and "no CUDA GPU" in sentence


def test_a_window_beside_the_native_bias_would_be_used_by_no_cell(refused):
    sentence = refused("window_size=12", "position_bias=native")
    assert "window_size=12" in sentence
    assert "interpolate" in sentence


@pytest.mark.parametrize("sweep", ["+swep=denoise", "+sweep=denois", "mode=plan"])
def test_no_or_a_misspelt_sweep(bench, sweep):
    outcome = bench(sweep=sweep)
    assert outcome.code == 1
    assert "denoise" in outcome.sentence
    assert "sweep" in outcome.sentence


def test_a_sweep_is_taken_without_the_plus(bench):
    assert bench("mode=plan", sweep="sweep=tiny").out == bench("mode=plan").out != ""


# ------------------------------------------------------------------ files


def test_a_corrupt_checkpoint(refused, tmp_path):
    for suffix in (".pth", ".safetensors"):
        file = tmp_path / f"weights{suffix}"
        file.write_bytes(b"no weights" * 20)
        sentence = refused(f"model.weights={file}")
        assert f"model.weights={file}" in sentence
        assert "accepted" in sentence


def test_a_checkpoint_of_another_architecture(refused, tmp_path):
    file = tmp_path / "other.safetensors"
    save_file({"encoder.weight": torch.zeros(3, 3)}, file)
    sentence = refused(f"model.weights={file}")
    assert f"model.weights={file}" in sentence
    assert "SwinIR" in sentence


def png_of_16_bits(file):
    """24 x 24, RGB: Pillow cannot write one, and reads one as if it had 8 bits."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 24, 24, 16, 2, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + bytes(144) for _ in range(24)))
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


def broken(file):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:500])


BAD_FILES = {
    "broken": (broken, "cannot be read"),
    "text": (lambda file: file.write_text("no image"), "cannot be read"),
    "alpha": (lambda file: Image.new("RGBA", (24, 24)).save(file), "mode RGBA"),
    "grey_16": (lambda file: Image.fromarray(np.zeros((24, 24), np.uint16)).save(file), "16"),
    "colour_16": (png_of_16_bits, "16"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_folder_with_a_file_that_is_no_8_bit_image(refused, tmp_path, kind):
    write, part = BAD_FILES[kind]
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (24, 24)).save(folder / "a_good.png")
    write(folder / "b_bad.png")
    sentence = refused(f"task.images={folder}")
    assert "task.images" in sentence
    assert str(folder / "b_bad.png") in sentence
    assert part in sentence


def test_a_folder_without_images(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    assert "holds no image" in refused(f"task.images={tmp_path / 'empty'}")


def test_results_that_cannot_be_written(bench, tmp_path):
    (tmp_path / "file").write_text("kept")
    outcome = bench(f"results={tmp_path / 'file' / 'below'}")
    assert outcome.code == 1
    assert f"results={tmp_path / 'file' / 'below'}" in outcome.sentence
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize(
    ("file", "text", "parts"),
    [
        ("sweep/bad.yaml", "blocks: [", ["bad.yaml", "cannot be read"]),
        ("sweep/bad.yaml", "blocks: {model: swinir}", ["options do not fit together", "sweep/bad"]),
        ("sweep/bad.yaml", "blocks: [{model: swinir, tasks: denoise}]", ["tasks", "did you mean task?"]),
        ("attention/exact.yaml", "a: [", ["exact.yaml", "cannot be read"]),
        ("attention/exact.yaml", "- a", ["exact.yaml", "mapping"]),
    ],
)
def test_an_option_file_of_the_users_that_is_wrong(refused, tmp_path, file, text, parts):
    (tmp_path / file).parent.mkdir()
    (tmp_path / file).write_text(text)
    sweep = "+sweep=bad" if file.startswith("sweep") else "+sweep=denoise"
    sentence = refused(f"plugins=[{tmp_path}]", sweep=sweep)
    for part in parts:
        assert part in sentence


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("_target_: nystra_bench.attention.exact.Exakt", "Exakt"),
        ("_target_: nowhere.Attention", "nowhere"),
        ("landmarks: 4", "_target_"),
        ("_target_: nystra_bench.attention.exact.ExactAttention\nlandmarks: 4", "landmarks"),
    ],
)
def test_an_attention_that_cannot_be_made(refused, tmp_path, tiny_weights, text, part):
    (tmp_path / "attention").mkdir()
    (tmp_path / "attention" / "mine.yaml").write_text(text)
    words = [f"plugins=[{tmp_path}]", f"model.weights={tiny_weights}", "task.crop=32", "task.limit=1"]
    assert part in refused(*words, "attention=mine", sweep="+sweep=denoise")


MINE = "from nystra_bench.metrics.base import Metric\nclass Mine(Metric):\n"


@pytest.mark.parametrize(
    ("code", "parts"),
    [
        ("def (:", ["_target_=mine.Mine", "SyntaxError", "line 1"]),
        ("raise RuntimeError('boom')", ["_target_=mine.Mine", "RuntimeError: boom"]),
        ("raise SystemExit(0)", ["_target_=mine.Mine", "SystemExit"]),
        ("import nowhere_at_all", ["_target_=mine.Mine", "nowhere_at_all"]),
        (f"{MINE}    def __init__(self): {{}}['x']", ["_target_=mine.Mine", "KeyError: 'x'", "mine.py, line 3"]),
        (f"{MINE}    def __init__(self): open('/nowhere')", ["_target_=mine.Mine", "FileNotFoundError"]),
        ("from os import system as Mine", ["_target_=mine.Mine", "nothing that an option may stand for"]),
    ],
)
@pytest.mark.parametrize(("choice", "word"), [("attention", "attention=mine"), ("metric", "metrics=mine")])
def test_a_plug_in_with_a_mistake_in_its_code(refused, tmp_path, monkeypatch, choice, word, code, parts):
    (tmp_path / choice).mkdir()
    (tmp_path / choice / "mine.yaml").write_text("_target_: mine.Mine\n")
    (tmp_path / "mine.py").write_text(code)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    sentence = refused(f"plugins=[{tmp_path}]", word, "measure=quality", sweep="+sweep=denoise")
    for part in parts:
        assert part in sentence


def test_a_mistake_in_what_a_plug_in_imports_later(refused, tmp_path, monkeypatch):
    (tmp_path / "attention").mkdir()
    (tmp_path / "attention" / "mine.yaml").write_text("_target_: lazy.Lazy\n")
    text = "from nystra_bench.attention.exact import ExactAttention\n\n\nclass Lazy(ExactAttention):\n"
    (tmp_path / "lazy.py").write_text(f"{text}    def forward(self, *of):\n        import later\n")
    (tmp_path / "later.py").write_text("x = = 1\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "lazy", raising=False)
    sentence = refused(f"plugins=[{tmp_path}]", "attention=mine", "measure=quality", sweep="+sweep=denoise")
    assert f"{tmp_path / 'later.py'} cannot be read as Python" in sentence and "line 1" in sentence


@pytest.mark.parametrize("name", ["results", "timing", "metrics", "hydra", "mode"])
def test_a_folder_of_plug_ins_may_hold_one_that_is_called_like_a_setting(bench, tmp_path, name):
    mine = tmp_path / "mine"
    (mine / name).mkdir(parents=True)
    (mine / name / "x.yaml").write_text("a: 1\n")
    outcome = bench(f"plugins=['{bench.plugins}',{mine}]", "mode=plan", "measure=quality", "metrics=[psnr]")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.splitlines()[-1].startswith("tiny: ")


# ------------------------------------------------------------------ the process itself


def test_a_mistake_as_a_user_sees_it(bench, tmp_path):
    """Through the shell and the inspection's own process: the same sentence, nothing besides."""
    command = [sys.executable, "-m", "nystra_bench", *bench.words("task.sigma=-1")]
    done = subprocess.run(command, cwd=tmp_path, env=child_environment(), capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        "nystra_bench: task.sigma=-1 is out of range: accepted are numbers above 0, up to 255"
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_goes_away_is_no_failure_of_the_harness(bench, tmp_path):
    """As in ``mode=plan | head -1``."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "nystra_bench", *bench.words("mode=plan")]
    done = subprocess.run(command, cwd=tmp_path, env=child_environment(), stdout=writing, stderr=-1, timeout=120)
    os.close(writing)
    assert done.stderr == b""


def test_usage(capsys):
    assert main(["--help"]) == 0
    assert "+sweep=NAME" in capsys.readouterr().out
    assert main([]) == 1
