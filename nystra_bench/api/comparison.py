"""``compare``: how far replacements take a model's output from the original, and what they cost, on one image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nystra_bench.api.images import Image, channels_of, forward, to_array, to_input
from nystra_bench.api.options import Attentions, catalogue, check_sites, load_attention, named, own_attention
from nystra_bench.api.race import Race
from nystra_bench.api.subject import Result, Subject
from nystra_bench.api.table import Comparison
from nystra_bench.attention.base import Attention
from nystra_bench.configuration import instantiate
from nystra_bench.errors import UserError, unknown
from nystra_bench.instruments.timer import Timing
from nystra_bench.metrics.base import Metric, SetMetric
from nystra_bench.metrics.conventions import CONVENTIONS, Convention
from nystra_bench.models.images import as_image
from nystra_bench.models.windows import WindowedModel
from nystra_bench.words import ORIGINAL, REFERENCES, RELEASED

ATTENTIONS = ("exact", "sdpa", "identity", "nystra", "nystra_plus")
"""What is compared where nothing is said: the references, PnP-Nystra as published, and ours."""

_DEFAULT_METRICS = {"truth": ("psnr", "ssim"), ORIGINAL: ("deviation_psnr", "deviation_ssim"),
                    RELEASED: ("native_deviation_psnr",)}  # fmt: skip
"""By what they compare with."""


def compare(
    model: WindowedModel,
    image: Image,
    attentions: Attentions = ATTENTIONS,
    *,
    clean: Image | None = None,
    released: WindowedModel | None = None,
    metrics: Sequence[str] | None = None,
    convention: str | Convention = "rgb8",
    timing: Timing | None = Timing(),  # noqa: B008  it is frozen
    seed: int = 0,
) -> Comparison:
    """Put attentions into a model, one after the other: outputs, their deviations from the original, and latencies.

    The original is the same model with exact attention. Metrics and timing are those of the sweeps
    (docs/METHODOLOGY.md): all attentions run once in each round, in random order, with exact attention twice, fused
    exact attention (``sdpa``) and no attention at all (``identity``) beside them. Afterwards the model is as it was.

    Args:
        model: of ``load_model``, on any device, in any floating precision. In half precision the original is the same
            model in float32.
        image: to be restored; see ``Image``.
        attentions: names, ``"nystra(landmarks=8)"`` for parameters, ``Attention`` objects, or a mapping of what they
            are to be called to one of these.
        clean: the true image, ``scale`` times as large, where it is known.
        released: the model in its own window, where ``model`` has another: a further reference.
        metrics: names of ``configs/metric``; by default PSNR and SSIM against whatever is given.
        convention: how ``psnr`` and ``ssim`` look at images (``metrics/conventions.py``, or that of a task).
        timing: how to time; None leaves it out.
        seed: of the order within a round.

    Returns:
        A data frame with a row for each attention and the columns of a sweep's table.csv (docs/SCHEMA.md); ``status``
        and ``reason`` say why numbers are missing. Notebooks show it with its pictures, ``figure()`` gives these.

    Raises:
        UserError: an argument does not fit; another run is timing on this device.

    >>> model = load_model("swinir_denoise_w8")
    >>> sample = next(load_task("denoise", sigma=25, limit=1, crop=64).samples())
    >>> table = compare(model, sample.degraded, ["exact", "identity"], clean=sample.clean, timing=None)
    >>> list(table.columns)
    ['deviation_psnr', 'deviation_ssim', 'psnr', 'ssim', 'status', 'reason']
    >>> float(table.deviation_psnr["exact"]), bool(table.psnr["identity"] < table.psnr["exact"])
    (inf, True)
    """
    check_sites(model)
    references = {name: load_attention(name) for name in REFERENCES}
    chosen = named(attentions, references)
    _check_names(chosen, references)
    if released is model:
        raise UserError("released is the model itself: accepted is another one, load_model(NAME), in its own window")
    subject = Subject(model, to_input(image, model), released)
    scores = Scores(subject, clean, metrics, convention)
    with own_attention(model):
        original = subject.original(references[ORIGINAL])
        results = {label: subject.restore(attention) for label, attention in chosen.items()}
        found = scores.of(results, original)
        about: dict[str, Any] = {"device": subject.device, "dtype": str(subject.x.dtype).removeprefix("torch.")}
        if timing is not None:
            runnable = {label: chosen[label] for label, result in results.items() if result.output is not None}
            about |= Race(subject, references, runnable, timing, seed).add_to(found)
    outputs = {label: result.output for label, result in results.items() if result.output is not None}
    exact = [label for label, attention in chosen.items() if attention.exact]
    pictures = {"input": as_image(subject.x), "clean": scores.clean, f"original\n({ORIGINAL})": original}
    return Comparison.of(found, outputs, pictures, exact, scores.described, about)


def _check_names(chosen: Mapping[str, Attention], references: Mapping[str, Attention]) -> None:
    """Hold the names of references to the references."""
    for label, attention in chosen.items():
        role = label.removesuffix("_again")  # what is timed twice
        if role in (*references, RELEASED) and attention is not references.get(label):
            raise UserError(f"attentions: {label} is the name of a reference: accepted is another name for this one")


class Scores:
    """The metrics of outputs against what is known: the original, the clean image, the released model's output."""

    def __init__(
        self, subject: Subject, clean: Image | None, metrics: Sequence[str] | None, convention: str | Convention
    ):
        if not isinstance(convention, Convention):
            if convention not in CONVENTIONS:
                raise unknown("convention", convention, CONVENTIONS)
            convention = CONVENTIONS[convention]
        self.subject, self.convention = subject, convention
        self.clean = None if clean is None else to_array(clean, channels_of(subject.model), "clean")
        self._check_size()
        self.metrics = self._metrics(metrics)
        self.described = {name: metric.describe(convention) for name, metric in self.metrics.items()}

    def of(self, results: Mapping[str, Result], original: np.ndarray) -> dict[str, dict[str, Any]]:
        """For each attention its numbers, status and reason."""
        targets = {"truth": self.clean, ORIGINAL: original, RELEASED: self._released()}
        return {label: self._numbers(result, targets) | result.outcome for label, result in results.items()}

    def _numbers(self, result: Result, targets: Mapping[str, np.ndarray | None]) -> dict[str, float]:
        if result.output is None:
            return dict.fromkeys(self.metrics, np.nan)
        known = {name: target for name, target in targets.items() if target is not None}  # others have no metric
        return {name: m(result.output, known[m.against], self.convention) for name, m in self.metrics.items()}

    def _released(self) -> np.ndarray | None:
        model = self.subject.released
        if model is None or RELEASED not in {metric.against for metric in self.metrics.values()}:
            return None
        parameter = next(model.parameters())
        return as_image(forward(model, self.subject.x.to(parameter.device, parameter.dtype)))

    def _check_size(self) -> None:
        scale = getattr(self.subject.model, "scale", 1)
        height, width = (scale * side for side in self.subject.x.shape[-2:])
        if self.clean is not None and self.clean.shape[:2] != (height, width):
            had = "×".join(map(str, self.clean.shape[:2]))
            wanted = f"{height}×{width}, {scale} times the image"
            raise UserError(f"clean of {had} pixels does not fit: accepted is one of {wanted}")

    def _metrics(self, names: Sequence[str] | None) -> dict[str, Metric]:
        known = {ORIGINAL: True, "truth": self.clean is not None, RELEASED: self.subject.released is not None}
        if names is None:
            names = [name for against in (ORIGINAL, "truth", RELEASED) if known[against]
                     for name in _DEFAULT_METRICS[against]]  # fmt: skip
        chosen = catalogue().choose("metrics", "metric", list(names))
        found = {name: instantiate(config) for name, config in chosen.items()}
        for name, metric in found.items():
            if isinstance(metric, SetMetric):
                raise UserError(f"metrics={name} is of a set of images: accepted are metrics of one image")
            if not known[metric.against]:
                argument = {"truth": "clean=", RELEASED: "released="}[metric.against]
                raise UserError(f"metrics={name} needs {argument}: accepted are metrics of what is given")
            if reason := metric.available():
                raise UserError(f"metrics={name}: {reason}: accepted are metrics that are available here")
        return found
