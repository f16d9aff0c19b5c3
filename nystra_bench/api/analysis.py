"""``spectra``, ``attention_maps`` and ``time_attention``: what the sweeps of these names measure, in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
import torch
from torch import nn

from nystra_bench.api.images import Image, to_array, to_input
from nystra_bench.api.maps import AttentionMaps
from nystra_bench.api.options import Attentions, check_sites, list_layers, named
from nystra_bench.errors import UserError, unknown
from nystra_bench.instruments.timer import Timing
from nystra_bench.words import ORIGINAL

METHODS = ("nystra", "nystra_plus")
"""What stands beside exact attention where nothing is said."""


def spectra(
    model: nn.Module,
    image: Image,
    attentions: Attentions = METHODS,
    *,
    windows: int = 2,
    values: int = 50,
    seed: int = 0,
) -> pd.DataFrame:
    """Singular values of the attention matrices of a model on an image, in every layer and head.

    The model runs with exact attention; the methods are given the queries and keys that it has there.

    Args:
        model: of ``load_model``; it is left as it was.
        image: what the model restores; see ``Image``.
        attentions: as for ``compare``; exact attention is there in any case, and first.
        windows: how many windows of each layer are looked at, a seeded choice.
        values: how many singular values are kept.

    Returns:
        A row for each attention, layer and head, means over the windows: ``singular_values`` (a list, falling),
        ``energy_5``, ``energy_10``, ``energy_20`` (the share of squared singular values in the first so many),
        ``rank_90``, ``rank_95``, ``rank_99`` (how many hold so many percent), ``effective_tokens``, ``self_mass``,
        ``logit_min``, ``logit_max``, ``logit_std`` (of exact attention), ``matrix_mse`` and ``spectral_error``
        (against exact attention). docs/SCHEMA.md says more.

    Raises:
        UserError: an argument does not fit, or an attention refuses the windows.

    >>> model = load_model("swinir_denoise_w8")
    >>> sample = next(load_task("denoise", sigma=25, limit=1, crop=64).samples())
    >>> table = spectra(model, sample.degraded, "identity", windows=1)
    >>> float(table[table.attention == "identity"].rank_99.median())  # of the unit matrix all singular values are 1
    64.0
    """
    from nystra_bench.instruments.spectra import attention_spectra

    check_sites(model)
    for name, number in (("windows", windows), ("values", values)):
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise UserError(f"{name}={number} is out of range: accepted are whole numbers from 1 on")
    chosen = named(attentions)
    return pd.DataFrame(attention_spectra(model, to_input(image, model), chosen, windows, values, seed))


def attention_maps(
    model: nn.Module,
    image: Image,
    queries: Sequence[tuple[int, int]],
    layers: Sequence[str | int] | str | int,
    heads: Sequence[int] | int | None = None,
    attentions: Attentions = METHODS,
) -> AttentionMaps:
    """What pixels attend to: rows of attention matrices, put back on the image.

    Args:
        model: of ``load_model``; it is left as it was.
        image: what the model restores; see ``Image``.
        queries: rows and columns of pixels.
        layers: names of layers, or their numbers in ``list_layers(model)``, from 0 on or from -1 back.
        heads: their numbers, from 0 on; None takes all.
        attentions: as for ``compare``; exact attention is there in any case, and first.

    Returns:
        A list with a map for each attention, layer, query and head: ``values``, the weights in tokens, which fill the
        ``box`` (top, left, height, width in pixels), and ``outside``, the weight that is not shown. Notebooks show it
        as pictures, ``figures()`` gives them, ``table()`` how much of the attention goes to other tokens.

    Raises:
        UserError: a layer, head or pixel does not exist, or an attention refuses the windows.

    >>> model = load_model("swinir_denoise_w8")
    >>> sample = next(load_task("denoise", sigma=25, limit=1, crop=64).samples())
    >>> maps = attention_maps(model, sample.degraded, [(20, 30)], layers=0, heads=0)
    >>> [found.attention for found in maps], maps[0].values.shape
    (['exact', 'nystra', 'nystra_plus'], (8, 8))
    """
    from nystra_bench.instruments.attention_maps import attention_maps as find
    from nystra_bench.measure.maps import layer_name

    known = list_layers(model)
    wanted = [layers] if isinstance(layers, (str, int)) else layers
    named_layers = [layer_name(layer, known) for layer in wanted]
    heads = [heads] if isinstance(heads, int) else heads if heads is None else list(heads)
    x = to_input(image, model)
    pixels = [_pixel(query) for query in queries]
    found = find(model, x, named(attentions), pixels, named_layers, heads)
    return AttentionMaps(found, to_array(image, x.shape[1]))


def time_attention(
    attentions: Attentions = (ORIGINAL, "sdpa", *METHODS),
    sizes: Iterable[int] | int = (64, 256, 1024, 4096),
    *,
    heads: int = 6,
    dim: int = 30,
    mode: str = "window",
    device: str = "cpu",
    dtype: str | torch.dtype = "float32",
    timing: Timing | None = None,
    budget_s: float = 2.0,
    seed: int = 0,
    logit_std: float = 5.0,
) -> pd.DataFrame:
    """Time and peak memory of attentions alone against the number of tokens: no model, no weights.

    Queries, keys and values are smooth maps whose logits have the standard deviation ``logit_std``; the windows have
    neither position bias nor shift mask.

    Args:
        attentions: as for ``compare``.
        sizes: tokens of a window, N: squares.
        heads, dim: so many heads of so many channels; those of SwinIR-M where nothing is said.
        mode: ``window``, one window of N tokens; ``image``, a map of 256 x 256 tokens cut into windows of N.
        timing: how each size is timed.
        budget_s: seconds that a call may take; a method that would take longer ends there, with the reason.

    Returns:
        A row for each attention and size: ``tokens``, ``side``, ``windows``, ``median_ms``, ``samples_ms``,
        ``peak_mb``, ``first_ms``, ``setup_ms``, ``noise``, ``unstable``, ``reason``, … (docs/SCHEMA.md).

    Raises:
        UserError: an argument does not fit; another run is timing on this device.

    >>> table = time_attention(["exact", "nystra"], 256, heads=1, dim=8)
    >>> list(table.attention), list(table.tokens)
    (['exact', 'nystra'], [256, 256])
    """
    from nystra_bench.instruments.environment import kept_memory
    from nystra_bench.instruments.scaling import time_attention as measure
    from nystra_bench.sweep.locks import device_lock

    for name, number in (("heads", heads), ("dim", dim)):
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise UserError(f"{name}={number} is out of range: accepted are whole numbers from 1 on")
    precision = dtype if isinstance(dtype, torch.dtype) else _PRECISIONS.get(dtype)
    if precision is None:
        raise unknown("dtype", dtype, _PRECISIONS)
    if device not in ("cpu", "cuda"):
        raise unknown("device", device, ["cpu", "cuda"])
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: PyTorch finds no CUDA GPU on this machine: accepted is cpu")
    chosen = named(attentions)
    with device_lock(device, quiet=True), kept_memory():
        records = measure(chosen, sizes, heads, dim, mode, device, precision, timing, budget_s, seed, logit_std)
    return pd.DataFrame(records)


_PRECISIONS = {name: getattr(torch, name) for name in ("float32", "float64", "float16", "bfloat16")}


def _pixel(query: Any) -> tuple[int, int]:
    try:
        row, column = query
        return int(row), int(column)
    except (TypeError, ValueError) as error:
        raise UserError(f"query={query} is no pixel: accepted are a row and a column, (20, 30)") from error
