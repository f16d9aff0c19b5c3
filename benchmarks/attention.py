"""What attention alone costs, eager, compiled and fused, in one process: ``python -m benchmarks.attention``.

The windows are those of a map of 128×128 tokens with 6 heads, the tokens those of ``instruments/workload.py``, with a
position bias. ``exact``, ``sdpa`` and ``nystra_plus`` use the bias, ``nystra`` as published does not; ``nystra
compiled`` is its eager form by ``torch.compile``. All are timed interleaved, with the project's timer; ratios are
medians over rounds of paired times, with their 95 % intervals. ``A/A`` is a kernel against itself: differences of
that size are noise. ``deviates`` is the relative RMS difference of an output from the eager form's.

Roofline: what must at least be moved is q, k, v and the output, once; what must at least be done are the products
(``Attention.flops``). Both are held against what copying 256 MB and a product of two 1024×1024 matrices reach in the
same run, on the same threads. What is reached is the larger of the two least times over the kernel's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.common import (
    OURS,
    PUBLISHED,
    VERSION_5,
    Roofline,
    alone,
    announce,
    expect,
    machine,
    methods,
    options,
    ratio,
    shown,
    table,
    times_of,
    timing_of,
)
from nystra_bench.attention.base import Window
from nystra_bench.errors import UserError
from nystra_bench.instruments.compiled import compiled
from nystra_bench.instruments.forward import add_twin
from nystra_bench.instruments.timer import Clock, Entry, Timing, run_rounds, warm_up
from nystra_bench.instruments.workload import workload
from nystra_bench.models.windows import bias_from_table

HEADS, MAP_SIDE = 6, 128

USUAL = "all four take about 8 minutes on 2 cores with AVX2, compiling included"

COMPILED = "nystra compiled"
EAGER = {OURS: "nystra_plus", PUBLISHED: "nystra", COMPILED: "nystra"}
RATIOS = [(name, OURS) for name in ("sdpa", "exact", "nystra", COMPILED, "nystra_plus")]
RATIOS += [("nystra", PUBLISHED), (COMPILED, PUBLISHED), ("nystra", COMPILED)]
RATIOS += [("sdpa", VERSION_5)]


class Setting(NamedTuple):
    """Windows of side × side tokens, heads of ``dim`` channels."""

    side: int
    dim: int

    def __str__(self) -> str:
        return f"{(MAP_SIDE // self.side) ** 2} × N = {self.side**2}, d = {self.dim}"


SETTINGS = (Setting(16, 30), Setting(16, 10), Setting(32, 30), Setting(64, 30))


@dataclass
class Contest:
    """What is timed together.

    Attributes:
        flops: floating point operations of the kernels' products.
        said: lines about what was made before anything is timed.
    """

    calls: dict[str, Callable[[], Tensor]] = field(default_factory=dict)
    flops: dict[str, int] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)


def position_bias(side: int) -> Tensor:
    """A bias (H, N, N) as trained models have: smooth, falling with the distance at another rate in each head."""
    offset = torch.arange(1 - side, side) / side
    y, x = torch.meshgrid(offset, offset, indexing="ij")
    rate = torch.linspace(1, 6, HEADS)
    values = -rate * (y.square() + x.square()).sqrt()[..., None] + 0.5 * torch.sin(3 * y + 2 * x)[..., None]
    return bias_from_table(values.flatten(0, 1), side)


def contest(setting: Setting, chosen: argparse.Namespace) -> Contest:
    """The calls of a setting, and how far those that are not eager deviate."""
    bias, tensors = position_bias(setting.side), workload(HEADS, setting.dim, setting.side, MAP_SIDE)
    found, made = Contest(), methods(chosen.landmarks, chosen.iterations, chosen.rank)
    for name, attention in made.items():
        window = Window(setting.side, setting.side, lambda: bias)
        found.calls[name] = lambda a=attention, w=window: a(*tensors, w)
    if chosen.compiled:
        _add_compiled(found, made["nystra"], tensors, setting)
    for name in (OURS, VERSION_5, PUBLISHED):
        found.flops[name] = made[name].flops(len(tensors[0]), HEADS, setting.side**2, setting.dim, setting.dim)
    for name, eager in EAGER.items():
        if name in found.calls:
            error = deviation(found.calls[name](), found.calls[eager]())
            found.said.append(f"* {name} deviates from {eager} by {error:.1e}")
    return found


def _add_compiled(found: Contest, attention: Callable, tensors: tuple[Tensor, ...], setting: Setting) -> None:
    window = Window(setting.side, setting.side)
    try:
        form = compiled(lambda q, k, v: attention(q, k, v, window), *tensors, called="nystra")
    except UserError as error:
        found.said.append(f"* {COMPILED} is left out: {error}")
        return
    found.calls[COMPILED] = lambda: form.call(*tensors)
    found.said.append(f"* {COMPILED} took {form.seconds:.1f} s to compile")


def deviation(actual: Tensor, expected: Tensor) -> float:
    """Relative RMS difference."""
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


def measure(setting: Setting, timing: Timing, chosen: argparse.Namespace) -> list[str]:
    """The lines of the table of times, of ratios and of the roofline."""
    clock, found = Clock("cpu"), contest(setting, chosen)
    entries = {name: Entry(lambda: None, call) for name, call in found.calls.items()} | machine()
    for entry in entries.values():
        warm_up(entry, timing, clock)
    pair = add_twin(entries, [OURS])
    expect(setting, entries.values(), timing)
    noise = run_rounds(entries, timing, clock, pair, seed=0)
    times = times_of({name: entry for name, entry in entries.items() if name != pair[1]})
    said = [f"### {setting}, m = {chosen.landmarks}, {torch.get_num_threads()} threads", ""]
    said += table(["ms", *times], [["", *(shown(time, 1) for time in times.values())]])
    ratios = {f"{a} / {b}": ratio(entries, a, b) for a, b in RATIOS}
    said += ["", *(f"* {name}: {shown(known)}" for name, known in ratios.items() if known is not None)]
    said += [f"* A/A ({OURS}): {shown(noise)}", *found.said]
    moved = 4 * 4 * HEADS * MAP_SIDE**2 * setting.dim  # q, k, v and the output, float32
    roof = Roofline.of(times)
    said += [roof.line(name, moved, flops, times[name].median) for name, flops in found.flops.items()]
    return [*said, ""]


@torch.inference_mode()
def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--sides", type=int, nargs="+", default=[16, 32, 64], help="of the windows, in tokens")
    parser.add_argument(
        "--compiled", action=argparse.BooleanOptionalAction, default=True, help="nystra by torch.compile, too"
    )
    chosen = parser.parse_args()
    timing, settings = timing_of(chosen), [setting for setting in SETTINGS if setting.side in chosen.sides]
    announce(len(settings), timing, USUAL)
    for setting in settings:
        print(*measure(setting, timing, chosen), sep="\n", flush=True)


if __name__ == "__main__":
    alone(main)
