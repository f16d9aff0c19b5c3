"""Relative errors of the features after each layer, when attentions are replaced (``instruments/propagation.py``)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nystra_bench.measure.base import AXES, Circumstances, Measured, Measurement, number
from nystra_bench.report.column import Column
from nystra_bench.words import ORIGINAL

if TYPE_CHECKING:
    from nystra_bench.sweep.workbench import Job, Workbench


class Propagation(Measurement):
    """On the task's first image, against the same model with the exact attention, in the same precision."""

    needs = AXES
    place = 45
    columns = (
        Column("last_layer_error", "error after the last layer", "Relative error (RMS) of the features after the last "
               "layer, all attentions replaced; see propagation.", 3),
        Column("worst_alone_error", "largest error of one layer", "The largest relative error (RMS) of the features "
               "after a layer when the attention of that layer alone is replaced.", 3),
        Column("worst_alone_layer", "in layer", "Which layer that is: its number in the forward pass, and its name."),
        Column("first_image_deviation", "deviation of the first image (dB)", "PSNR of the output, all attentions "
               "replaced, against the exact one.", 2),
    )  # fmt: skip
    row_columns = ("depth", "layer", "block", "all", "alone")

    def settings(self, known: Circumstances) -> dict:
        return {"reference": known.references[ORIGINAL]}

    def measure(self, bench: Workbench, job: Job) -> Measured:
        from nystra_bench.instruments import propagation
        from nystra_bench.models import plug

        plug(bench.model, bench.references[ORIGINAL])
        run = propagation.Propagation(bench.model, job.attention, lambda x: bench.forward(bench.model, x))
        layers = run.run(bench.first_input)
        error = (run.output.double() - run.original.double()).square().mean().item()
        height, width = bench.first_input.shape[-2:]
        value = {"layers": layers, "mean_square_error": error, "height": height, "width": width}
        numbers = [error, *(layer[kind] for layer in layers for kind in ("all", "alone"))]
        if all(map(math.isfinite, numbers)):
            return Measured(value)
        return Measured(value, "nonfinite", "features or the output hold NaN or infinite numbers")

    def scalars(self, value: Mapping, cell: Mapping) -> dict[str, Any]:
        layers = value["layers"]
        depth = max(range(len(layers)), key=lambda n: _rank(number(layers[n]["alone"])))
        error = number(value["mean_square_error"])
        return {
            "last_layer_error": number(layers[-1]["all"]),
            "worst_alone_error": number(layers[depth]["alone"]),
            "worst_alone_layer": f"{depth + 1}: {layers[depth]['layer']}",
            "first_image_deviation": math.inf if error == 0 else -10 * math.log10(error),
        }

    def rows(self, value: Mapping, cell: Mapping) -> list[dict]:
        """One record a layer; ``depth`` is its number in the forward pass, from 1 on."""
        return [
            {"depth": depth, **{name: layer[name] for name in ("layer", "block")}}
            | {name: number(layer[name]) for name in ("all", "alone")}
            for depth, layer in enumerate(value["layers"], 1)
        ]


def _rank(error: float) -> float:
    """What is not a number is worse than all."""
    return math.inf if math.isnan(error) else error
