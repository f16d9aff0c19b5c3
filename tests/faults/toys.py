"""What faults are injected into: a tiny sweep on a tiny model, with attentions that misbehave until they are cured."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from nystra_bench.models.swinir import SwinIR, SwinIRSpec

CURED = "FAULTS_CURED"
"""The environment variable that names a file: where it is there, all methods give the values as they are."""

SWEEP = """\
blocks:
  - model: {{name: swinir, weights: {folder}/tiny.safetensors}}
    task: {{name: denoise, images: {folder}/images, crop: 32}}
    attention: [exact, {attentions}, {{name: nystra, landmarks: 4}}]
    measure: quality
    device: cpu
settings: {{metrics: [psnr, deviation_psnr], figures: [], tables: [main]}}
"""

ATTENTIONS = f'''\
import ctypes
import os
import resource
import sys
import time

import torch

from nystra_bench.attention.base import Attention


class Toy(Attention):
    def __init__(self, of: int = 0):
        super().__init__()
        self.of = of

    def forward(self, q, k, v, window):
        return v if os.path.exists(os.environ.get({CURED!r}, "")) else self.misbehave(v)


class slow(Toy):
    def misbehave(self, v):
        time.sleep(0.15)
        return v


class limited:
    """A machine with little memory: so much more than is used now."""

    def __enter__(self):
        self.before = resource.getrlimit(resource.RLIMIT_AS)
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), self.before[1]))

    def __exit__(self, *of):
        resource.setrlimit(resource.RLIMIT_AS, self.before)
'''

EXECUTOR = '''\
import json

from nystra_bench.sweep.executors.base import Executor


class InProcess(Executor):
    """The worker's own code in this process, which has PyTorch already."""

    def run(self, jobs, folder, on_event):
        from nystra_bench.sweep.worker import Worker

        for job in jobs:
            Worker(json.loads(json.dumps(job.request)), on_event).run()
'''


@dataclass(frozen=True)
class Method:
    """A way in which a method misbehaves.

    Attributes:
        kind: what the table of faults calls it.
        code: what its ``forward`` does with the values ``v`` (B, H, N, d), one line of Python each.
        status, reason: of its row; the reason in part.
    """

    kind: str
    code: tuple[str, ...]
    status: str
    reason: str = ""

    @property
    def name(self) -> str:
        return self.kind.replace(" ", "_").replace("'", "")


METHODS = [
    Method("raises", ('raise ArithmeticError("no luck")',), "failed", "ArithmeticError: no luck"),
    Method("gives NaN", ("return v * float('nan')",), "nonfinite", "NaN or infinite numbers in 3 of 3"),
    Method("gives inf", ("return v + float('inf')",), "nonfinite", "NaN or infinite numbers in 3 of 3"),
    Method("gives a wrong shape", ("return v[..., :-1]",), "failed", "ValueError: gives_a_wrong_shape gives the shape"),
    Method("gives a wrong dtype", ("return v.double()",), "failed", "RuntimeError: "),
    Method("prints to standard output", ("print('noise')", "os.system('echo noise')", "return v"), "done"),
    Method("writes what looks like an event", ("""os.write(1, b'{"event": "done"}\\n')""", "return v"), "done"),
    Method(
        "allocates without end",
        ("with limited():", "    kept = []", "    while True: kept.append(torch.empty(16 << 20))"),
        "oom",
        "can't allocate memory",
    ),
    Method("segfaults", ("ctypes.string_at(0)",), "crashed", "the worker was ended by SIGSEGV"),
    Method("ends the process", ("os._exit(0)",), "crashed", "the worker ended without measuring the cell"),
    Method("exits with an error", ("sys.exit(3)",), "crashed", "the worker ended with exit code 3"),
    Method("sleeps for ever", ("time.sleep(600)",), "timeout", "no sign of life for 12 s (timeout_s)"),
]

PATIENCE_S = 12
"""``timeout_s`` of all runs: a worker has to import PyTorch within it, on a machine that has other work."""


class Toys:
    """A folder of plug-ins with the sweeps ``faulty`` and ``misbehaving``, and all that they need."""

    def __init__(self, folder: Path):
        self.folder = folder
        for choice in ("sweep", "attention", "executor", "images"):
            (folder / choice).mkdir(parents=True)
        self._write_pictures()
        self._write_model()
        code = [ATTENTIONS]
        for method in METHODS:
            lines = "\n".join(f"        {line}" for line in method.code)
            code.append(f"class {method.name}(Toy):\n    def misbehave(self, v):\n{lines}\n")
        (folder / "faulty_attentions.py").write_text("\n\n".join(code))
        for name in ("slow", *(method.name for method in METHODS)):
            (folder / "attention" / f"{name}.yaml").write_text(f"_target_: faulty_attentions.{name}\nof: 0\n")
        (folder / "in_process_executor.py").write_text(EXECUTOR)
        (folder / "executor" / "in_process.yaml").write_text("_target_: in_process_executor.InProcess\n")
        sweeps = {"faulty": "{name: slow, of: [1, 2, 3]}", "misbehaving": ", ".join(m.name for m in METHODS)}
        for name, attentions in sweeps.items():
            text = SWEEP.format(folder=folder, attentions=attentions)
            (folder / "sweep" / f"{name}.yaml").write_text(text)
        self.cured = folder / "cured"
        os.environ[CURED] = str(self.cured)

    def _write_pictures(self) -> None:
        for n in range(3):
            small = np.random.default_rng(n).integers(0, 256, (5, 6, 3), dtype=np.uint8)
            picture = Image.fromarray(small).resize((48, 40), Image.Resampling.BICUBIC)
            picture.save(self.folder / "images" / f"picture{n}.png")

    def _write_model(self) -> None:
        generator_state = torch.random.get_rng_state()
        torch.manual_seed(0)
        model = SwinIR(SwinIRSpec(dim=8, depths=(2,), heads=(2,), window=8, mlp_ratio=1.0))
        torch.random.set_rng_state(generator_state)
        state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        save_file(state, self.folder / "tiny.safetensors")
