"""What the benchmarks share: methods, tables of times and ratios, what this machine reaches, a process of their own."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import torch

from nystra_bench.attention.base import Attention
from nystra_bench.attention.exact import ExactAttention
from nystra_bench.attention.nystra import NystraAttention
from nystra_bench.attention.nystra_fused import FusedNystraAttention
from nystra_bench.attention.nystra_plus import NystraPlusAttention
from nystra_bench.attention.nystra_plus_fused import FusedNystraPlusAttention
from nystra_bench.attention.nystra_plus_v5_fused import FusedNystraPlusV5Attention
from nystra_bench.attention.sdpa import FusedAttention
from nystra_bench.errors import UserError
from nystra_bench.instruments.environment import KEEP_MEMORY
from nystra_bench.instruments.statistics import Estimate, median_interval, paired_ratio
from nystra_bench.instruments.threads import thread_count
from nystra_bench.instruments.timer import Entry, Timing, expected_s
from nystra_bench.sweep.locks import device_lock

OURS, VERSION_5, PUBLISHED = "nystra_plus fused", "nystra_plus_v5 fused", "nystra fused"

COPIED, SIDE = 64 << 20, 1024
"""Floats that are copied, and the side of the matrices that are multiplied, to see what the machine reaches."""


def methods(landmarks: int, iterations: int, rank: int) -> dict[str, Attention]:
    """What is compared, by the names in the tables; ``nystra`` with two iterations, as published.

    Version 5 has its own numbers of landmarks, and is exact in small windows.
    """
    return {
        "exact": ExactAttention(),
        "sdpa": FusedAttention(),
        "nystra": NystraAttention(landmarks, 2),
        PUBLISHED: FusedNystraAttention(landmarks, 2, implementation="fused"),
        "nystra_plus": NystraPlusAttention(landmarks, iterations, rank),
        OURS: FusedNystraPlusAttention(landmarks, iterations, rank, implementation="fused"),
        VERSION_5: FusedNystraPlusV5Attention(bias_rank=rank, implementation="fused"),
    }


def options(description: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks take."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument("--threads", type=int, help="of PyTorch; default: those of a sweep")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--budget", type=float, default=40.0, help="seconds a setting, after which no round starts")
    parser.add_argument("--landmarks", type=int, default=16)
    parser.add_argument("--iterations", type=int, default=6)
    parser.add_argument("--rank", type=int, default=8)
    return parser


def timing_of(chosen: argparse.Namespace, min_rounds: int = Timing.min_rounds) -> Timing:
    """How to time, from the command line, which also says with how many threads."""
    torch.set_num_threads(thread_count(chosen.threads))
    return Timing(rounds=chosen.rounds, min_rounds=min(min_rounds, chosen.rounds), budget_s=chosen.budget, again=False)


def announce(settings: int, timing: Timing, about: str) -> None:
    """Say how long a run may take, before it begins."""
    fewest = f"or {timing.min_rounds} rounds, where those take longer"
    limit = f"each timed for at most {timing.budget_s:g} s, {fewest}, after a warm-up"
    print(f"{settings} settings, {limit}; {about}\n", flush=True)


def expect(called: object, entries: Collection[Entry], timing: Timing) -> None:
    """Say when a setting will be done, at the pace of its warm-up; not among the results."""
    print(f"{called}: about {expected_s(entries, timing):.0f} s", file=sys.stderr, flush=True)


def alone(main: Callable[[], None]) -> None:
    """Run a benchmark in a process that keeps its memory, as a sweep's worker does, while nothing else is timed."""
    if not KEEP_MEMORY.keys() <= os.environ.keys():  # glibc reads them when the process starts
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **KEEP_MEMORY})
    try:
        with device_lock("cpu", quiet=True):  # a sweep beside it would disturb both
            main()
    except UserError as error:
        sys.exit(str(error))


# --------------------------------------------------------------------------- tables


def shown(estimate: Estimate, digits: int = 2) -> str:
    """A median with its interval."""
    return f"{estimate.median:.{digits}f} ({estimate.low:.{digits}f}–{estimate.high:.{digits}f})"


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """The lines of a table in Markdown."""
    head, *lines = (f"| {' | '.join(cells)} |" for cells in [list(header), *map(list, rows)])
    return [head, "|" + "---|" * (head.count("|") - 1), *lines]


def times_of(entries: Mapping[str, Entry]) -> dict[str, Estimate]:
    """Median times in ms, each with its interval."""
    return {name: median_interval(entry.samples_ms) for name, entry in entries.items()}


def ratio(entries: Mapping[str, Entry], numerator: str, denominator: str) -> Estimate | None:
    """The median over rounds of the paired ratio of two times; None where one of them was not measured."""
    if not {numerator, denominator} <= entries.keys():
        return None
    return paired_ratio(entries[numerator].samples_ms, entries[denominator].samples_ms)


# --------------------------------------------------------------------------- roofline


def machine() -> dict[str, Entry]:
    """What this machine reaches, to be timed with the rest: a copy, and a product of matrices."""
    source, target = torch.zeros(2, COPIED).unbind()
    left, right, product = torch.rand(3, SIDE, SIDE).unbind()
    return {
        "copy": Entry(lambda: None, lambda: target.copy_(source)),
        "product": Entry(lambda: None, lambda: torch.mm(left, right, out=product)),
    }


@dataclass(frozen=True)
class Roofline:
    """What this machine reaches.

    Attributes:
        bandwidth: bytes moved a ms, both ways, by a copy of ``COPIED`` floats.
        speed: operations a ms in a product of two matrices.
    """

    bandwidth: float
    speed: float

    @classmethod
    def of(cls, times: Mapping[str, Estimate]) -> Roofline:
        """From the median times of ``machine``."""
        return cls(2 * 4 * COPIED / times["copy"].median, 2 * SIDE**3 / times["product"].median)

    def line(self, name: str, moved: int, operations: int, ms: float) -> str:
        """What must be moved (bytes) and done at least, and how much of that an entry of so many ms reaches."""
        moving, computing = moved / self.bandwidth, operations / self.speed
        reached = max(moving, computing) / ms
        return (
            f"* roofline of {name}: {moved / 1e6:.0f} MB at {self.bandwidth / 1e6:.1f} GB/s are {moving:.2f} ms, "
            f"{operations / 1e9:.2f} GFLOP at {self.speed / 1e6:.0f} GFLOP/s {computing:.2f} ms; it takes {ms:.2f} ms: "
            f"{100 * reached:.0f} % of what the machine reaches"
        )
