"""Time and memory of attentions alone against the number of tokens: no model, no weights, no images."""

from __future__ import annotations

import gc
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from nystra_bench.attention.base import Attention, Window
from nystra_bench.attention.cache import Cache
from nystra_bench.instruments import memory
from nystra_bench.instruments.geometry import MAP, Shape, sides_of
from nystra_bench.instruments.statistics import Ratio, median_interval
from nystra_bench.instruments.timer import UNCERTAIN, Clock, Entry, Timing, run_rounds
from nystra_bench.instruments.workload import LOGIT_STD, workload

TIMING = Timing(rounds=9, min_rounds=3, budget_s=1.0, warmup_s=0.0, min_sample_ms=10.0)
"""How each size is timed by default; a curve has many sizes, so that each needs less than a single number does."""

CALL_S = 1.5
"""Seconds that a call may take by default; a method that would take longer ends its curve."""

PILOT_SIDE, PILOT_MAP = 32, 64
"""Side of the window, and in image mode of the map, on which each attention is tried before the first size."""


def time_attention(
    attentions: Mapping[str, Attention],
    sizes: Iterable[int] | int | None = (64, 256, 1024, 4096),
    heads: int = 6,
    dim: int = 30,
    mode: str = "window",
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    timing: Timing | None = None,
    budget_s: float = CALL_S,
    seed: int = 0,
    logit_std: float = LOGIT_STD,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict]:
    """Time and peak memory of attentions on windows of rising size, interleaved at each size, on the same inputs.

    The windows have neither position bias nor shift mask: a bias has H * N^2 numbers, more than fits any memory at the
    larger sizes, and methods differ in whether they read it. What a method makes once and keeps is made before timing.

    Before a size is measured, its time and memory are predicted from the last one, in proportion to the operations that
    the method declares (``Attention.flops``; to N^2 where it declares none). A method that would take longer than
    ``budget_s`` a call, or more memory than is free, ends its curve there, with the reason; it is not called. Before
    the first size each method is tried on a small window.

    Args:
        attentions: by the names that they have in the result.
        sizes: tokens of a window, N; squares. None takes those of ``geometry.SERIES``.
        heads, dim: H heads of d channels for queries, keys and values.
        mode: ``window``, one window of N tokens; ``image``, a map of 256 x 256 tokens cut into windows of N.
        device: ``cpu`` or ``cuda``.
        timing: how each size is timed; default ``TIMING``.
        budget_s: seconds that one call may take.
        seed: of inputs and of the order within a round.
        logit_std: standard deviation of the logits (see ``workload``).
        progress: is told before each size how many are done, and of how many.

    Returns:
        A record for each attention and size at which something is to be said: ``attention``, ``tokens`` (N), ``side``,
        ``windows``, ``samples_ms`` (empty where it did not run), ``median_ms``, ``first_ms``, ``setup_ms``,
        ``repeats``, ``peak_mb`` (10^6 bytes above the inputs), ``noise`` (the
        interval, [low, high], of one of the attentions against itself at this size), ``finite``, ``unstable`` (why the
        timing is not to be trusted), ``kind`` and ``reason``: both None, or why it did not run: ``refused`` (this size
        alone), ``time``, ``memory`` or ``failed`` (the end of its curve).

    Raises:
        UserError: no window of the mode holds a number of tokens.
    """
    shape = Shape(heads, dim)
    session = _Session(shape, mode, device, dtype, timing or TIMING, budget_s, seed, logit_std)
    curves = [_Curve(name, attention.at_layer(name).to(device).eval()) for name, attention in attentions.items()]
    sides = sides_of(sizes, mode)
    gc.freeze()  # garbage is collected before each round and peak: what is there now need not be looked through
    try:
        for done, side in enumerate(sides):
            if progress:
                progress(done, len(sides))
            if not done:
                session.try_on_small(curves, side)
            session.measure(curves, side)
    finally:
        gc.unfreeze()
    return [record for curve in curves for record in curve.records]


@dataclass(frozen=True)
class _Size:
    """Windows of one size: ``windows`` of ``side`` x ``side`` tokens."""

    side: int
    windows: int

    @classmethod
    def of(cls, side: int, map_side: int) -> _Size:
        return cls(side, (map_side // side) ** 2)

    @property
    def tokens(self) -> int:
        return self.side**2


@dataclass(frozen=True)
class _Cost:
    """What a call was seen to take, at a size."""

    size: _Size
    ms: float
    peak_mb: float


@dataclass
class _Curve:
    """One attention's way through the sizes."""

    name: str
    attention: Attention
    records: list[dict] = field(default_factory=list)
    seen: _Cost | None = None
    ended: bool = False

    def growth(self, size: _Size, shape: Shape) -> float:
        """How many times the work of the last size a size is: of its operations, and at least of its tokens."""
        assert self.seen is not None, "asked for after a first call"
        before = self.seen.size
        tokens = size.windows * size.tokens / (before.windows * before.tokens)
        now, then = (self._operations(s, shape) for s in (size, before))
        return max(tokens, now / then if then else 0.0)

    def _operations(self, size: _Size, shape: Shape) -> float:
        try:
            return self.attention.flops(size.windows, shape.heads, size.tokens, shape.dim, shape.dim)
        except NotImplementedError:
            return size.windows * size.tokens**2

    def leave_out(self, size: _Size, kind: str, reason: str) -> None:
        self.ended = kind != "refused"
        record = {"attention": self.name, "tokens": size.tokens, "side": size.side, "windows": size.windows}
        self.records.append(record | {"samples_ms": [], "median_ms": None, "kind": kind, "reason": reason})


class _Call:
    """A call of an attention on given tensors, as an entry of the timer; keeps what the attention keeps in a layer."""

    def __init__(self, attention: Attention, tensors: tuple[Tensor, Tensor, Tensor], side: int):
        self.attention, self.tensors = attention, tensors
        self.caches = Cache(), Cache()
        self.window = Window(side, side, cache=self.caches[0], shared=self.caches[1])

    @torch.inference_mode()
    def __call__(self) -> Tensor:
        return self.attention(*self.tensors, self.window)

    @property
    def setup_ms(self) -> float | None:
        return 1e3 * sum(cache.setup_s for cache in self.caches) or None


class _Session:
    """What all sizes share."""

    def __init__(self, shape, mode, device, dtype, timing, budget_s, seed, logit_std):
        self.shape, self.mode, self.device, self.dtype = shape, mode, device, dtype
        self.timing, self.budget_s, self.seed, self.logit_std = timing, budget_s, seed, logit_std
        self.clock = Clock(device)

    def try_on_small(self, curves: list[_Curve], side: int) -> None:
        """Let each attention see a small window, so that there is something to predict the first size from."""
        for curve in curves:
            small = min(side, PILOT_SIDE)
            while small < side and curve.attention.refuses(small, small):
                small = min(2 * small, side)
            if curve.attention.refuses(small, small):
                continue
            size = _Size.of(small, small if self.mode == "window" else max(small, PILOT_MAP))
            try:
                curve.seen = self._probe(_Call(curve.attention, self._tensors(size), small), size)[0]
            except Exception as error:  # whatever a method raises; it is told at the first size
                self._failed(curve, _Size.of(side, self._map(side)), error)

    def measure(self, curves: list[_Curve], side: int) -> None:
        """Time the attentions that can serve this size, and say why the others cannot."""
        size, entries, about = _Size.of(side, self._map(side)), {}, {}
        running = [curve for curve in curves if not curve.ended and not self._left_out(curve, size)]
        tensors = self._tensors(size) if running else None
        for curve in running:
            assert tensors is not None
            call = _Call(curve.attention, tensors, side)
            try:
                curve.seen, about[curve.name] = self._probe(call, size)
            except Exception as error:
                self._failed(curve, size, error)
                continue
            ms = curve.seen.ms
            repeats = max(1, round(self.timing.min_sample_ms / max(ms, 1e-3)))
            entries[curve.name] = Entry(lambda: None, call, about[curve.name]["first_ms"], call_ms=ms, repeats=repeats)
        if entries:
            self._time(entries)
        for curve in running:
            if (entry := entries.get(curve.name)) and curve.seen:
                curve.records.append(self._record(curve.name, entry, about[curve.name], size))
                curve.seen = replace(curve.seen, ms=min(curve.seen.ms, *entry.samples_ms))

    def _map(self, side: int) -> int:
        return side if self.mode == "window" else MAP

    def _tensors(self, size: _Size) -> tuple[Tensor, Tensor, Tensor]:
        map_side = size.side * round(size.windows**0.5)
        made = workload(self.shape.heads, self.shape.dim, size.side, map_side, self.seed, self.logit_std)
        q, k, v = (tensor.to(self.device, self.dtype) for tensor in made)
        return q, k, v

    def _left_out(self, curve: _Curve, size: _Size) -> bool:
        """Whether the attention is not called at this size; then it is recorded why."""
        if reason := curve.attention.refuses(size.side, size.side):
            curve.leave_out(size, "refused", reason)
            return True
        if curve.seen is None:
            return False
        growth = curve.growth(size, self.shape)
        seconds = curve.seen.ms * growth / 1e3
        if seconds > self.budget_s:
            curve.leave_out(size, "time", f"a call would take about {seconds:.2g} s, more than {self.budget_s:g} s")
            return True
        needed, free = 1e6 * curve.seen.peak_mb * growth, memory.free_memory(self.device)
        if free is not None and needed > free:
            told = f"a call would need about {needed / 1e9:.2g} GB of memory, and {free / 1e9:.2g} GB are free"
            curve.leave_out(size, "memory", told)
            return True
        return False

    def _failed(self, curve: _Curve, size: _Size, error: Exception) -> None:
        traceback.print_exc(file=sys.stderr)
        out_of_memory = isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or "allocate memory" in str(error)
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        curve.leave_out(size, "memory" if out_of_memory else "failed", reason)

    def _probe(self, call: _Call, size: _Size) -> tuple[_Cost, dict]:
        """Three calls: the first one's time, the peak memory, and whether the output is finite."""
        times: list[float] = []

        def timed() -> None:
            times.append(self.clock(call))

        peak, _ = memory.peak_memory(timed, self.device)
        finite = True

        def looked_at() -> None:
            nonlocal finite
            finite = bool(call().isfinite().all())

        times.append(self.clock(looked_at))
        about = {"first_ms": times[0], "setup_ms": call.setup_ms, "peak_mb": peak, "finite": finite}
        return _Cost(size, min(times), peak), about

    def _time(self, entries: dict[str, Entry]) -> None:
        """The rounds; one attention runs twice (A/A), one whose time is in the middle of all."""
        middle = sorted(entries, key=lambda name: entries[name].call_ms)[len(entries) // 2]
        twin = f"{middle}, again"
        timed = {**entries, twin: replace(entries[middle], samples_ms=[])}
        self.noise: Ratio = run_rounds(timed, replace(self.timing, again=False), self.clock, (middle, twin), self.seed)

    def _record(self, name: str, entry: Entry, about: dict, size: _Size) -> dict:
        return {
            "attention": name,
            **{"tokens": size.tokens, "side": size.side, "windows": size.windows},
            "samples_ms": entry.samples_ms,
            "median_ms": float(np.median(entry.samples_ms)),
            **about,
            "repeats": entry.repeats,
            "noise": [self.noise.low, self.noise.high],
            "unstable": _unstable(entry.samples_ms, self.noise),
            **{"kind": None, "reason": None},
        }


def _unstable(samples: list[float], noise: Ratio) -> str | None:
    """Why a timing is not to be trusted, as one clause; None where it is."""
    if not noise.contains(1.0):
        return f"an attention against itself came out at {noise.low:.3f} to {noise.high:.3f}, which excludes 1"
    uncertainty = median_interval(samples).uncertainty
    return f"the median is only known to within ±{100 * uncertainty:.0f} %" if uncertainty > UNCERTAIN else None
