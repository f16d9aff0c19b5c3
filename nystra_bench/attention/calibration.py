"""Which method a layer gets: the least work with which a model's output stays as near to the original as is asked."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import fmean

import torch
from torch import Tensor

from nystra_bench.attention.base import Attention, Site, Window
from nystra_bench.attention.sdpa import FusedAttention

CALIBRATION_IMAGES = 2


class CalibratedAttention(Attention):
    """A method that, where a deviation is asked for, chooses its parameters for each layer on a few images.

    Args:
        target_deviation: PSNR in dB that the output is to keep with that of exact attention; None for the parameters as
            they are given, in all layers.

    Raises:
        ValueError: the target is out of its range.
    """

    def __init__(self, target_deviation: float | None):
        super().__init__()
        if target_deviation is not None and not 0 < target_deviation < 200:
            raise ValueError(f"target_deviation={target_deviation} is out of range: accepted are 0 to 200 dB, or null")
        self.target_deviation = target_deviation
        self.calibration_images = 0 if target_deviation is None else CALIBRATION_IMAGES
        self._by_layer: dict[str, Attention] = {}

    def candidates(self) -> dict[str, Attention]:
        """What a layer may get beside fused exact attention, by what it is called in the record."""
        raise NotImplementedError

    def calibrate(self, sites, restore, images) -> dict:
        if self.target_deviation is None:
            return {}
        choice = choose(sites, restore, images, self.candidates(), self.target_deviation)
        self._by_layer = choice.by_layer
        return choice.record

    def at_layer(self, name: str) -> Attention:
        if self.target_deviation is None:
            return self
        if name not in self._by_layer:
            raise ValueError(f"target_deviation={self.target_deviation} needs the method to be calibrated first")
        return self._by_layer[name]

    def told_by_layers(self) -> dict[str, str]:
        """What the first attention that was chosen and has something to tell of how it ran tells."""
        return next((told for attention in self._by_layer.values() if (told := attention.about())), {})


@dataclass
class Candidate:
    """A method in a layer: its operations, and what it alone does to the output (mean squared error, 0 to 1)."""

    label: str
    attention: Attention
    flops: int
    error: float


@dataclass
class Chosen:
    """What ``choose`` found: the attention of each layer, and what is recorded of it (plain JSON)."""

    by_layer: dict[str, Attention] = field(default_factory=dict)
    record: dict = field(default_factory=dict)
    flops: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Operations of each layer on these images: of what was chosen, and of exact attention."""


class ByLayer(Attention):
    """An attention of its own for each layer of one model, by the layers' names."""

    def __init__(self, by_layer: Mapping[str, Attention]):
        super().__init__()
        self.by_layer = dict(by_layer)  # not modules of this one: it holds nothing of a layer

    def at_layer(self, name: str) -> Attention:
        if name not in self.by_layer:
            raise ValueError(f"the layer {name} has no attention chosen for it")
        return self.by_layer[name]


class Recorder(Attention):
    """Exact attention that keeps the shapes it is called with."""

    def __init__(self):
        super().__init__()
        self.original = FusedAttention()
        self.calls: list[tuple[int, ...]] = []
        self.sizes: set[tuple[int, int]] = set()

    def forward(self, q: Tensor, k: Tensor, v: Tensor, window: Window) -> Tensor:
        self.calls.append((q.shape[0], q.shape[1], q.shape[2], q.shape[3], v.shape[3]))
        self.sizes.add((window.height, window.width))
        return self.original(q, k, v, window)

    def operations(self, attention: Attention) -> int:
        """Those of an attention in the calls that were made."""
        return sum(attention.flops(*call) for call in self.calls)


@torch.inference_mode()
def choose(
    sites: Mapping[str, Site],
    restore: Callable[[Tensor], Tensor],
    images: list[Tensor],
    candidates: Mapping[str, Attention],
    target_deviation: float,
    pool: Callable[[list[float]], float] = fmean,
) -> Chosen:
    """Choose a candidate for each layer such that all layers together reach the target on these images.

    Every candidate is tried in every layer alone. From the cheapest everywhere on, layers are upgraded one by one,
    always where an operation more takes away most error; of the states on this path the first is taken that reaches
    the target, which is measured with all layers in place. Fused exact attention is the last candidate of every layer,
    so every target is reached. No weight is trained, and no clean image is looked at.

    Args:
        sites: the places of the attentions (with ``.attention``), by layer name; they have their attentions back after.
        restore: the model.
        images: its inputs, (1, C, height, width).
        candidates: methods by what they are called in the record.
        target_deviation: PSNR in dB between the outputs and those of exact attention, both clipped to 0..1.
        pool: makes one of the images' mean squared errors: their mean, or ``max`` for the worst image.

    Raises:
        ValueError: there are no images.
    """
    if not images:
        raise ValueError(f"target_deviation={target_deviation} needs images to calibrate on, and the task has none")
    started = time.perf_counter()
    before = {name: site.attention for name, site in sites.items()}
    try:
        recorders = {name: Recorder() for name in sites}
        _place(sites, recorders)
        references = [restore(image).clamp(0, 1) for image in images]

        def error(attentions: Mapping[str, Attention]) -> float:
            _place(sites, attentions)
            errors = [
                (restore(x).clamp(0, 1) - y).square().mean().item() for x, y in zip(images, references, strict=True)
            ]
            return max(pool(errors), torch.finfo(torch.float32).tiny)

        exact = FusedAttention()
        everywhere: dict[str, Attention] = dict.fromkeys(sites, exact)
        options = {}
        for name, recorder in recorders.items():
            usable = {label: a for label, a in candidates.items() if not any(a.refuses(*s) for s in recorder.sizes)}
            tried = [
                Candidate(label, a, recorder.operations(a), error({**everywhere, name: a}))
                for label, a in usable.items()
            ]
            options[name] = _worthwhile([*tried, Candidate("exact", exact, recorder.operations(exact), 0.0)])
        state, measured = _first_that_reaches(
            _upgrades(options), lambda s: error({n: o.attention for n, o in s.items()}), 10 ** (-target_deviation / 10)
        )
    finally:
        _place(sites, before)
    return Chosen(
        {name: option.attention for name, option in state.items()},
        {
            "target_deviation": target_deviation,
            # of all layers together on these images; None where every layer is exact
            "deviation": -10 * math.log10(measured) if measured else None,
            "gflops": sum(option.flops for option in state.values()) / 1e9,
            "seconds": round(time.perf_counter() - started, 2),
            "layers": {name: option.label for name, option in state.items()},
        },
        {name: (option.flops, recorders[name].operations(exact)) for name, option in state.items()},
    )


def _place(sites: Mapping[str, Site], attentions: Mapping[str, Attention]) -> None:
    for name, site in sites.items():
        site.attention = attentions[name]


def _worthwhile(options: list[Candidate]) -> list[Candidate]:
    """By rising cost, those that no cheaper one equals."""
    kept: list[Candidate] = []
    for option in sorted(options, key=lambda o: (o.flops, o.error)):
        if not kept or option.error < kept[-1].error:
            kept.append(option)
    return kept


def _upgrades(options: dict[str, list[Candidate]]) -> list[dict[str, Candidate]]:
    """The states from the cheapest to the dearest, each with one layer more upgraded."""
    state = {name: of_layer[0] for name, of_layer in options.items()}
    path = [state]
    while True:
        steps = [
            ((state[name].error - option.error) / (option.flops - state[name].flops), name, option)
            for name, of_layer in options.items()
            for option in of_layer
            if option.error < state[name].error
        ]
        if not steps:
            return path
        _, name, option = max(steps, key=lambda step: step[0])
        state = {**state, name: option}
        path.append(state)


def _first_that_reaches(path: list[dict], error: Callable[[dict], float], allowed: float) -> tuple[dict, float]:
    """By bisection, as errors fall along the path; the last state, which is exact, needs no trial."""
    low, high, measured = 0, len(path) - 1, 0.0
    while low < high:
        middle = (low + high) // 2
        found = error(path[middle])
        if found <= allowed:
            high, measured = middle, found
        else:
            low = middle + 1
    return path[high], measured
