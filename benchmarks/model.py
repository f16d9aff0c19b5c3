"""What whole models cost under each attention, in one process: ``python -m benchmarks.model`` prints a table a model.

Models in the windows that they were trained with, and one enlarged (its bias table stretched), on the middle of a
photograph. All attentions of a model are timed interleaved, with the project's timer, by swapping them in place; ratios
are medians over rounds of paired times, with their 95 % intervals. A kernel's library is built, and what attentions
keep is made, before anything is timed.

``attention`` is the share of the time that attention takes: one less the time of the same model without any
(``identity``, values passed through) over its own. ``over identity`` is how many times as long a pass takes as without
attention. ``dB`` is the closeness to the output of exact attention, peak 1. ``A/A`` is an entry against itself: such
differences are noise. Released models that were not fetched (``NYSTRA_BENCH_CACHE`` says where they are) are left out,
with the command.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import (
    OURS,
    PUBLISHED,
    alone,
    announce,
    expect,
    methods,
    options,
    ratio,
    shown,
    table,
    times_of,
    timing_of,
)
from nystra_bench.attention.base import Attention
from nystra_bench.attention.identity import IdentityAttention
from nystra_bench.errors import Absent, UserError
from nystra_bench.instruments.forward import ForwardPass, ForwardTimer, add_twin
from nystra_bench.instruments.statistics import Estimate
from nystra_bench.instruments.timer import Clock, Entry, Timing
from nystra_bench.models import load_model
from nystra_bench.models.images import as_input
from nystra_bench.models.windows import WindowedModel
from nystra_bench.tasks.denoise import GaussianDenoise

USUAL = "all five take about 12 minutes on 2 cores with AVX2"
FLOOR = "identity"
FEWEST = 5
"""Rounds that are made even where the budget is spent: a pass of the largest model takes half a minute."""


@dataclass(frozen=True)
class Case:
    """A model on a square image.

    Attributes:
        side: of the input in pixels.
        window: that the model is enlarged to, in tokens; None as released.
    """

    model: str
    side: int
    window: int | None = None

    def __str__(self) -> str:
        window = "native windows" if self.window is None else f"windows enlarged to {self.window}"
        return f"{self.model}, {window}, {self.side}² pixels"

    def load(self) -> WindowedModel:
        return load_model(self.model, window_size=self.window, position_bias="interpolate" if self.window else "native")

    def input(self, model: WindowedModel) -> Tensor:
        """The middle of a photograph (1, 3, side, side), noisy where the model does not enlarge."""
        sample = next(iter(GaussianDenoise(sigma=25.0, limit=1, crop=self.side).samples()))
        return as_input(sample.degraded if model.scale == 1 else sample.clean, "cpu", torch.float32)


CASES = (
    Case("swinir_denoise_w16", 192),
    Case("swinir_denoise_w8", 192, window=32),
    Case("uformer_denoise", 256),
    Case("dat_light_x2", 128),
    Case("fiwhn_x4", 256),
)


@dataclass
class Contest:
    """A model's entries, warm, and why the others are left out."""

    timer: ForwardTimer
    entries: dict[str, Entry]
    left_out: dict[str, str]


def contest(case: Case, model: WindowedModel, timing: Timing, attentions: dict[str, Attention]) -> Contest:
    """Warm up all attentions in a model; one that cannot run there does not keep the others from it."""
    image = case.input(model)
    timer = ForwardTimer(model, torch.inference_mode()(lambda m: m(image)), timing, Clock("cpu"))
    found = Contest(timer, {}, {})
    for name, entry in timer.entries({}, attentions).items():
        try:
            entry.prepare()
            timer.warm_up(name, entry)
        except (UserError, MemoryError, ValueError) as error:
            found.left_out[name] = str(error).splitlines()[0]
        else:
            found.entries[name] = entry
    return found


def deviations(entries: dict[str, Entry]) -> dict[str, float]:
    """How close the last outputs are to that of exact attention, in dB; empty where there is none."""
    outputs = {name: e.call.output for name, e in entries.items() if isinstance(e.call, ForwardPass)}
    reference = outputs.get("exact", outputs.get("sdpa"))
    if reference is None:
        return {}
    return {name: decibels(output, reference) for name, output in outputs.items() if output is not None}


def decibels(actual: Tensor, expected: Tensor) -> float:
    """PSNR of two images of peak 1; infinite where they are equal."""
    error = (actual.double() - expected.double()).square().mean().item()
    return float(-10 * np.log10(error)) if error else float("inf")


def measure(case: Case, timing: Timing, attentions: Callable[[], dict[str, Attention]]) -> list[str]:
    """The lines of a model's table."""
    said = [f"### {case}, {torch.get_num_threads()} threads", ""]
    try:
        model = case.load()
    except Absent as absent:
        return [*said, f"* left out: {absent}", ""]
    found = contest(case, model, timing, attentions() | {FLOOR: IdentityAttention()})
    close, entries = deviations(found.entries), dict(found.entries)
    pair = add_twin(entries, [OURS, FLOOR])
    expect(case, entries.values(), timing)
    broken, noise = found.timer.run(entries, pair, seed=0, compared=())
    times = times_of(found.entries)
    rows = [_row(name, time, entries, close.get(name)) for name, time in times.items()]
    said += table(["", "ms", "attention", "over identity", "sdpa / it", "exact / it", f"it / {OURS}", "dB"], rows)
    said += ["", f"* A/A ({pair[0]}): {shown(noise)}; {len(entries[pair[0]].samples_ms)} rounds"]
    said += [f"* {name}: {reason}" for name, reason in broken.items()]
    return [*said, *(f"* {name} is left out: {reason}" for name, reason in found.left_out.items()), ""]


def _row(name: str, time: Estimate, entries: dict[str, Entry], close: float | None) -> list[str]:
    """A method's times, shares and ratios, each with its interval."""
    floor = ratio(entries, FLOOR, name)
    pairs = [(name, FLOOR), ("sdpa", name), ("exact", name), (name, OURS)]
    ratios = [None if a == b else ratio(entries, a, b) for a, b in pairs]
    return [
        name,
        shown(time, 1),
        "–" if floor is None or name == FLOOR else share(floor),
        *("–" if known is None else shown(known) for known in ratios),
        "–" if close is None else f"{close:.1f}",
    ]


def share(floor: Estimate) -> str:
    """The share of attention, from the time without it over the time with it."""
    middle, low, high = (100 * (1 - of) for of in (floor.median, floor.high, floor.low))
    return f"{middle:.0f} % ({low:.0f}–{high:.0f})"


def main() -> None:
    parser = options(__doc__)
    names = [case.model for case in CASES]
    parser.add_argument("--models", nargs="+", default=names, choices=names, metavar="MODEL", help=", ".join(names))
    parser.add_argument("--side", type=int, help="of all images in pixels; default: each model's own")
    chosen = parser.parse_args()
    timing = timing_of(chosen, FEWEST)

    def attentions() -> dict[str, Attention]:
        made = methods(chosen.landmarks, chosen.iterations, chosen.rank)
        return {name: attention for name, attention in made.items() if name != PUBLISHED}

    cases = [Case(c.model, chosen.side or c.side, c.window) for c in CASES if c.model in chosen.models]
    announce(len(cases), timing, USUAL)
    for case in cases:
        print(*measure(case, timing, attentions), sep="\n", flush=True)


if __name__ == "__main__":
    alone(main)
