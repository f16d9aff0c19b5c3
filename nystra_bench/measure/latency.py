"""Latency of a forward pass: all cells of a session and the references, interleaved."""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from nystra_bench.configuration import instantiate
from nystra_bench.instruments.statistics import ENOUGH, LEVEL, Ratio, interquartile_range, paired_ratio
from nystra_bench.measure.base import AXES, Circumstances, Measured, Measurement, number
from nystra_bench.report.column import Column
from nystra_bench.sweep.cell import canonical_json
from nystra_bench.words import FLOOR, FUSED, ORIGINAL, REFERENCES, RELEASED

if TYPE_CHECKING:
    from nystra_bench.attention.base import Attention
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
    quiet = True
    place = 10
    columns = (
        Column("latency_ms", "latency, ms (IQR)", "Median of one forward pass over interleaved rounds, and in "
               "brackets the interquartile range.", 1, "latency_iqr_ms"),
        Column("latency_iqr_ms", "latency IQR (ms)", "Interquartile range of one forward pass.", 2),
        Column("first_ms", "first call (ms)", "The first call, which is in no other number.", 1),
        Column("setup_ms", "set-up (ms)", "Time for what the method makes once a layer and window size and keeps: "
               "factors of the position bias, say. It is part of the first call, and in no other number.", 1),
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
        return known.machine | {"timing": dict(known.timing), "references": known.references}

    def run(self, bench: Workbench, jobs: list[Job]) -> None:
        TimedSession(bench, jobs).run()

    # ----------------------------------------------------------------- reading

    def scalars(self, value: Mapping, cell: Mapping) -> dict[str, Any]:
        samples, others = value["samples_ms"], companions(value, cell)
        record = {"latency_ms": float(np.median(samples)), "latency_iqr_ms": interquartile_range(samples)}
        record |= {name: number(value.get(name)) for name in ("first_ms", "setup_ms")}
        for reference, column in zip(AGAINST, RATIOS, strict=True):
            if ratio := ratio_of(others.get(reference), samples):
                record |= {column: ratio.median, f"{column}_low": ratio.low, f"{column}_high": ratio.high}
        if noise := noise_of(others):
            record |= {"noise_low": noise.low, "noise_high": noise.high}
        if others.get(FLOOR):
            record["floor_ms"] = float(np.median(others[FLOOR]))
        return record

    def rows(self, value: Mapping, cell: Mapping) -> list[dict]:
        """Each sample: ``entry`` is ``own``, or the companion that it belongs to."""
        entries = {"own": value["samples_ms"], **value.get("companions", {})}
        return [{"entry": e, "round": n, "ms": ms} for e, samples in entries.items() for n, ms in enumerate(samples)]

    def details(self, value: Mapping, cell: Mapping) -> dict[str, Any]:
        low, high = np.quantile(value["samples_ms"], [0.25, 0.75])
        released = companions(value, cell).get(RELEASED)
        native = float(np.median(released)) if released else float("nan")
        return {"latency_q1": float(low), "latency_q3": float(high), "native_ms": native}


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
        from nystra_bench.instruments.timer import Clock, Timing

        self.bench, self.jobs = bench, jobs
        self.timing, self.clock = Timing(**bench.request["timing"]), Clock(bench.device)
        # Which entry times a cell: a reference's where it is the same attention, else one of its own.
        references = {canonical_json(config): name for name, config in bench.request["references"].items()}
        self.names = {job.cell.key: references.get(canonical_json(job.config), job.cell.key) for job in jobs}
        for job in jobs:
            job.attention = bench.references.get(self.names[job.cell.key], job.attention)

    def run(self) -> None:
        from nystra_bench.instruments.timer import expected_s, instability, run_rounds

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
        pair = self._add_twin(entries)
        self.bench.tell_start(jobs, expected_s(entries.values(), self.timing))
        try:
            broken = self._settle(entries)
            noise = run_rounds(entries, self.timing, self.clock, pair, self.bench.request["seed"], AGAINST)
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

        By references of their own, so that what the timed ones make once is still to be made.
        """
        from nystra_bench.models import plug

        bench = self.bench
        bench.guard.check(bench.without_attention())
        bench.forward(bench.model, bench.first_input)
        for config in bench.request["references"].values():
            try:
                bench.place_attention(instantiate(config))
                bench.forward(bench.model, bench.first_input)
            except Exception:  # it fails as an entry, too, and is told there
                traceback.print_exc(file=sys.stderr)
        plug(bench.model, bench.references[FLOOR])

    def _warm_entries(self) -> dict[str, Entry]:
        """The entries whose warm-up succeeds, by name; the cells of the others fail."""
        from nystra_bench.instruments.timer import warm_up
        from nystra_bench.models import forget, setup_seconds

        entries: dict[str, Entry] = {}
        for name, entry in self._candidates().items():
            cells = [job for job in self.jobs if self.names[job.cell.key] == name]
            self.bench.tell_start(cells or self.jobs)  # without a companion that ends the worker, no cell can be timed
            model = self.bench.native if name == RELEASED else self.bench.model
            try:
                entry.prepare()
                self.bench.guard.check(model)
                forget(model)  # a calibration, or the look at the memory, may have made what is kept
                warm_up(entry, self.timing, self.clock)
                entry.setup_ms = 1e3 * setup_seconds(model)
                entries[name] = entry
            except Exception as error:
                traceback.print_exc()
                self._fail(cells, error)
        return entries

    def _candidates(self) -> dict[str, Entry]:
        bench = self.bench
        entries = {name: self._entry(bench.model, attention) for name, attention in bench.references.items()}
        if bench.native is not bench.model:
            entries[RELEASED] = self._entry(bench.native, None)
        own = {self.names[job.cell.key]: job for job in self.jobs if self.names[job.cell.key] not in entries}
        return entries | {name: self._entry(bench.model, job.attention) for name, job in own.items()}

    def _entry(self, model, attention: Attention | None) -> Entry:
        from nystra_bench.instruments.timer import Entry
        from nystra_bench.models import plug

        def prepare() -> None:
            if attention is not None:
                plug(model, attention)

        return Entry(prepare, lambda: self.bench.forward(model, self.bench.first_input))

    def _settle(self, entries: dict[str, Entry]) -> dict[str, str]:
        """Call each once more before the first round; gives the entries whose output is not finite, with a reason."""
        broken = {}
        for name, entry in entries.items():
            entry.prepare()
            if not entry.call().isfinite().all():
                broken[name] = "the output holds NaN or infinite numbers"
        return broken

    def _add_twin(self, entries: dict[str, Entry]) -> tuple[str, str]:
        """A second entry of the first reference that runs: their ratio is the noise floor (A/A)."""
        name = next(name for name in [*self.bench.references, *entries] if name in entries)
        entries[f"{name}_again"] = replace(entries[name], samples_ms=[])
        return name, f"{name}_again"

    def _value(self, entry: Entry, entries: dict[str, Entry]) -> dict:
        cells = {job.cell.key for job in self.jobs}
        batch, _, height, width = self.bench.first_input.shape
        about = {name: told for name, a in self.bench.references.items() if (told := a.about())}
        return {
            "samples_ms": entry.samples_ms,
            "first_ms": entry.first_ms,
            "setup_ms": entry.setup_ms or None,
            "repeats": entry.repeats,
            "companions": {name: e.samples_ms for name, e in entries.items() if name not in cells},
            "about": about,
            "seed": self.bench.request["seed"],
            **{"batch": batch, "height": height, "width": width},
        }
