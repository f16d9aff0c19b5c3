"""Spectra of the attention matrices in every layer and head (``instruments/spectra.py``)."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from statistics import median
from typing import TYPE_CHECKING, Any

from nystra_bench.errors import UserError
from nystra_bench.measure.base import AXES, Measurement, number, without_attention
from nystra_bench.report.column import Column
from nystra_bench.sweep.cell import canonical_json
from nystra_bench.words import FUSED, ORIGINAL

if TYPE_CHECKING:
    from nystra_bench.sweep.workbench import Job, Workbench
    from nystra_bench.tasks.base import Sample


def _column(name: str, header: str, meaning: str, digits: int) -> Column:
    return Column(name, header, f"{meaning} Median over layers and heads.", digits)


class Spectrum(Measurement):
    """Singular values, energy, entropy, logits and matrix errors of an attention, beside those of exact attention.

    The model runs with exact attention, once an image for all attentions of a session; each attention is given the same
    queries and keys. Of an image in tiles, the first tile is looked at.

    Args:
        windows: so many of each layer are looked at, a seeded choice.
        images: the first so many of the task.
        values: so many singular values are kept.
        seed: of the choice of windows.

    Raises:
        UserError: a number is out of its range.
    """

    needs = AXES
    place = 50
    columns = (
        *(_column(f"energy_{n}", f"energy in {n}", f"Share of the attention matrix's energy (sum of squared singular "
                  f"values) that the first {n} hold.", 4) for n in (5, 10, 20)),
        *(_column(f"rank_{p}", f"rank for {p} %", f"How many singular values hold {p} % of the energy; ∞ where it is "
                  "more than were computed.", 1) for p in (90, 95, 99)),
        _column("effective_tokens", "effective tokens", "exp of the entropy of a row, mean over the rows; none where "
                "weights are negative.", 1),
        _column("self_mass", "own weight", "The weight that a token gives to itself.", 4),
        _column("logit_min", "smallest logit", "Of the exact attention, QKᵀ + B where no mask is.", 1),
        _column("logit_max", "largest logit", "Of the exact attention, QKᵀ + B where no mask is.", 1),
        _column("logit_std", "spread of logits", "Standard deviation of the exact attention's logits.", 2),
        _column("matrix_mse", "matrix MSE", "Mean squared difference to the entries of the exact attention matrix: the "
                "measure of PnP-Nystra.", 8),
        _column("spectral_error", "spectral error", "‖P − P̂‖₂/‖P‖₂, P the exact attention matrix and P̂ the "
                "method's.", 4),
    )  # fmt: skip
    row_columns = ("image", "layer", "head", "tokens", "singular_values", *(column.name for column in columns))

    def __init__(self, windows: int = 2, images: int = 1, values: int = 50, seed: int = 0):
        for name, given in (("windows", windows), ("images", images), ("values", values)):
            if given < 1:
                raise UserError(f"measure.{name}={given} is out of range: accepted are whole numbers from 1 on")
        self.windows, self.images, self.values, self.seed = windows, images, values, seed

    def refuses(self, layers: Sequence[str], sizes: Sequence[tuple[int, int]]) -> str | None:
        return without_attention(layers)

    # ----------------------------------------------------------------- in the worker

    def run(self, bench: Workbench, jobs: list[Job]) -> None:
        """All cells at once: they share the exact matrices. A method that fails leaves the others."""
        started = time.perf_counter()
        bench.tell_start(jobs)
        waiting, images = {job.cell.key: job for job in jobs}, []
        try:
            bench.place_attention(bench.references[FUSED])
            for sample in islice(bench.task.samples(), self.images):
                images.append(self._look(bench, waiting, sample))
        except Exception as error:
            for job in waiting.values():
                bench.fail(job, error)
            return
        for job in waiting.values():
            bench.save(job, {"images": [image | {"records": image["records"][_name(bench, job)]} for image in images]},
                       started)  # fmt: skip

    def _look(self, bench: Workbench, waiting: dict[str, Job], sample: Sample) -> dict:
        """The records of an image, by attention; the cells that fail are waiting no longer."""
        from nystra_bench.instruments.spectra import attention_spectra
        from nystra_bench.sweep.workbench import NotFinite

        def fail(key: str, error: Exception) -> None:
            bench.fail(waiting.pop(key), NotFinite(str(error)) if isinstance(error, FloatingPointError) else error)

        def alive(done: int, of: int) -> None:
            if waiting:
                bench.alive(next(iter(waiting.values())), done, of)

        others = {key: job.attention for key, job in waiting.items() if _name(bench, job) != ORIGINAL}
        x = bench.first_tile(bench.tensor(sample.degraded))
        found = attention_spectra(bench.model, x, others, self.windows, self.values, self.seed, alive, fail)
        records: dict[str, list[dict]] = {}
        for record in found:
            records.setdefault(record.pop("attention"), []).append(record)
        height, width = sample.degraded.shape[:2]
        return {"id": sample.id, "height": height, "width": width, "records": records}

    # ----------------------------------------------------------------- reading

    def scalars(self, value: Mapping, cell: Mapping) -> dict[str, Any]:
        """Medians over images, layers and heads, of the numbers that the attention has."""
        rows = self.rows(value, cell)
        found = {name: [row[name] for row in rows if not math.isnan(row[name])] for name in self.names}
        return {name: median(numbers) for name, numbers in found.items() if numbers}

    def rows(self, value: Mapping, cell: Mapping) -> list[dict]:
        """One record an image, layer and head; ``singular_values`` is a list."""
        return [
            {"image": image["id"], **record} | {name: number(record[name]) for name in self.names}
            for image in value["images"]
            for record in image["records"]
        ]


def _name(bench: Workbench, job: Job) -> str:
    """What a cell's records are found under: ``exact`` where it is the exact reference itself."""
    exact = canonical_json(bench.request["references"][ORIGINAL])
    return ORIGINAL if canonical_json(job.config) == exact else job.cell.key
