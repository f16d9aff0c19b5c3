"""``accelerate``: in each layer of a model the cheapest attention with which its output stays as near as is asked."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import cast

import numpy as np
import pandas as pd
from torch import Tensor, nn

from nystra_bench import models
from nystra_bench.api.comparison import compare
from nystra_bench.api.images import Image, forward, to_input
from nystra_bench.api.options import Attentions, check_sites, named
from nystra_bench.attention.calibration import ByLayer, choose
from nystra_bench.attention.sdpa import FusedAttention
from nystra_bench.errors import UserError
from nystra_bench.instruments.timer import Timing
from nystra_bench.models.sites import module_of
from nystra_bench.models.windows import WindowedModel
from nystra_bench.report.columns import number

CANDIDATES = (
    *(f"nystra_plus_fused(landmarks={landmarks})" for landmarks in (8, 16, 32)),
    *(f"nystra_plus_v5_fused(landmarks={landmarks}, exact_keys={2 * landmarks})" for landmarks in (16, 32, 64)),
)
"""What a layer may get beside exact attention, where nothing is said: version 4 while little is asked, else 5."""

NAME = "accelerated"

MARGIN = 2.0
"""dB by which the choice is closer than is asked, where nothing is said, since images differ: without a margin, a crop
of 32 x 32 pixels that the choice was not made on was 3.9 dB below the target."""


@dataclass
class Acceleration:
    """What ``accelerate`` chose, what is gained, and how sure that is; notebooks show it."""

    attention: ByLayer
    """What was plugged in; it fits other copies of the model, and windows of the same size on any image."""
    layers: pd.DataFrame
    """For each layer the ``attention`` that it got, and its operations, ``gflops``, beside ``gflops_exact``."""
    images: pd.DataFrame
    """For each image its ``deviation_psnr`` (dB), and whether the choice was made on it: ``chosen_on``."""
    target_deviation: float
    margin: float
    """dB by which the choice was made closer than ``target_deviation``."""
    timed: pd.Series | None
    """``latency_ms`` on the first image and the speed-ups with their intervals, as in ``compare``; None untimed."""

    def sentences(self) -> list[str]:
        exact = int((self.layers["attention"] == "exact").sum())
        gflops, before = self.layers["gflops"].sum(), self.layers["gflops_exact"].sum()
        told = [
            f"{len(self.layers) - exact} of {len(self.layers)} layers are replaced, {exact} stay exact; attention "
            f"takes {number(100 * gflops / before, 1)} % of the operations of exact attention.",
            f"Deviation, where {number(self.target_deviation, 1)} dB were asked for, with a margin of "
            f"{number(self.margin, 1)} dB: {self._deviations()}.",
        ]
        if self.timed is not None:
            told.append(
                f"{self._speedup('sdpa')} times as fast as with fused exact attention, {self._speedup('exact')} times "
                "as fast as with exact attention in separate operations (the whole model, on the first image)."
            )
        return told

    def _deviations(self) -> str:
        chosen = self.images.loc[self.images["chosen_on"], "deviation_psnr"]
        others = self.images.loc[~self.images["chosen_on"], "deviation_psnr"]
        told = f"at least {number(chosen.min(), 1)} dB on the images that the choice was made on"
        if others.empty:
            return f"{told}; there was no other image to check it on"
        return f"{told}, {number(others.min(), 1)} dB at least and {number(others.median(), 1)} in the middle on others"

    def _speedup(self, against: str) -> str:
        assert self.timed is not None
        value, low, high = (self.timed[f"speedup_vs_{against}{end}"] for end in ("", "_low", "_high"))
        return f"{number(value, 2)} ({number(low, 2)}–{number(high, 2)})"

    def __str__(self) -> str:
        return "\n".join(self.sentences())

    def _repr_html_(self) -> str:
        paragraphs = "".join(f"<p>{escape(sentence)}</p>" for sentence in self.sentences())
        return f"{paragraphs}{self.layers.to_html(float_format='%.3f')}{self.images.to_html(float_format='%.2f')}"


def accelerate(
    model: nn.Module,
    images: Image | Sequence[Image],
    target_deviation: float = 50.0,
    *,
    attentions: Attentions = CANDIDATES,
    margin: float = MARGIN,
    timing: Timing | None = Timing(),  # noqa: B008  it is frozen
) -> Acceleration:
    """Replace the attention of each layer by the cheapest with which the output stays near to the original.

    The choice is made on the first image and every other one after it, and for the worst of them
    (``attention.calibration.choose``); it is checked on the images between. Nothing is trained, and no clean image is
    looked at. Cost is counted in operations; where none of ``attentions`` does, fused exact attention stays.

    Args:
        model: of ``load_model``, or one that spandrel loaded whose architecture has an adapter; it is changed in place
            (``unplug`` undoes it).
        images: one or several such as the model is to restore; three or more tell how sure the deviation is.
        target_deviation: PSNR in dB that each output is to have at least with that of exact attention.
        attentions: what a layer may get, as for ``compare``.
        margin: dB by which the choice is made closer than that, for images that were not given.
        timing: how to time; None leaves it out.

    Raises:
        UserError: an argument does not fit, or another run is timing on this device.

    >>> model = load_model("swinir_denoise_w8")
    >>> image = next(load_task("denoise", sigma=25, limit=1, crop=32).samples()).degraded
    >>> gain = accelerate(model, image, 45, attentions=["nystra_plus(landmarks=16)"], timing=None)
    >>> bool(gain.images.deviation_psnr[0] > 44.9), len(gain.layers) == len(list_layers(model))
    (True, True)
    """
    check_sites(model, adapted_too=True)
    if isinstance(target_deviation, bool) or not 0 < target_deviation < 200:
        raise UserError(f"target_deviation={target_deviation} is out of range: accepted are 0 to 200 dB")
    if isinstance(margin, bool) or not 0 <= margin <= 50:
        raise UserError(f"margin={margin} is out of range: accepted are 0 to 50 dB")
    given = [images] if isinstance(images, (str, os.PathLike, np.ndarray, Tensor)) else list(images)
    if not given:
        raise UserError("images is empty: accepted are one image or several")
    candidates = named(attentions)
    models.plug(model, FusedAttention())
    module = cast(WindowedModel, module_of(model))  # what compare needs of one, adapted models have, too
    inputs = [to_input(image, module) for image in given]
    sites = models.named_attention_sites(module)
    choice = choose(sites, lambda x: forward(module, x), inputs[::2], candidates, target_deviation + margin, max)
    attention = ByLayer(choice.by_layer)
    models.plug(model, attention)
    timings = [timing, *[None] * (len(given) - 1)]  # of the first image alone
    rows = [
        compare(module, image, {NAME: attention}, metrics=["deviation_psnr"], timing=how)
        for image, how in zip(given, timings, strict=True)
    ]
    timed = None if timing is None else rows[0].loc[NAME]
    return Acceleration(
        attention, _layers(choice.record["layers"], choice.flops), _images(rows), target_deviation, margin, timed
    )


def _layers(labels: Mapping[str, str], flops: Mapping[str, tuple[int, int]]) -> pd.DataFrame:
    rows = {name: (label, flops[name][0] / 1e9, flops[name][1] / 1e9) for name, label in labels.items()}
    columns = ["attention", "gflops", "gflops_exact"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("layer")


def _images(rows: Sequence[pd.DataFrame]) -> pd.DataFrame:
    deviations = [float(row.loc[NAME, "deviation_psnr"]) for row in rows]
    chosen_on = [place % 2 == 0 for place in range(len(rows))]
    return pd.DataFrame({"deviation_psnr": deviations, "chosen_on": chosen_on}).rename_axis("image")
