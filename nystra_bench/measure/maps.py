"""Attention maps: what some pixels attend to, put back on the image (``instruments/attention_maps.py``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nystra_bench.errors import UserError, outside_image, unknown
from nystra_bench.measure.base import AXES, Measured, Measurement, number, without_attention
from nystra_bench.report.column import Column
from nystra_bench.sweep.cell import canonical_json
from nystra_bench.words import FUSED, ORIGINAL

if TYPE_CHECKING:
    from nystra_bench.instruments.attention_maps import AttentionMap
    from nystra_bench.sweep.workbench import Job, Workbench

FILE = "maps.npz"
"""Beside a result: ``image`` (H, W, C), and of the n-th map ``map<n>`` and ``exact<n>``, (height, width) in tokens."""

QUERY, BOX = ("query_row", "query_column"), ("top", "left", "height", "width")
"""Columns of the long form, in pixels of the input."""

Query = tuple[int, int]


class Maps(Measurement):
    """Rows of an attention's matrix for some pixels of the first image, in one layer, beside those of exact attention.

    The model runs with exact attention, and the attention is given the queries and keys that it has. Of an image in
    tiles, the first tile is looked at.

    Args:
        layer: name of the layer, or its number, from 0 on or from -1 back.
        head: number of the head; None takes all.
        queries: a pixel [row, column], or several; None takes the centre and one in the upper right.

    Raises:
        UserError: ``queries`` are no pixels, or ``head`` no number of a head.
    """

    needs = AXES
    place = 60
    columns = (
        Column("map_error", "misplaced attention", "Half the sum of absolute differences to the exact row, what is not "
               "shown counted as one token: the share of attention that is given to other tokens. Mean over the "
               "maps.", 4),
    )  # fmt: skip
    row_columns = ("map", "layer", "head", *QUERY, *BOX, "outside", "map_error")

    def __init__(self, layer: int | str = -1, head: int | None = 0, queries: list | None = None):
        if head is not None and head < 0:
            raise UserError(f"measure.head={head} is out of range: accepted are whole numbers from 0 on, or null")
        if isinstance(layer, bool) or not isinstance(layer, (int, str)):
            raise UserError(f"measure.layer={layer} is no layer: accepted are names, and numbers from 0 on or -1 back")
        self.layer, self.head = layer, head
        self.queries = None if queries is None else _pixels(queries)

    def refuses(self, layers: Sequence[str], sizes: Sequence[tuple[int, int]]) -> str | None:
        reason = without_attention(layers) or _refused_layer(self.layer, layers)
        largest = [max(sides) for sides in zip(*sizes, strict=True)]
        return reason or next((r for q in self.queries or [] if (r := largest and outside_image(q, *largest))), None)

    # ----------------------------------------------------------------- in the worker

    def measure(self, bench: Workbench, job: Job) -> Measured:
        from nystra_bench.instruments.attention_maps import attention_maps
        from nystra_bench.instruments.probes import sites_of

        bench.place_attention(bench.references[FUSED])
        sample = next(iter(bench.task.samples()))
        x = bench.first_tile(bench.tensor(sample.degraded))
        height, width = x.shape[-2:]
        is_exact = canonical_json(job.config) == canonical_json(bench.request["references"][ORIGINAL])
        found = attention_maps(
            bench.model,
            x,
            {} if is_exact else {OWN: job.attention},
            _queries(self.queries, height, width),
            [layer_name(self.layer, list(sites_of(bench.model)))],
            None if self.head is None else [self.head],
        )
        exact = [m for m in found if m.attention == ORIGINAL]
        own = exact if is_exact else [m for m in found if m.attention == OWN]
        maps = [map_record(mine, theirs) for mine, theirs in zip(own, exact, strict=True)]
        value = {"image": sample.id, "height": height, "width": width, "maps": maps}
        image = sample.degraded[:height, :width]
        return Measured(value, attach=lambda folder: _save(folder, image, own, exact))

    # ----------------------------------------------------------------- reading

    def scalars(self, value: Mapping, cell: Mapping) -> dict[str, Any]:
        errors = [number(found["map_error"]) for found in value["maps"]]
        return {"map_error": float(np.mean(errors))} if errors else {}

    def rows(self, value: Mapping, cell: Mapping) -> list[dict]:
        """One record a map; ``map`` is its number in the file ``maps.npz``."""
        return [
            {"map": n, "layer": found["layer"], "head": found["head"]}
            | dict(zip(QUERY, found["query"], strict=True))
            | dict(zip(BOX, found["box"], strict=True))
            | {name: number(found[name]) for name in ("outside", "map_error")}
            for n, found in enumerate(value["maps"])
        ]


OWN = "own"
"""What the maps of a cell's attention are called while they are beside the exact ones."""


def layer_name(layer: int | str, layers: Sequence[str]) -> str:
    """The name of a layer, which may be given by its number.

    Raises:
        UserError: there is none.
    """
    if reason := _refused_layer(layer, layers):
        raise UserError(reason)
    return layers[layer] if isinstance(layer, int) else layer


def _refused_layer(layer: int | str, layers: Sequence[str]) -> str | None:
    if isinstance(layer, str):
        return None if layer in layers else str(unknown("layer", layer, layers))
    if -len(layers) <= layer < len(layers):
        return None
    return f"layer={layer} does not exist: accepted are {-len(layers)} to {len(layers) - 1}, and names of layers"


def _pixels(queries: object) -> list[Query]:
    """Pixels from one pair of whole numbers, or a list of pairs.

    Raises:
        UserError: it is neither.
    """
    pairs = [queries] if isinstance(queries, list) and _is_pixel(queries) else queries
    if not isinstance(pairs, list) or not pairs or not all(map(_is_pixel, pairs)):
        raise UserError(f"measure.queries={queries} are no pixels: accepted are [row, column], or a list of such pairs")
    return [(row, column) for row, column in pairs]


def _is_pixel(entry: object) -> bool:
    return isinstance(entry, (list, tuple)) and len(entry) == 2 and all(type(n) is int and n >= 0 for n in entry)


def _queries(given: list[Query] | None, height: int, width: int) -> list[Query]:
    # The second is near no border of usual windows, shifted or not.
    return [(height // 2, width // 2), (5 * height // 16, 11 * width // 16)] if given is None else given


def map_record(own: AttentionMap, exact: AttentionMap) -> dict:
    """What is told of a map; of six significant digits."""
    difference = np.abs(own.values - exact.values).sum(dtype=np.float64) + abs(own.outside - exact.outside)
    return {
        "layer": own.layer,
        "head": own.head,
        "query": list(own.query),
        "box": list(own.box),
        "outside": float(f"{own.outside:.6g}"),
        "map_error": float(f"{difference / 2:.6g}"),
    }


def _save(folder: Path, image: np.ndarray, own: list[AttentionMap], exact: list[AttentionMap]) -> None:
    arrays = {f"map{n}": found.values for n, found in enumerate(own)}
    arrays |= {f"exact{n}": found.values for n, found in enumerate(exact)}
    np.savez_compressed(folder / FILE, allow_pickle=False, image=image.astype(np.float16), **arrays)
