"""Interleaved timing: in each round every entry once, in random order, so that drift touches all alike."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

import torch

from nystra_bench.instruments.statistics import LEVEL, Ratio, median_interval, paired_ratio

LONG_MS = 5e3
"""A first call that takes longer is warm-up enough: what starting up costs is lost in it, and a second one is dear."""

UNCERTAIN = 0.10
"""Half the width of an interval over its median, above which a timing is called unstable."""


@dataclass(frozen=True)
class Timing:
    """How to time.

    Args:
        rounds: how often everything is measured.
        min_rounds: what is measured even when ``budget_s`` is spent. Nine are the fewest whose interval leaves out the
            largest and the smallest sample: with six to eight it is the range, which one disturbed round makes wide.
        budget_s: seconds of rounds after which no further round starts.
        warmup_s: seconds for which each entry runs before any is timed, and at least once after its first call, where
            that is not a long one (``LONG_MS``).
        min_sample_ms: a sample repeats a shorter call until it lasts that long, and holds the mean of the calls.
        again: whether as many rounds again are made where a timing is unstable.
        count_first: whether a long first call (``LONG_MS``), less what is made once in it, is the sample of the first
            round: for calls of a minute, of which starting up is less than a hundredth and each one counts. The first
            entry is called again: see ``forward.add_twin``.
    """

    rounds: int = 20
    min_rounds: int = 9
    budget_s: float = 40.0
    warmup_s: float = 0.5
    min_sample_ms: float = 100.0
    again: bool = True
    count_first: bool = False


@dataclass
class Entry:
    """Something to be timed: ``prepare`` is not timed, ``call`` is."""

    prepare: Callable[[], None]
    call: Callable[[], object]
    first_ms: float = 0.0
    setup_ms: float = 0.0
    """Within ``first_ms``: what is made once and kept."""
    compile_ms: float = 0.0
    """Before the first call: tracing and compiling, where the model is compiled."""
    call_ms: float = 0.0
    """Of the last call of the warm-up."""
    first_counts: bool = False
    """Whether the first call is the sample of the first round."""
    repeats: int = 1
    samples_ms: list[float] = field(default_factory=list)

    @property
    def long(self) -> bool:
        """Whether one call is long enough to be all the warm-up that there is."""
        return self.first_ms > LONG_MS


class Clock:
    """Milliseconds of a call, on the device's own clock: CUDA events on a GPU, the process's clock on a CPU."""

    def __init__(self, device: str):
        self.cuda = device == "cuda"

    def __call__(self, call: Callable[[], object], repeats: int = 1) -> float:
        """Mean time of one call in ms."""
        return (self._cuda if self.cuda else self._cpu)(call, repeats) / repeats

    @staticmethod
    def _cpu(call: Callable[[], object], repeats: int) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - start) * 1e3

    @staticmethod
    def _cuda(call: Callable[[], object], repeats: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end)


def warm_up(entry: Entry, timing: Timing, clock: Clock) -> None:
    """The first call, recorded apart, and then calls for ``warmup_s``; sets how often a sample repeats the call."""
    entry.prepare()
    entry.call_ms = entry.first_ms = clock(entry.call)
    if not entry.long:
        entry.call_ms, start = clock(entry.call), time.perf_counter()
        while time.perf_counter() - start < timing.warmup_s:
            entry.call_ms = clock(entry.call)
    entry.first_counts = entry.long and timing.count_first
    entry.repeats = max(1, round(timing.min_sample_ms / max(entry.call_ms, 1e-3)))


def expected_s(entries: Collection[Entry], timing: Timing) -> float:
    """Seconds after which ``run_rounds`` is done, at the pace of the warm-up."""
    a_round = sum(entry.call_ms * entry.repeats for entry in entries) / 1e3
    planned = min(timing.rounds * a_round, max(timing.min_rounds * a_round, timing.budget_s + a_round))
    counted = sum(entry.first_ms for entry in entries if entry.first_counts) / 1e3
    return planned * (2 if timing.again else 1) - counted


def run_rounds(
    entries: dict[str, Entry],
    timing: Timing,
    clock: Clock,
    pair: tuple[str, str],
    seed: int,
    references: Iterable[str] = (),
) -> Ratio:
    """Fill the samples of all entries; returns the A/A interval of ``pair``, two entries of the same thing.

    When a timing is unstable after the planned rounds, as many again are made (``timing.again``): an interval of 95 %
    misses by chance, too, and more samples tell chance from a disturbed machine. It is looked at only then: to stop at
    the first round that pleases would make the noise floor look better than it is.

    Args:
        references: names of entries; the ratio of each to every entry is to be known well, see ``instability``.
    """
    rng = random.Random(seed)
    _rounds(entries, timing, clock, rng)
    noise, compared = _self_ratio(entries, pair), list(references)
    if timing.again and any(instability(name, entries, noise, compared) for name in entries):
        _rounds(entries, timing, clock, rng)
    return _self_ratio(entries, pair)


def _rounds(entries: dict[str, Entry], timing: Timing, clock: Clock, rng: random.Random) -> None:
    """The planned rounds, fewer where the budget is spent."""
    order, start = list(entries), time.perf_counter()
    for done in range(timing.rounds):
        spent = time.perf_counter() - start
        if done >= timing.min_rounds and spent > timing.budget_s:
            break
        rng.shuffle(order)
        _round([entries[name] for name in order], clock)


def _round(entries: list[Entry], clock: Clock) -> None:
    gc.collect()
    gc.disable()
    try:
        for entry in entries:
            if entry.first_counts and not entry.samples_ms:
                entry.samples_ms.append(entry.first_ms - entry.setup_ms)
                continue
            entry.prepare()
            entry.samples_ms.append(clock(entry.call, entry.repeats))
    finally:
        gc.enable()


def _self_ratio(entries: dict[str, Entry], pair: tuple[str, str]) -> Ratio:
    first, second = (entries[name].samples_ms for name in pair)
    return paired_ratio(first, second)


def instability(name: str, entries: dict[str, Entry], noise: Ratio, references: Iterable[str] = ()) -> str | None:
    """Why the timing of an entry is not to be trusted, as one clause; None where it is.

    What counts is how well the numbers that are shown are known, the median and the ratios; the spread of single
    samples is shown beside the median, and more rounds make up for it.

    Args:
        name: of the entry.
        noise: the A/A interval of the session.
        references: names of the entries against which a ratio is shown; those that did not run are passed over.
    """
    # The range of few rounds excludes 1 too often by chance (of three, one time in four) to tell anything by that.
    if noise.level >= LEVEL and not noise.contains(1.0):
        return f"exact against itself came out at {_interval(noise)}, which excludes 1"
    if noise.uncertainty > UNCERTAIN or not 1 - UNCERTAIN <= noise.median <= 1 + UNCERTAIN:
        return f"exact against itself is only known to be within {_interval(noise)}"
    samples = entries[name].samples_ms
    shown = {"the median": median_interval(samples)}
    for reference in references:
        if reference in entries:
            shown[f"the ratio to {reference}"] = paired_ratio(entries[reference].samples_ms, samples)
    what, known = max(shown.items(), key=lambda item: item[1].uncertainty)
    if known.uncertainty > UNCERTAIN:
        return f"{what} is only known to within ±{100 * known.uncertainty:.0f} %"
    return None


def _interval(estimate: Ratio) -> str:
    return f"{estimate.low:.3f} to {estimate.high:.3f} ({100 * estimate.level:.1f} % interval)"
