"""A tiny sweep on a tiny model, with attentions that misbehave, run through the command line as a user would."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from nystra_bench.cli import main
from nystra_bench.instruments import sources
from nystra_bench.models.swinir import SwinIR, SwinIRSpec
from nystra_bench.sweep import inspection
from nystra_bench.sweep.executors.base import SessionJob
from nystra_bench.sweep.worker import Worker

QUICK = ["timing.rounds=3", "timing.min_rounds=1", "timing.budget_s=5", "timing.warmup_s=0", "timing.min_sample_ms=0"]

SWEEP = """\
blocks:
  - model: {{name: swinir, weights: {weights}}}
    task: {{name: denoise, images: {images}, crop: 24}}
    attention: [exact, {{name: nystra, landmarks: [4, 8]}}]
  - model: {{name: swinir, weights: {weights}}}
    task: {{name: denoise, images: {images}, crop: 24}}
    window_size: 16
    position_bias: drop
    attention: [exact]
"""

MISBEHAVING = '''\
"""Attentions that end badly until a file appears."""

import os
import time
from pathlib import Path

from nystra_bench.attention.base import Attention


class Misbehaving(Attention):
    def __init__(self, cured: str):
        super().__init__()
        self.cured = Path(cured)

    def forward(self, q, k, v, window):
        if not self.cured.exists():
            self.misbehave()
        return v

    def matrix(self, q, k, window):
        raise NotImplementedError

    def misbehave(self):
        raise NotImplementedError


class Raising(Misbehaving):
    def misbehave(self):
        raise ArithmeticError("no luck\\nwith details")


class Garbling(Misbehaving):
    def misbehave(self):
        raise OSError(os.fsdecode(b"no file caf\\xe4.png"))


class Killing(Misbehaving):
    def misbehave(self):
        os.system("echo noise on the standard output")
        os.kill(os.getpid(), 9)


class Sleeping(Misbehaving):
    def misbehave(self):
        time.sleep(600)


class Exhausting(Misbehaving):
    def misbehave(self):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: ...")


class Slow(Misbehaving):
    def misbehave(self):
        time.sleep(0.4)
'''


def write_images(folder: Path, count: int = 2) -> Path:
    """Smooth colour pictures of 40 x 48."""
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        small = np.random.default_rng(n).integers(0, 256, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(small).resize((48, 40), Image.Resampling.BICUBIC).save(folder / f"picture{n}.png")
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    model = SwinIR(SwinIRSpec(dim=8, depths=(2,), heads=(2,), window=8, mlp_ratio=1.0))
    file = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, file)
    return file


@pytest.fixture(scope="session")
def plugins(tmp_path_factory, tiny_weights, images) -> Path:
    """A folder of options: the sweep ``tiny`` and the misbehaving attentions, cured by the file ``cured``."""
    folder = tmp_path_factory.mktemp("plug ins")  # with a blank, as users have them
    for choice in ("sweep", "attention"):
        (folder / choice).mkdir()
    (folder / "sweep" / "tiny.yaml").write_text(SWEEP.format(weights=tiny_weights, images=images))
    (folder / "misbehaving_attentions.py").write_text(MISBEHAVING)
    for name in ("raising", "garbling", "killing", "sleeping", "exhausting", "slow"):
        target = f"_target_: misbehaving_attentions.{name.capitalize()}\n"
        (folder / "attention" / f"{name}.yaml").write_text(f"{target}cured: nowhere\n")
    return folder


@dataclass
class Outcome:
    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The one line on standard error that a mistake of the user's gives, without the program's name."""
        (line,) = self.err.splitlines()
        return line.removeprefix("nystra_bench: ")


class Bench:
    """The command with the tiny sweep and a results folder of its own."""

    def __init__(self, folder: Path, plugins: Path, capfd):
        self.results, self.plugins, self.capfd = folder / "results", plugins, capfd

    def words(self, *more: str, sweep: str = "+sweep=tiny") -> list[str]:
        return [sweep, f"plugins=['{self.plugins}']", f"results={self.results}", "device.threads=1", *QUICK, *more]

    def __call__(self, *more: str, **about) -> Outcome:
        self.capfd.readouterr()
        code = main(self.words(*more, **about))
        return Outcome(code, *self.capfd.readouterr())

    def table(self, name: str = "tiny") -> pd.DataFrame:
        return pd.read_csv(self.results / name / "table.csv")

    def stored(self, kind: str = "result") -> list[dict]:
        return [json.loads(file.read_text()) for file in sorted(self.results.glob(f"store/*/{kind}.json"))]


@pytest.fixture
def bench(tmp_path, plugins, capfd) -> Bench:
    return Bench(tmp_path, plugins, capfd)


@contextmanager
def modules_of(folders: list[str]) -> Iterator[None]:
    """Let the modules of plug-ins be imported in this process, and forget them: another test's have the same names."""
    path, before = [*sys.path], {*sys.modules}
    sys.path[:0] = folders
    try:
        yield
    finally:
        sys.path[:] = path
        for name in {*sys.modules} - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and any(Path(file).is_relative_to(folder) for folder in folders):
                del sys.modules[name]
                sources._file.cache_clear()  # where modules were found


@pytest.fixture
def looked_at_here(monkeypatch) -> None:
    """Inspect in this process, which has torch already; what goes in and out is plain data all the same."""

    def look(request: dict) -> dict:
        with modules_of(request["sys_path"]):
            return json.loads(json.dumps(inspection.answer(json.loads(json.dumps(request)))))

    monkeypatch.setattr(inspection, "look", look)


@pytest.fixture
def measured_here(monkeypatch) -> None:
    """Run sessions in this process, likewise. Not for tests of workers, of their ends, or of what depends on a process.

    These are in test_running, test_resume, test_plugins, test_first_calls and test_session.
    """

    def run(job: SessionJob, log_file: Path, on_event, apart: bool = False) -> None:
        threads = torch.get_num_threads()
        try:
            with modules_of(job.request["sys_path"]):
                Worker(json.loads(json.dumps(job.request)), lambda event: on_event(json.loads(json.dumps(event)))).run()
        finally:
            torch.set_num_threads(threads)

    monkeypatch.setattr(SessionJob, "run", run)


@pytest.fixture
def here(looked_at_here, measured_here) -> None:
    """Inspect and measure in this process."""
