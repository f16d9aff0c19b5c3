"""What attention alone costs, eager and fused, in one process: ``python benchmarks/attention.py`` prints a table.

The windows are those of a map of 128×128 tokens with 6 heads, the tokens those of ``instruments/workload.py``, with a
position bias. ``exact``, ``sdpa`` and ``nystra_plus`` use the bias, ``nystra`` as published does not. All are timed
interleaved, with the project's timer; ratios are medians over rounds of paired times, with their 95 % intervals.
``deviates`` is the relative RMS difference of a kernel's output from the eager form's.

Roofline: what must at least be moved is q, k, v and the output, once; what must at least be done are the products
(``Attention.flops``). Both are held against what copying 256 MB and a product of two 1024×1024 matrices reach in the
same run, on the same threads. ``reached`` is the larger of the two least times over the kernel's.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from nystra_bench.attention.base import Attention, Window
from nystra_bench.attention.exact import ExactAttention
from nystra_bench.attention.nystra import NystraAttention
from nystra_bench.attention.nystra_fused import FusedNystraAttention
from nystra_bench.attention.nystra_plus import NystraPlusAttention
from nystra_bench.attention.nystra_plus_fused import FusedNystraPlusAttention
from nystra_bench.attention.sdpa import FusedAttention
from nystra_bench.instruments.environment import KEEP_MEMORY
from nystra_bench.instruments.statistics import Estimate, median_interval, paired_ratio
from nystra_bench.instruments.timer import Clock, Entry, Timing, run_rounds, warm_up
from nystra_bench.instruments.workload import workload
from nystra_bench.models.windows import bias_from_table
from nystra_bench.sweep.locks import device_lock

HEADS, MAP_SIDE = 6, 128

OURS, PUBLISHED = "nystra_plus fused", "nystra fused"
EAGER = {OURS: "nystra_plus", PUBLISHED: "nystra"}
RATIOS = [(name, OURS) for name in ("sdpa", "exact", "nystra", "nystra compiled", "nystra_plus")]
RATIOS += [("nystra", PUBLISHED), ("nystra compiled", PUBLISHED)]


class Setting(NamedTuple):
    """Windows of side × side tokens, heads of ``dim`` channels."""

    side: int
    dim: int

    def __str__(self) -> str:
        return f"{(MAP_SIDE // self.side) ** 2} × N = {self.side**2}, d = {self.dim}"


SETTINGS = (Setting(16, 30), Setting(16, 10), Setting(32, 30), Setting(64, 30))


def methods(landmarks: int, iterations: int, rank: int) -> dict[str, Attention]:
    return {
        "exact": ExactAttention(),
        "sdpa": FusedAttention(),
        "nystra": NystraAttention(landmarks, 2),
        PUBLISHED: FusedNystraAttention(landmarks, 2, implementation="fused"),
        "nystra_plus": NystraPlusAttention(landmarks, iterations, rank),
        OURS: FusedNystraPlusAttention(landmarks, iterations, rank, implementation="fused"),
    }


def position_bias(side: int) -> Tensor:
    """A bias (H, N, N) as trained models have: smooth, falling with the distance at another rate in each head."""
    offset = torch.arange(1 - side, side) / side
    y, x = torch.meshgrid(offset, offset, indexing="ij")
    rate = torch.linspace(1, 6, HEADS)
    table = -rate * (y.square() + x.square()).sqrt()[..., None] + 0.5 * torch.sin(3 * y + 2 * x)[..., None]
    return bias_from_table(table.flatten(0, 1), side)


def entries_of(setting: Setting, chosen: argparse.Namespace) -> tuple[dict[str, Entry], dict[str, float], int]:
    """What is timed, how far the kernels' outputs deviate, and the operations of ours."""
    bias, tensors = position_bias(setting.side), workload(HEADS, setting.dim, setting.side, MAP_SIDE)
    calls: dict[str, Callable[[], Tensor]] = {}
    made = methods(chosen.landmarks, chosen.iterations, chosen.rank)
    for name, attention in made.items():
        window = Window(setting.side, setting.side, lambda: bias)
        calls[name] = lambda a=attention, w=window: a(*tensors, w)
    if chosen.compiled:
        calls["nystra compiled"] = torch.compile(calls["nystra"], dynamic=False)
    deviations = {name: deviation(calls[name](), calls[eager]()) for name, eager in EAGER.items()}
    q, v = tensors[0], tensors[2]
    flops = made[OURS].flops(len(q), HEADS, setting.side**2, setting.dim, v.shape[-1])
    return {name: Entry(lambda: None, call) for name, call in calls.items()}, deviations, flops


def deviation(actual: Tensor, expected: Tensor) -> float:
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


def machine() -> dict[str, Entry]:
    """What this machine reaches: a copy, and a product of matrices."""
    source, target = torch.zeros(2, 64 << 20).unbind()
    left, right, product = torch.rand(3, 1024, 1024).unbind()
    return {
        "copy": Entry(lambda: None, lambda: target.copy_(source)),
        "product": Entry(lambda: None, lambda: torch.mm(left, right, out=product)),
    }


def measure(setting: Setting, timing: Timing, chosen: argparse.Namespace) -> list[str]:
    """The rows of the table of times, of ratios and of the roofline."""
    clock = Clock("cpu")
    entries, deviations, flops = entries_of(setting, chosen)
    entries |= machine()
    for entry in entries.values():
        warm_up(entry, timing, clock)
    run_rounds(entries, timing, clock, (OURS, OURS), seed=0)
    times = {name: median_interval(entry.samples_ms) for name, entry in entries.items()}
    ratios = {
        f"{a} / {b}": paired_ratio(entries[a].samples_ms, entries[b].samples_ms) for a, b in RATIOS if a in entries
    }
    said = [f"### {setting}, m = {chosen.landmarks}, {torch.get_num_threads()} threads", ""]
    said += ["| " + " | ".join(["ms", *times]) + " |", "|" + "---|" * (1 + len(times))]
    said += [
        "| | " + " | ".join(f"{time.median:.1f} ({time.low:.1f}–{time.high:.1f})" for time in times.values()) + " |"
    ]
    said += ["", *(f"* {name}: {shown(ratio)}" for name, ratio in ratios.items())]
    said += [f"* {name} deviates from {EAGER[name]} by {error:.1e}" for name, error in deviations.items()]
    return [*said, roofline(setting, flops, times), ""]


def roofline(setting: Setting, flops: int, times: dict[str, Estimate]) -> str:
    moved = 4 * 4 * HEADS * MAP_SIDE**2 * setting.dim  # q, k, v and the output, float32
    bandwidth, speed = 2 * 4 * (64 << 20) / times["copy"].median, 2 * 1024**3 / times["product"].median  # a ms
    moving, computing = moved / bandwidth, flops / speed
    reached = max(moving, computing) / times[OURS].median
    return (
        f"* roofline: {moved / 1e6:.0f} MB at {bandwidth / 1e6:.1f} GB/s are {moving:.1f} ms, {flops / 1e9:.2f} GFLOP "
        f"at {speed / 1e6:.0f} GFLOP/s {computing:.1f} ms; reached {100 * reached:.0f} %"
    )


def shown(ratio: Estimate) -> str:
    return f"{ratio.median:.2f} ({ratio.low:.2f}–{ratio.high:.2f})"


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--budget", type=float, default=40.0, help="seconds a setting, after which no round starts")
    parser.add_argument("--landmarks", type=int, default=16)
    parser.add_argument("--iterations", type=int, default=6)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--sides", type=int, nargs="+", default=[16, 32, 64], help="of the windows, in tokens")
    parser.add_argument("--compiled", action="store_true", help="nystra by torch.compile, too")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    timing = Timing(rounds=chosen.rounds, budget_s=chosen.budget, again=False)
    for setting in SETTINGS:
        if setting.side in chosen.sides:
            print(*measure(setting, timing, chosen), sep="\n", flush=True)


if __name__ == "__main__":
    if not KEEP_MEMORY.keys() <= os.environ.keys():  # glibc reads them when the process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP_MEMORY})
    with device_lock("cpu", quiet=True):  # a sweep beside it would disturb both
        main()
