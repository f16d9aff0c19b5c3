"""Quality: metrics of every image's output, against the clean image and against the original's output."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nystra_bench.configuration import instantiate
from nystra_bench.measure.base import AXES, Circumstances, Measured, Measurement, number
from nystra_bench.metrics.base import Accumulator, Metric, SetMetric
from nystra_bench.metrics.psnr import Psnr
from nystra_bench.report.column import Column
from nystra_bench.words import ORIGINAL, RELEASED

if TYPE_CHECKING:
    from nystra_bench.sweep.workbench import Job, Workbench
    from nystra_bench.tasks.base import Sample

FIRST = ["psnr", "ssim", "input_psnr", "input_ssim"]
FIRST += ["deviation_psnr", "deviation_ssim", "deviation_rms", "deviation_max", "native_deviation_psnr"]
"""Metrics that table.csv has even where they were not measured, in this order."""


ABSURD_DB, FINE_DB = 3.0, 50.0
"""By so much a released model's output may be farther from the clean image than its input, where this is not all but
equal to it: an unusual image, say."""


class Quality(Measurement):
    """Every metric is a part of the value: one that is new is computed alone, and the others stay."""

    needs = AXES
    execution = ("runtime", "memory_format")  # images are restored one by one, whatever the batch
    by_image = True
    place = 30
    columns = (
        Column("images", "images", "Number of images the quality is a mean over.", 0),
        Column("identical", "identical", "Images that come out as exact attention gives them, to the last bit. Their "
               "deviation is infinite, and the mean is over the others.", 0),
    )  # fmt: skip
    row_columns = ("image", "height", "width", "metric", "value")

    @property
    def names(self) -> tuple[str, ...]:
        return ("images", *FIRST)

    def parts(self, known: Circumstances) -> dict[str, dict]:
        return {name: _identity(about, known) for name, about in known.metrics.items() if not about.get("absent")}

    def run(self, bench: Workbench, jobs: list[Job]) -> None:
        # Data sets can be large: reference outputs are kept on disk.
        with bench.store.scratch() as folder:
            comparison = Comparison(bench, folder)
            bench.each(jobs, lambda _, job: comparison.measure(job, self))

    # ----------------------------------------------------------------- reading

    def only(self, value: Mapping, parts: set[str] | None) -> Mapping:
        if parts is None:
            return value
        images = [image | _part(image, parts) for image in value["images"]]
        describe = {name: about for name, about in value.get("describe", {}).items() if name in parts}
        return {**value, "images": images, "set": _part(value.get("set", {}), parts), "describe": describe}

    def scalars(self, value: Mapping, cell: Mapping) -> dict[str, Any]:
        """Means over the images, and the numbers of the whole set; the degraded input's are called ``input_…``.

        ``identical`` is there where some images, but not all, are as the original's to the last bit.
        """
        collected: dict[str, list[float]] = defaultdict(list)
        for image in value["images"]:
            for name, found in _metrics(image):
                collected[name].append(number(found))
        of_set = {name: number(found) for name, found in _metrics(value.get("set", {}))}
        identical = collected.get("deviation_psnr", []).count(math.inf)
        counts = {"images": len(value["images"])}
        counts |= {"identical": identical} if 0 < identical < len(collected["deviation_psnr"]) else {}
        better = {name for name, about in self.describe(value).items() if about.get("higher_is_better")}
        means = {name: mean(found, name.removeprefix("input_") in better) for name, found in collected.items()}
        return counts | means | of_set

    def rows(self, value: Mapping, cell: Mapping) -> list[dict]:
        return [
            {"image": image["id"], "height": image.get("height"), "width": image.get("width")}
            | {"metric": name, "value": number(found)}
            for image in value["images"]
            for name, found in _metrics(image)
        ]

    def describe(self, value: Mapping) -> dict[str, dict]:
        return value.get("describe", {})

    def unavailable(self, value: Mapping) -> dict[str, str]:
        return value.get("unavailable", {})


def _identity(about: Mapping, known: Circumstances) -> dict:
    """What decides a metric's numbers: version, parameters, and which attention is the original, if any is."""
    identity = {"version": about["version"], "params": about["params"]}
    return identity | ({"reference": known.references[ORIGINAL]} if about["against"] == ORIGINAL else {})


def _part(of: Mapping, names: set[str]) -> dict:
    """The numbers of these metrics, of an image or of the set."""
    return {kind: {n: x for n, x in of.get(kind, {}).items() if n in names} for kind in ("metrics", "input")}


def mean(numbers: list[float], higher_is_better: bool = False) -> float:
    """The mean; ``nan`` where a number is, or where infinities of both signs meet.

    Infinite where a number is infinitely bad. Images that are infinitely good, being identical to what they are
    compared with, count only where all are: of the others the mean would say nothing.
    """
    counted = [x for x in numbers if not (higher_is_better and x == math.inf)] or numbers
    with np.errstate(invalid="ignore"):
        return float(np.mean(counted))


def _metrics(part: Mapping) -> list[tuple[str, Any]]:
    """Names of columns and numbers, of one image or of the set."""
    own = list(part.get("metrics", {}).items())
    return own + [(f"input_{name}", found) for name, found in part.get("input", {}).items()]


# --------------------------------------------------------------------------- in the worker


class Comparison:
    """What the cells of a session share while outputs are compared.

    Args:
        folder: for the outputs that deviations are measured from.
    """

    def __init__(self, bench: Workbench, folder: Path):
        self.bench, self.task = bench, bench.task
        self.originals = OriginalOutputs(bench, folder)
        self.metrics: dict[str, Metric] = {name: instantiate(c) for name, c in bench.request["metrics"].items()}
        self.input_scores: dict[tuple[str, str], float] = {}

    @cached_property
    def unavailable(self) -> dict[str, str]:
        scale = self.task.scale
        sizes = [(height * scale, width * scale) for height, width in self.task.sizes()]
        reasons = {n: m.available() or m.too_large_for(sizes, self.task.convention) for n, m in self.metrics.items()}
        return {name: reason for name, reason in reasons.items() if reason}

    def measure(self, job: Job, quality: Quality) -> Measured | None:
        """A cell's value; None where this job is to measure a part of the images, which is kept."""
        stored = self.bench.store.result(job.cell.key)
        had = stored["value"] if stored and stored["status"] == "done" else {}
        wanted = quality.lacking(had, job.parts)
        pass_ = Pass(self, job, {name: self.metrics[name] for name in wanted if name not in self.unavailable})
        if self.bench.images:
            pass_.keep(slice(*self.bench.images))
            return None
        value = _merged(had, pass_.run(), wanted)
        describe = {n: m.describe(self.task.convention) for n, m in self.metrics.items() if n not in self.unavailable}
        reason = _not_finite(value["images"])
        return Measured(
            value | {"describe": describe, "unavailable": self.unavailable},
            "nonfinite" if reason else "done",
            reason or self._absurd(job, *pass_.first_output),
            attach=pass_.save_output,
        )

    def _absurd(self, job: Job, sample: Sample, output: np.ndarray) -> str | None:
        """Why a released model's own output cannot be meant so, as a sentence; None for any other cell."""
        is_released = (self.bench.request["position_bias"] or RELEASED) == RELEASED and job.attention.exact
        if not is_released:
            return None
        images = self.task.as_output(sample.degraded), output
        before, after = (Psnr()(image, sample.clean, self.task.convention) for image in images)
        if after >= min(before, FINE_DB) - ABSURD_DB:
            return None
        return (
            f"the output of the model as released is farther from the clean image ({after:.1f} dB in {sample.id}) than "
            f"its input ({before:.1f} dB): were the weights trained for this task, and on this range of values "
            "(model.image_range)?"
        )


class Pass:
    """One pass of a cell over all images, for the metrics that are wanted of it.

    What is measured of an image is kept in the cell's journal: its scores, and its features for the metrics of whole
    sets. So a killed pass goes on behind the last image, and several jobs may each measure some of them.
    """

    def __init__(self, comparison: Comparison, job: Job, metrics: dict[str, Metric]):
        self.of, self.job = comparison, job
        self.bench, self.task = comparison.bench, comparison.task
        self.ids = self.task.ids()
        self.of_images = {name: m for name, m in metrics.items() if not isinstance(m, SetMetric)}
        self.of_sets = {name: m for name, m in metrics.items() if isinstance(m, SetMetric)}
        header = {"parts": {name: job.parts[name] for name in sorted(metrics)}}
        part = "-".join(map(str, self.bench.images or ()))
        self.journal = self.bench.store.journal(job.cell, header, part)
        self.done = {record["id"]: record for record in self.journal.records() if self._is_whole(record["id"])}

    def run(self) -> dict:
        """Scores of all images; those that are kept are not computed again."""
        self.keep(slice(None))
        self._save_panel_images(self.first_output[0])
        value: dict[str, Any] = {"images": [self.done[name] for name in self.ids]}
        return value | ({"set": self._scores_of_set()} if self.of_sets else {})

    def keep(self, which: slice) -> None:
        """Measure those of these images that are not kept yet, and keep each as it is done."""
        meant = self.ids[which]
        left = {name for name in meant if name not in self.done}
        kept = len(meant) - len(left)
        for place, sample in enumerate(self.task.chosen(left), kept + 1):
            output = self._output(sample)
            if sample.id == self.ids[0]:
                self.first_output = sample, output
            if self.of_sets:
                self.journal.keep(sample.id, self._features(sample, output))
            self.done[sample.id] = self._scores(sample, output)
            self.journal.append(self.done[sample.id])
            self.bench.alive(self.job, place, len(meant), kept)

    def _is_whole(self, name: str) -> bool:
        """Whether all that the metrics of whole sets need of an image is kept, too."""
        return not self.of_sets or self.journal.kept(name) is not None

    def save_output(self, folder: Path) -> None:
        """Keep the output of the first image."""
        _save_output(folder, *self.first_output)

    @cached_property
    def first_output(self) -> tuple[Sample, np.ndarray]:
        """The first image with the output for it, which is made again where another process measured it."""
        sample = next(iter(self.task.chosen(self.ids[:1])))
        return sample, self._output(sample)

    def _output(self, sample: Sample) -> np.ndarray:
        """The attention's output, (height, width, C) float32; the exact attention's own deviation is measured, too."""
        from nystra_bench.models import plug

        return self.bench.restore(plug(self.bench.model, self.job.attention), sample)

    def _scores(self, sample: Sample, output: np.ndarray) -> dict:
        convention, height, width = self.task.convention, *sample.clean.shape[:2]
        of = {name: m(output, self._target(m.against, sample), convention) for name, m in self.of_images.items()}
        own = {"id": sample.id, "height": height, "width": width, "finite": bool(np.isfinite(output).all())}
        against_truth = {name: m for name, m in self.of_images.items() if m.against == "truth"}
        return own | {"metrics": of, "input": {n: self._of_input(n, m, sample) for n, m in against_truth.items()}}

    def _of_input(self, name: str, metric: Metric, sample: Sample) -> float:
        """The same in every cell of a session."""
        known = self.of.input_scores
        if (sample.id, name) not in known:
            degraded = self.task.as_output(sample.degraded)
            known[sample.id, name] = metric(degraded, sample.clean, self.task.convention)
        return known[sample.id, name]

    def _open_sets(self) -> Iterator[tuple[str, str, Accumulator, str]]:
        """Of each number of a set: part and name, what collects the images, and what they are compared with.

        The parts are ``metrics``, of the outputs, and ``input``, of the degraded images.
        """
        for name, metric in self.of_sets.items():
            for part in ("metrics", "input") if metric.against == "truth" else ("metrics",):
                yield part, name, metric.open(self.task.convention), metric.against

    def _features(self, sample: Sample, output: np.ndarray) -> dict[str, np.ndarray]:
        """What is kept of an image for the metrics of whole sets."""
        images = {"metrics": output, "input": self.task.as_output(sample.degraded)}
        found: dict[str, np.ndarray] = {}
        for part, name, accumulator, against in self._open_sets():
            pair = accumulator.features(images[part], self._target(against, sample))
            found |= {_entry(part, name, side): features for side, features in zip(SIDES, pair, strict=True)}
        return found

    def _scores_of_set(self) -> dict[str, dict[str, float]]:
        opened = list(self._open_sets())
        for image in self.ids:
            found = self.journal.kept(image)
            if found is None:
                raise OSError(f"the features of {image} cannot be read any more: accepted is to measure the cell again")
            for part, name, accumulator, _ in opened:
                accumulator.take(*(found[_entry(part, name, side)] for side in SIDES))
        scores: dict[str, dict[str, float]] = {"metrics": {}, "input": {}}
        for part, name, accumulator, _ in opened:
            scores[part][name] = accumulator.result()
        return scores

    def _target(self, against: str, sample: Sample) -> np.ndarray:
        return sample.clean if against == "truth" else self.of.originals.get(against, sample)

    def _save_panel_images(self, sample: Sample) -> None:
        path = self.bench.store.panel_images(self.job.cell, sample.id)
        if not path.exists():
            arrays = {"input": self.task.as_output(sample.degraded), "clean": sample.clean}
            self.bench.store.write_arrays(path, **{name: array.astype(np.float16) for name, array in arrays.items()})


SIDES = ("output", "target")
"""The images of a pair that a metric of whole sets keeps features of."""


def _entry(part: str, name: str, side: str) -> str:
    """What the features of one side are called among those that are kept of an image."""
    return f"{part}/{name}/{side}"


class OriginalOutputs:
    """Outputs that deviations are measured from, made once a session and kept on disk."""

    def __init__(self, bench: Workbench, folder: Path):
        self.bench, self.folder = bench, folder

    def get(self, which: str, sample: Sample) -> np.ndarray:
        """``exact``: the session's model under exact attention; ``native``: the model as released."""
        bench = self.bench
        model = bench.originals[which]
        if model is bench.originals[ORIGINAL]:
            which = ORIGINAL
        # The id may be longer than a file's name can be.
        file = self.folder / f"{which}-{hashlib.sha256(sample.id.encode()).hexdigest()}.npy"
        if not file.exists():
            np.save(file, self._restore(which, model, sample))
        return np.load(file)

    def _restore(self, which: str, model, sample: Sample) -> np.ndarray:
        from nystra_bench.models import plug

        if which == ORIGINAL:
            plug(model, self.bench.references[ORIGINAL])
        return self.bench.restore_original(model, sample)


def _merged(had: Mapping, new: dict, wanted: list[str]) -> dict:
    """A stored value with what was measured now in place of the wanted metrics."""

    def part(old: Mapping, own: Mapping) -> dict:
        return {
            kind: {n: x for n, x in old.get(kind, {}).items() if n not in wanted} | own.get(kind, {})
            for kind in ("metrics", "input")
        }

    before = {image["id"]: image for image in had.get("images", [])}
    value = {"images": [image | part(before.get(image["id"], {}), image) for image in new["images"]]}
    of_set = part(had.get("set", {}), new.get("set", {}))
    return value | ({"set": of_set} if any(of_set.values()) else {})


def _not_finite(images: list[dict]) -> str | None:
    bad = [image["id"] for image in images if not image.get("finite", True)]
    if not bad:
        return None
    return f"the output holds NaN or infinite numbers in {len(bad)} of {len(images)} images ({bad[0]} is the first)"


def _save_output(folder: Path, sample: Sample, output: np.ndarray) -> None:
    with np.errstate(over="ignore"):  # beyond float16 a picture is infinite, and shown as such
        np.savez_compressed(folder / "output.npz", output=output.astype(np.float16), id=sample.id)
