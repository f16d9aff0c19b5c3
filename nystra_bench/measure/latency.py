"""Latency of a forward pass: all cells of a session and the references, interleaved."""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from nystra_bench.configuration import instantiate
from nystra_bench.instruments.statistics import ENOUGH, LEVEL, Ratio, interquartile_range, paired_ratio
from nystra_bench.measure.base import AXES, Circumstances, Measured, Measurement, number
from nystra_bench.report.column import Column
from nystra_bench.sweep.cell import canonical_json
from nystra_bench.words import FLOOR, FUSED, ORIGINAL, REFERENCES, RELEASED

if TYPE_CHECKING:
    from nystra_bench.instruments.timer import Entry
    from nystra_bench.sweep.workbench import Job, Workbench

logger = logging.getLogger("nystra_bench")

AGAINST = {
    ORIGINAL: "exact attention in separate operations",
    FUSED: "PyTorch's fused exact attention",
    RELEASED: "the model as released",
}
"""What speed-ups are formed against."""

RATIOS = [f"speedup_vs_{reference}" for reference in AGAINST]


def _speedup(against: str, what: str) -> Column:
    meaning = (
        f"How many times as fast as {what}: median over rounds of the paired ratio of latencies in one session, and in "
        f"brackets its {100 * LEVEL:g} % interval (of fewer than {ENOUGH} rounds the range, whose level is told with "
        "the noise floor). Above 1 is faster; ≈1 where the interval contains 1. Read it with the deviation."
    )
    return Column(f"speedup_vs_{against}", f"speed-up vs {against}", meaning, 2)


class Latency(Measurement):
    """On the task's first image; see docs/METHODOLOGY.md, Timing."""

    needs = AXES
    execution = ("runtime", "threads", "batch", "memory_format")
    trained = False
    quiet = True
    tolerance = 0.1
    place = 10
    columns = (
        Column("latency_ms", "latency, ms (IQR)", "Median of one forward pass over interleaved rounds, and in "
               "brackets the interquartile range.", 1, "latency_iqr_ms"),
        Column("latency_iqr_ms", "latency IQR (ms)", "Interquartile range of one forward pass.", 2),
        Column("first_ms", "first call (ms)", "The first call, which is in no other number.", 1),
        Column("setup_ms", "set-up (ms)", "Time for what the method makes once a layer and window size and keeps: "
               "factors of the position bias, say. It is part of the first call, and in no other number. Where the "
               "model is compiled, that time, too, which is before the first call.", 1),
        *(_speedup(against, what) for against, what in AGAINST.items()),
        *(Column(f"{name}_{end}", f"{name}, {end}", f"The {end} end of its interval.", 3)
          for name in RATIOS for end in ("low", "high")),
        Column("floor_ms", "no attention (ms)", "Latency of the same model without any attention, in the same "
               "session.", 1),
        Column("noise_low", "A/A low", "Lower end of the interval of exact attention against itself.", 3),
        Column("noise_high", "A/A high", "Upper end of the interval of exact attention against itself.", 3),
    )  # fmt: skip
    row_columns = ("entry", "round", "ms")

    def settings(self, known: Circumstances) -> dict:
        # What was always so once is said where it is not so.
        once = {"again": True, "count_first": False}
        timing = {name: value for name, value in known.timing.items() if name not in once or value != once[name]}
        return known.machine | {"timing": timing, "references": known.references}

    def run(self, bench: Workbench, jobs: list[Job]) -> None:
        TimedSession(bench, jobs).run()

    # ----------------------------------------------------------------- reading

    def scalars(self, value: Mapping, cell: Mapping) -> dict[str, Any]:
        samples, others = value["samples_ms"], companions(value, cell)
        record = {"latency_ms": float(np.median(samples)), "latency_iqr_ms": interquartile_range(samples)}
        record |= {name: number(value.get(name)) for name in ("first_ms", "setup_ms")}
        record |= {"compile_ms": number(value["compile_ms"])} if "compile_ms" in value else {}
        for reference, column in zip(AGAINST, RATIOS, strict=True):
            if ratio := ratio_of(others.get(reference), samples):
                record |= {column: ratio.median} | _ends(f"{column}_", ratio, len(samples))
        if noise := noise_of(others):
            record |= _ends("noise_", noise, len(samples))
        if others.get(FLOOR):
            record["floor_ms"] = float(np.median(others[FLOOR]))
        return record

    def compared(self, value: Mapping, cell: Mapping) -> dict[str, Any]:
        return {name: found for name, found in self.scalars(value, cell).items() if name in ("latency_ms", *RATIOS)}

    def rows(self, value: Mapping, cell: Mapping) -> list[dict]:
        """Each sample: ``entry`` is ``own``, or the companion that it belongs to."""
        entries = {"own": value["samples_ms"], **value.get("companions", {})}
        return [{"entry": e, "round": n, "ms": ms} for e, samples in entries.items() for n, ms in enumerate(samples)]

    def details(self, value: Mapping, cell: Mapping) -> dict[str, Any]:
        low, high = np.quantile(value["samples_ms"], [0.25, 0.75])
        released = companions(value, cell).get(RELEASED)
        native = float(np.median(released)) if released else float("nan")
        size = f"{value.get('height')}x{value.get('width')}"
        return {"latency_q1": float(low), "latency_q3": float(high), "native_ms": native, "latency_input": size}


def _ends(name: str, ratio: Ratio, rounds: int) -> dict[str, float]:
    """The ends of an interval; ``nan`` of one round, which has none."""
    low, high = (ratio.low, ratio.high) if rounds > 1 else (float("nan"), float("nan"))
    return {f"{name}low": low, f"{name}high": high}


def companions(value: Mapping, cell: Mapping) -> dict[str, list[float]]:
    """The session's reference samples in ms; in a session of the released model, exact attention is that model."""
    found = dict(value.get("companions", {}))
    if RELEASED not in found and cell["position_bias"] == RELEASED and ORIGINAL in found:
        found[RELEASED] = found[ORIGINAL]
    return found


def ratio_of(numerator: list[float] | None, denominator: list[float] | None) -> Ratio | None:
    """The paired ratio; None where one of the two was not measured, or not in the same rounds."""
    if not numerator or not denominator:
        return None
    try:
        return paired_ratio(numerator, denominator)
    except ValueError as error:
        logger.warning("a ratio of latencies is left out: %s", error)
        return None


def noise_of(samples: Mapping[str, list[float]]) -> Ratio | None:
    """A/A: the reference that was timed twice (exact attention, where it runs), against itself."""
    twice = next((name for name in REFERENCES if f"{name}_again" in samples), ORIGINAL)
    return ratio_of(samples.get(twice), samples.get(f"{twice}_again"))


# --------------------------------------------------------------------------- in the worker


class TimedSession:
    """Times the cells of a session together with the references."""

    def __init__(self, bench: Workbench, jobs: list[Job]):
        from nystra_bench.instruments.forward import ForwardTimer
        from nystra_bench.instruments.timer import Clock, Timing

        self.bench, self.jobs = bench, jobs
        self.timer = ForwardTimer(
            bench.model,
            lambda model: bench.forward(model, bench.first_input),
            Timing(**bench.request["timing"]),
            Clock(bench.device),
            None if bench.native is bench.model else bench.native,
            bench.compile,
        )
        # Which entry times a cell: a reference's where it is the same attention, else one of its own.
        references = {canonical_json(config): name for name, config in bench.request["references"].items()}
        self.names = {job.cell.key: references.get(canonical_json(job.config), job.cell.key) for job in jobs}
        for job in jobs:
            job.attention = bench.references.get(self.names[job.cell.key], job.attention)

    def run(self) -> None:
        from nystra_bench.instruments.forward import add_twin
        from nystra_bench.instruments.timer import expected_s, instability

        started = time.perf_counter()
        self.bench.tell_start(self.jobs)
        try:
            self._warm_process()
        except MemoryError as error:
            self._fail(self.jobs, error)
            return
        entries = self._warm_entries()
        jobs = [job for job in self.jobs if self.names[job.cell.key] in entries]
        if not jobs:
            return
        pair = add_twin(entries, self.bench.references)
        self.bench.tell_start(jobs, expected_s(entries.values(), self.timer.timing))
        try:
            broken, noise = self.timer.run(entries, pair, self.bench.request["seed"], AGAINST)
        except Exception as error:  # no cell of the session has the rounds that its ratios need
            self._fail(jobs, error)
            return
        for job in jobs:
            name = self.names[job.cell.key]
            reason = broken.get(name)
            status = "nonfinite" if reason else "unstable"
            reason = reason or instability(name, entries, noise, AGAINST)
            value = self._value(entries[name], entries)
            self.bench.save(job, Measured(value, status if reason else "done", reason), started)

    def _fail(self, jobs: list[Job], error: Exception) -> None:
        for job in jobs:
            self.bench.fail(job, error)

    def _warm_process(self) -> None:
        """Read the image, start threads, libraries and kernels: else whichever comes first would pay for them.

        By references of their own, so that what the timed ones make once is still to be made. Where a pass without
        attention is long, starting up the rest is lost in what is timed.
        """
        from nystra_bench.instruments.timer import LONG_MS
        from nystra_bench.models import plug

        bench = self.bench
        bench.guard.check(bench.without_attention())
        if self.timer.clock(lambda: bench.forward_eager(bench.model, bench.first_input)) > LONG_MS:
            return
        for config in bench.request["references"].values():
            try:
                bench.place_attention(instantiate(config))
                bench.forward_eager(bench.model, bench.first_input)
            except Exception:  # it fails as an entry, too, and is told there
                traceback.print_exc(file=sys.stderr)
        plug(bench.model, bench.references[FLOOR])

    def _warm_entries(self) -> dict[str, Entry]:
        """The entries whose warm-up succeeds, by name; the cells of the others fail."""
        entries: dict[str, Entry] = {}
        own = {self.names[job.cell.key]: job.attention for job in self.jobs}
        others = {name: attention for name, attention in own.items() if name not in self.bench.references}
        for name, entry in self.timer.entries(self.bench.references, others).items():
            cells = [job for job in self.jobs if self.names[job.cell.key] == name]
            self.bench.tell_start(cells or self.jobs)  # without a companion that ends the worker, no cell can be timed
            try:
                entry.prepare()
                self.bench.guard.check(self.timer.model_of(name))  # which may make what is kept, as a calibration may
                self.timer.warm_up(name, entry)
                entries[name] = entry
            except Exception as error:
                traceback.print_exc()
                self._fail(cells, error)
        return entries

    def _value(self, entry: Entry, entries: dict[str, Entry]) -> dict:
        cells = {job.cell.key for job in self.jobs}
        batch, _, height, width = self.bench.first_input.shape
        about = {name: told for name, a in self.bench.references.items() if (told := a.about())}
        return {
            "samples_ms": entry.samples_ms,
            "first_ms": entry.first_ms,
            "setup_ms": entry.setup_ms + entry.compile_ms or None,
            **({"compile_ms": entry.compile_ms} if entry.compile_ms else {}),
            "repeats": entry.repeats,
            "companions": {name: e.samples_ms for name, e in entries.items() if name not in cells},
            "about": about,
            "seed": self.bench.request["seed"],
            **{"batch": batch, "height": height, "width": width},
        }
