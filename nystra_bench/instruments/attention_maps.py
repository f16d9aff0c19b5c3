"""What a token attends to, put back on the image: rows of attention matrices, of exact attention and of methods."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nystra_bench.attention.base import Attention, Window
from nystra_bench.attention.exact import ExactAttention
from nystra_bench.errors import UserError, outside_image, unknown
from nystra_bench.instruments.probes import check_memory, look_at_layers, sites_of, window_matrices
from nystra_bench.models.windows import Cut
from nystra_bench.sizes import sides
from nystra_bench.words import ORIGINAL


@dataclass(frozen=True)
class AttentionMap:
    """A row of an attention matrix: the weights that the token at a pixel gives to the tokens around it.

    Attributes:
        query: row and column of the pixel.
        box: top, left, height and width of what is shown, in pixels: the window, without what lies outside of the
            image, and without the parts of a shifted window that come from the opposite borders. Tokens of several
            pixels may reach beyond the image.
        values: the weights, (height, width) in tokens of equal size that fill the box, float32.
        outside: the sum of the weights that are not shown: of padding, and, where no mask keeps them away (nystra,
            ``position_bias=drop``), of tokens at the opposite borders.
    """

    attention: str
    layer: str
    head: int
    query: tuple[int, int]
    box: tuple[int, int, int, int]
    values: np.ndarray
    outside: float


@dataclass(frozen=True)
class Spot:
    """Where a query is in a layer: which window and token, and which tokens (a rectangle) are shown of the window.

    Attributes:
        shown: the numbers of the tokens, (height, width).
    """

    query: tuple[int, int]
    window: int
    token: int
    box: tuple[int, int, int, int]
    shown: Tensor


def locate_query(cut: Cut, query: tuple[int, int], height: int, width: int) -> Spot:
    """Find the token of a pixel, and what is shown around it, on an image of this size.

    Raises:
        UserError: the pixel lies outside of the image.
    """
    if reason := outside_image(query, height, width):
        raise UserError(reason)
    places, pixel = cut.places(), torch.tensor(query)
    inside = ((places <= pixel) & (pixel < places + cut.stride)).all(-1)
    window, token = (int(number) for number in inside.nonzero()[0])
    here = places[window]
    # The tokens of a window that lie where they would without the shift's wrap-around, seen from the query's.
    rows_of, columns_of = sides(cut.size)
    beside = torch.tensor([divmod(n, columns_of) for n in range(rows_of * columns_of)])
    in_place = here - here[token] == cut.stride * (beside - beside[token])
    on_image = (here > -cut.stride) & (here < torch.tensor([height, width]))
    numbers = (in_place & on_image).all(-1).nonzero()[:, 0]
    rows, columns = (len(set(side.tolist())) for side in beside[numbers].T)
    top, left = here[numbers[0]].tolist()
    box = (top, left, rows * cut.stride, columns * cut.stride)
    return Spot((query[0], query[1]), window, token, box, numbers.view(rows, columns))


def attention_maps(
    model: nn.Module,
    x: Tensor,
    attentions: Mapping[str, Attention],
    queries: list[tuple[int, int]],
    layers: list[str],
    heads: list[int] | None = None,
) -> list[AttentionMap]:
    """Rows of attention matrices for the tokens at some pixels, of exact attention and of methods in its place.

    The model runs with exact attention, and all methods are given the queries and keys that it has.

    Args:
        model: with windowed attentions; it has them back afterwards.
        x: one image (1, C, height, width).
        attentions: methods by the names that their maps get; ``exact`` is there in any case, and first.
        queries: rows and columns of pixels of x.
        layers: names of layers, as in ``nystra_bench.models.named_attention_sites``.
        heads: their numbers; None takes all.

    Returns:
        A map for each attention, layer, query and head, in this order.

    Raises:
        UserError: the model has no attention or does not tell where its windows lie; a layer, head or pixel does not
            exist; a method refuses the windows.
        MemoryError: the matrices of a window do not fit.
    """
    height, width = x.shape[-2:]
    known = list(sites_of(model))
    for layer in layers:
        if layer not in known:
            raise unknown("layer", layer, known)
    cuts = cuts_of(model, height, width)
    spots = {layer: [locate_query(cuts[layer], query, height, width) for query in queries] for layer in layers}
    methods = {ORIGINAL: ExactAttention()} | {n: a for n, a in attentions.items() if n != ORIGINAL}

    def look(layer: str):
        def look_here(q: Tensor, k: Tensor, window: Window) -> list[AttentionMap]:
            dtype = torch.promote_types(q.dtype, torch.float32)
            check_memory(window, q.shape[1], dtype)
            shown = _checked_heads(layer, q.shape[1], heads)
            call = q.to("cpu", dtype), k.to("cpu", dtype), window
            return [found for name, a in methods.items() for found in _maps(name, layer, a, call, spots[layer], shown)]

        return look_here

    found = look_at_layers(model, x, {layer: look(layer) for layer in layers})
    return [m for name in methods for layer in layers for m in found[layer] if m.attention == name]


def cuts_of(model: Any, height: int, width: int) -> dict[str, Cut]:
    """Where the windows of each layer lie on an image of this size.

    Raises:
        UserError: the model does not tell.
    """
    try:
        return model.cuts(height, width)
    except (AttributeError, NotImplementedError) as error:
        raise UserError(
            f"{type(model).__name__} does not tell where its windows lie on the image: accepted are models with a "
            "method cuts (nystra_bench.models.windows.WindowedModel)"
        ) from error


def _checked_heads(layer: str, count: int, heads: list[int] | None) -> list[int]:
    for head in heads or []:
        if not 0 <= head < count:
            raise UserError(f"head={head} does not exist in layer {layer}: accepted are 0 to {count - 1}")
    return list(range(count)) if heads is None else heads


def _maps(
    name: str,
    layer: str,
    attention: Attention,
    call: tuple[Tensor, Tensor, Window],
    spots: Iterable[Spot],
    heads: list[int],
) -> list[AttentionMap]:
    """Of one method in one layer; each window's matrix is made once."""
    windows = sorted({spot.window for spot in spots})
    rows: dict[int, Tensor] = {}
    matrices = window_matrices(attention.at_layer(layer), *call, windows)
    for window, matrix in zip(windows, matrices, strict=True):
        rows |= {n: matrix[:, spot.token].clone() for n, spot in enumerate(spots) if spot.window == window}
    return [
        AttentionMap(name, layer, head, spot.query, spot.box, *_shown(rows[n][head], spot))
        for n, spot in enumerate(spots)
        for head in heads
    ]


def _shown(row: Tensor, spot: Spot) -> tuple[np.ndarray, float]:
    values = row[spot.shown]
    return values.float().numpy(), float(row.double().sum() - values.double().sum())
