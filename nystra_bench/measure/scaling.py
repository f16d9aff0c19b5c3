"""Time and memory of an attention alone against the number of tokens, on no model (``instruments/scaling.py``)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nystra_bench.errors import UserError
from nystra_bench.instruments.geometry import shape_of, sides_of
from nystra_bench.instruments.power_law import LEAST, fitted_exponent
from nystra_bench.instruments.statistics import LEVEL, Estimate, median_interval
from nystra_bench.measure.base import Circumstances, Measured, Measurement, number
from nystra_bench.report.column import Column
from nystra_bench.sweep.cell import canonical_json

if TYPE_CHECKING:
    from nystra_bench.sweep.workbench import Job, Workbench

FIT_FROM = {"window": 1024, "image": 1}
"""Tokens of a window from which on a power law is fitted. Of one small window a call is mostly overhead; a map of many
windows is work enough at all sizes."""

COSTS = {"time": "median_ms", "memory": "peak_mb"}

_FITTED = (
    f"{{}} is proportional to N to this power, N the tokens of a window: least squares on logarithms, from N = "
    f"{FIT_FROM['window']} (in image mode, where the number of all tokens stays, from the smallest window) to the "
    f"largest that was measured, at least {LEAST} sizes; with the regression's {100 * LEVEL:g} % t-interval."
)


class Scaling(Measurement):
    """Median time and peak memory of one call at each size; all attentions of a session interleaved, on equal inputs.

    There is neither position bias nor mask. See docs/METHODOLOGY.md, Scaling.

    Args:
        shape: a name of ``geometry.SHAPES``, or heads and channels a head such as ``6x30``.
        mode: ``window`` (one window of N tokens) or ``image`` (a map of 256 x 256 tokens cut into windows of N).
        sizes: the numbers of tokens N, or one; None takes ``geometry.SERIES``.
        logit_std: standard deviation of the logits.
        call_s: seconds; a method whose call would take longer ends its curve.
        rounds: at each size, fewer where ``budget_s`` is spent, but at least three.
        budget_s: seconds of rounds at each size.
        min_sample_ms: a sample repeats a shorter call until it lasts that long.

    Raises:
        UserError: a value does not fit.
    """

    version = "2"  # 1: peaks on a CPU were of resident memory
    needs = ("attention", "device", "dtype")
    quiet = True
    tolerance = 0.1
    place = 15
    columns = (
        Column("time_exponent", "time ∝ N^b", _FITTED.format("The time of a call"), 2),
        Column("time_exponent_low", "time exponent, low", "The low end of its interval.", 3),
        Column("time_exponent_high", "time exponent, high", "The high end of its interval.", 3),
        Column("memory_exponent", "memory ∝ N^b", _FITTED.format("The peak memory of a call"), 2),
        Column("memory_exponent_low", "memory exponent, low", "The low end of its interval.", 3),
        Column("memory_exponent_high", "memory exponent, high", "The high end of its interval.", 3),
        Column("largest_tokens", "largest N", "The largest number of tokens of a window that was measured.", 0),
        Column("largest_ms", "time there (ms)", "Median time of a call at the largest N.", 1),
        Column("curve_end", "why no further", "Why the curve ends before the last size, and at which."),
    )
    row_columns = (
        *("shape", "mode", "tokens", "side", "ms", "ms_low", "ms_high", "peak_mb"),
        *("unstable", "kind", "reason"),
    )

    def __init__(
        self,
        shape: str = "swinir_m",
        mode: str = "window",
        sizes: Sequence[int] | int | None = None,
        logit_std: float = 5.0,
        call_s: float = 1.5,
        rounds: int = 9,
        budget_s: float = 1.0,
        min_sample_ms: float = 10.0,
    ):
        self.shape, self.mode, self.sizes = shape_of(shape), mode, sizes
        sides_of(sizes, mode)
        for name, value, least in (("logit_std", logit_std, 0), ("call_s", call_s, 0), ("rounds", rounds, 1)):
            if not value > least:
                raise UserError(f"measure.{name}={value} is out of range: accepted are numbers above {least}")
        self.logit_std, self.call_s = float(logit_std), float(call_s)
        self.timing: dict[str, Any] = {"rounds": rounds, "min_rounds": min(3, rounds), "budget_s": budget_s}
        self.timing |= {"warmup_s": 0.0, "min_sample_ms": min_sample_ms}

    def settings(self, known: Circumstances) -> dict:
        return known.machine

    def run(self, bench: Workbench, jobs: list[Job]) -> None:
        """Cells of the same parameters are timed together."""
        together: dict[str, list[Job]] = {}
        for job in jobs:
            together.setdefault(canonical_json(job.cell.content["measure"]), []).append(job)
        for group in together.values():
            first = group[0].measurement
            assert isinstance(first, Scaling)
            first.time(bench, group)

    def time(self, bench: Workbench, jobs: list[Job]) -> None:
        from nystra_bench.instruments.scaling import time_attention
        from nystra_bench.instruments.timer import Timing

        started = time.perf_counter()
        bench.tell_start(jobs)
        fitting = [job for job in jobs if self._stands_alone(bench, job)]

        def progress(done: int, of: int) -> None:
            bench.tell_start(fitting, silent_s=2 * len(fitting) * self.call_s + self.timing["budget_s"])

        records = time_attention(
            {job.cell.key: job.attention for job in fitting},
            self.sizes,
            self.shape.heads,
            self.shape.dim,
            self.mode,
            bench.device,
            bench.dtype,
            Timing(**self.timing),
            self.call_s,
            bench.request["seed"],
            self.logit_std,
            progress,
        )
        about = {"heads": self.shape.heads, "dim": self.shape.dim, "seed": bench.request["seed"]}
        for job in fitting:
            own = [record for record in records if record["attention"] == job.cell.key]
            sizes = [{k: v for k, v in record.items() if k != "attention"} for record in own]
            self._settle(bench, job, about | {"sizes": sizes}, started)

    def _stands_alone(self, bench: Workbench, job: Job) -> bool:
        """Whether the attention needs no model to be fitted to; one that does has failed then."""
        try:
            job.attention.at_layer("")
        except ValueError as error:
            bench.fail(job, UserError(f"{error}, which takes a model and its images: measure=scaling has neither"))
            return False
        return True

    @staticmethod
    def _settle(bench: Workbench, job: Job, value: dict, started: float) -> None:
        measured = [size for size in value["sizes"] if size["samples_ms"]]
        kinds = {size["kind"]: size["reason"] for size in value["sizes"]}
        if "failed" in kinds or set(kinds) == {"refused"}:
            bench.fail(job, RuntimeError(kinds.get("failed") or f"no size fits: {kinds['refused']}"))
            return
        unstable = [size for size in measured if size["unstable"]]
        infinite = [size["tokens"] for size in measured if not size["finite"]]
        if infinite:
            status, reason = "nonfinite", f"at N = {infinite[0]} the output holds NaN or infinite numbers"
        elif unstable and 2 * len(unstable) >= len(measured):
            last = f"at N = {unstable[-1]['tokens']} {unstable[-1]['unstable']}"
            status, reason = "unstable", f"{len(unstable)} of {len(measured)} sizes are unstable: {last}"
        else:
            status, reason = "done", None
        bench.save(job, Measured(value, status, reason), started)

    # ----------------------------------------------------------------- reading

    def scalars(self, value: Mapping, cell: Mapping) -> dict[str, Any]:
        measured = [size for size in value["sizes"] if size["samples_ms"]]
        found: dict[str, Any] = {}
        for cost, estimate in exponents(value["sizes"], cell["measure"]["params"]["mode"]).items():
            if estimate:
                ends = {f"{cost}_exponent_low": estimate.low, f"{cost}_exponent_high": estimate.high}
                found |= {f"{cost}_exponent": estimate.median} | ends
        if measured:
            found |= {"largest_tokens": measured[-1]["tokens"], "largest_ms": measured[-1]["median_ms"]}
        end = next((size for size in value["sizes"] if size["kind"] not in (None, "refused")), None)
        return found | ({"curve_end": f"N = {end['tokens']}: {end['reason']}"} if end else {})

    def compared(self, value: Mapping, cell: Mapping) -> dict[str, Any]:
        return {name: found for name, found in self.scalars(value, cell).items() if name.endswith("_exponent")}

    def rows(self, value: Mapping, cell: Mapping) -> list[dict]:
        """One record a size; ``ms_low`` and ``ms_high`` are the interval of the median, ``kind`` why it did not run."""
        params = cell["measure"]["params"]
        return [{"shape": params["shape"], "mode": params["mode"], **_row(size)} for size in value["sizes"]]


def exponents(sizes: Sequence[Mapping], mode: str) -> dict[str, Estimate | None]:
    """The exponents of time and memory over the sizes of a curve, with their intervals; None where they are too few."""
    fitted = [size for size in sizes if size["samples_ms"] and size["tokens"] >= FIT_FROM[mode]]
    tokens = [size["tokens"] for size in fitted]
    return {cost: fitted_exponent(tokens, [number(s.get(name)) for s in fitted]) for cost, name in COSTS.items()}


def _row(size: Mapping) -> dict:
    samples = size["samples_ms"]
    known = median_interval(samples) if samples else None
    return {
        **{name: size[name] for name in ("tokens", "side", "kind", "reason")},
        "ms": known.median if known else float("nan"),
        "ms_low": known.low if known else float("nan"),
        "ms_high": known.high if known else float("nan"),
        "peak_mb": number(size.get("peak_mb")),
        "unstable": bool(size.get("unstable")),
    }
