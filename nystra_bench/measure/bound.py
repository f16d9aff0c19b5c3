"""Spectral errors of the attention matrices in every layer, and what theory allows (``instruments/spectrum.py``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from nystra_bench.measure.base import AXES, Measurement, number

if TYPE_CHECKING:
    from nystra_bench.sweep.workbench import Job, Workbench


class Bound(Measurement):
    """What an attention makes of the queries and keys that the exact model has in each layer, on the first image.

    Of an image in tiles, the first tile is looked at.
    """

    needs = AXES
    place = 40
    row_columns = ("layer", "head", "window", "matrix_error")

    def measure(self, bench: Workbench, job: Job) -> dict:
        from nystra_bench.instruments.spectrum import SpectrumProbe
        from nystra_bench.models import named_attention_sites

        sample = next(iter(bench.task.samples()))
        probes = {}
        for seed, (name, site) in enumerate(named_attention_sites(bench.model).items()):
            probes[name] = site.attention = SpectrumProbe(job.attention.at_layer(name), seed)
        bench.forward(bench.model, bench.tensor(sample.degraded))
        layers = [{"layer": name, "windows": p.chosen, "values": p.by_head()} for name, p in probes.items()]
        height, width = sample.degraded.shape[:2]
        return {"image": sample.id, "height": height, "width": width, "layers": layers}

    def rows(self, value: Mapping, cell: Mapping) -> list[dict]:
        """One record for each layer, head and window that was looked at."""
        return [
            {"layer": layer["layer"], "head": head, "window": window}
            | {name: number(numbers[head][place]) for name, numbers in layer["values"].items()}
            for layer in value["layers"]
            for head in range(len(layer["values"]["matrix_error"]))
            for place, window in enumerate(layer["windows"])
        ]
