"""The worker: one child process a session. Loads model and images once, swaps attentions, measures, writes results.

It is told everything in a JSON file, and imports neither Hydra nor pandas. On standard output it tells its events, one
JSON object a line; while a timing runs it says nothing.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

import numpy as np
import torch
from torch import Tensor, nn

from nystra_bench.attention.base import Attention
from nystra_bench.attention.identity import IdentityAttention
from nystra_bench.configuration import instantiate
from nystra_bench.instruments import memory
from nystra_bench.instruments.environment import environment, usable_cores
from nystra_bench.instruments.flops import count_flops
from nystra_bench.instruments.spectrum import SpectrumProbe
from nystra_bench.instruments.timer import Clock, Entry, Timing, expected_s, instability, run_rounds, warm_up
from nystra_bench.metrics.base import Accumulator, Metric, SetMetric
from nystra_bench.models import attention_sites, calibrate, load_configured, named_attention_sites, plug, setup_seconds
from nystra_bench.models.tiling import restore_in_tiles
from nystra_bench.sweep.cell import Cell, canonical_json
from nystra_bench.sweep.inspection import own_stdout
from nystra_bench.sweep.store import UNFINISHED, Store
from nystra_bench.tasks.base import Sample

PARENT_DRAWS_S = 0.02
"""Seconds that the parent is given to draw its progress, so that it does not draw while a timing runs."""

LARGE = 2048 * 2048
"""Pixels from which on an image's need of memory is estimated first: the system would kill a worker that takes more."""

PROBE = 512
"""Side in pixels of the image that the need of memory is estimated from."""

COMPARED = ("exact", "sdpa", "native")
"""The entries of a timing session against which the report shows speed-ups."""

IMAGE_BYTES = 160
"""Memory that a pixel of the clean image takes outside of the model while outputs are compared [measured]."""


class Job:
    """A cell to be measured, with its attention."""

    def __init__(self, cell: str, attention: dict):
        self.cell = Cell(cell)
        self.config = attention
        self.attention = instantiate(attention)
        self.calibration: dict | None = None


def status_of(error: BaseException) -> str:
    """``oom`` where memory ran out, ``failed`` otherwise."""
    out_of_memory = isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
    return "oom" if out_of_memory else "failed"


def reason_of(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:300]


class Worker:
    """One session.

    The request holds ``store``, ``sys_path``, ``metrics`` and ``references`` (configurations by name), ``timing``,
    ``tiling`` (``tile`` and ``overlap``, or nothing), ``seed``, and what ``Session.request`` adds.
    """

    def __init__(self, request: dict, tell: Callable[[dict], None]):
        self.request = request
        self._tell = tell
        self.id = uuid.uuid4().hex
        self.store = Store(Path(request["store"]))
        self.device = request["device"]["_type_"]
        self.dtype = getattr(torch, request["dtype"])
        self.jobs = [Job(**cell) for cell in request["cells"]]

    # ----------------------------------------------------------------- what is loaded once

    def load(self) -> None:
        request = self.request
        torch.set_num_threads(request["device"]["threads"] or usable_cores())
        self.task = instantiate(request["task"])
        self.largest_size = max(self.task.sizes(), key=math.prod)
        self.model = self._load_model(request["window"], request["position_bias"])
        is_native = request["position_bias"] == "native"
        self.native = self.model if is_native else self._load_model(None, "native")
        self.references = {name: instantiate(config) for name, config in request["references"].items()}

    def _load_model(self, window: int | None, bias: str) -> nn.Module:
        return load_configured(self.request["model"], window, bias).to(self.device, self.dtype)

    @cached_property
    def first_input(self) -> Tensor:
        """The first image of the task, ready on the device: what latency and memory are measured on."""
        return self._tensor(next(iter(self.task.samples())).degraded)

    def _tensor(self, image: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].contiguous()
        return tensor.to(self.device, self.dtype)

    # ----------------------------------------------------------------- running

    def run(self) -> None:
        """Measure all cells: timings first, while the process is fresh."""
        try:
            self.load()
        except Exception as error:
            for job in self.jobs:
                self.fail(job, error)
            return
        self.calibrate()
        measures = {"latency": self.measure_latency, "memory": self.measure_memory, "quality": self.measure_quality}
        measures |= {"bound": self.measure_bound}
        for measure, run in measures.items():
            jobs = [job for job in self.jobs if job.cell.measure == measure]
            if jobs:
                run(jobs)

    def calibrate(self) -> None:
        """Let the methods that ask for images see them, once a session each; the jobs of those that fail are done."""
        waiting = [job for job in self.jobs if job.attention.calibration_images]
        for key in dict.fromkeys(canonical_json(job.config) for job in waiting):
            same = [job for job in waiting if canonical_json(job.config) == key]
            self.tell_start(same)
            try:
                record = self._calibrated(same[0].attention)
                for job in same:
                    job.attention, job.calibration = same[0].attention, record
            except Exception as error:
                for job in same:
                    self.fail(job, error)
                self.jobs = [job for job in self.jobs if job not in same]

    def _calibrated(self, attention: Attention) -> dict:
        samples, measured = self.task.calibration(attention.calibration_images)
        images = [self._tensor(sample.degraded) for sample in samples]
        record = calibrate(self.model, attention, images, lambda image: self.forward(self.model, image))
        return record | {"images": [sample.id for sample in samples], "measured_too": measured}

    def tell_start(self, jobs: list[Job], silent_s: float = 0.0) -> None:
        """Say what comes next, and how long nothing more will be said; the parent has drawn it when this returns."""
        keys = [job.cell.key for job in jobs]
        self._tell({"event": "start", "measure": jobs[0].cell.measure, "keys": keys, "silent_s": silent_s})
        time.sleep(PARENT_DRAWS_S)

    def save(self, job: Job, value: dict, started: float, reason: str | None = None, attach=None) -> None:
        self.store.save(
            job.cell,
            value | ({"calibration": job.calibration} if job.calibration else {}),
            attach=attach,
            status="unstable" if reason else "done",
            reason=reason,
            seconds=round(time.perf_counter() - started, 3),
            session=self.id,
            environment={
                **environment(),
                "device": self.device,
                "threads": torch.get_num_threads(),
                "weights": str(self.request["model"]["weights"]),
            },
        )
        self._tell({"event": "done", "key": job.cell.key, "status": "unstable" if reason else "done", "reason": reason})

    def fail(self, job: Job, error: BaseException) -> None:
        text = "".join(traceback.format_exception(error))
        print(f"{job.cell.describe()}\n{text}", file=sys.stderr, flush=True)
        self.store.fail(job.cell, status_of(error), reason_of(error), text)
        self._tell({"event": "failed", "key": job.cell.key, "status": status_of(error), "reason": reason_of(error)})

    @torch.inference_mode()
    def forward(self, model: nn.Module, x: Tensor) -> Tensor:
        return self._call(model, x)

    def _call(self, model: nn.Module, x: Tensor) -> Tensor:
        """What a user of the model would call: on whole images, or on tiles where the run says so."""
        tiling = self.request["tiling"]
        return restore_in_tiles(model, x, **tiling, scale=model.scale) if tiling else model(x)

    def each(self, jobs: list[Job], measure: Callable[[Job], None]) -> None:
        """Measure cell by cell; one that fails does not stop the next."""
        for job in jobs:
            self.tell_start([job])
            try:
                plug(self.model, job.attention)
                self.check_memory(self.model)
                measure(job)
            except Exception as error:
                self.fail(job, error)

    # ----------------------------------------------------------------- large images

    def check_memory(self, model: nn.Module) -> None:
        """Refuse images that would not fit the memory; a system that runs out of it kills without a word.

        The model's need is that of a small image with the attention that is plugged in, in proportion to the pixels.

        Raises:
            MemoryError: the largest image of the task needs more than is free.
        """
        height, width = self.largest_size
        if height * width < LARGE:
            return
        free = memory.free_memory(self.device)
        if free is None or memory.available(self.device):
            return
        tile = (self.request["tiling"] or {}).get("tile", max(height, width))
        seen = min(height, tile) * min(width, tile)
        needed = self._bytes_per_pixel(model) * seen + IMAGE_BYTES * height * width * self.model.scale**2
        if needed > free:
            raise MemoryError(
                f"images of {width}x{height} pixels need about {needed / 1e9:.0f} GB of memory and {free / 1e9:.0f} GB "
                f"are free: accepted are smaller images (task.crop=), or tiles (tile={PROBE})"
            )

    def _bytes_per_pixel(self, model: nn.Module) -> float:
        side = max(PROBE, 2 * model.window_size)
        probe = torch.rand(1, self.task.channels, side, side, device=self.device, dtype=self.dtype)
        peak, _ = memory.peak_memory(lambda: self.forward(model, probe), self.device)
        return 1e6 * peak / side**2

    # ----------------------------------------------------------------- latency

    def measure_latency(self, jobs: list[Job]) -> None:
        """Time all cells together with the references, interleaved."""
        timing, clock, started = Timing(**self.request["timing"]), Clock(self.device), time.perf_counter()
        names = self._entry_names(jobs)
        self.tell_start(jobs)
        try:
            self._warm_process()
        except MemoryError as error:
            for job in jobs:
                self.fail(job, error)
            return
        entries = self._warm_entries(jobs, names, timing, clock)
        jobs = [job for job in jobs if names[job.cell.key] in entries]
        if not jobs:
            return
        pair = self._add_twin(entries)
        self.tell_start(jobs, expected_s(entries.values(), timing))
        try:
            noise = run_rounds(entries, timing, clock, pair, self.request["seed"], COMPARED)
        except Exception as error:  # no cell of the session has the rounds that its ratios need
            for job in jobs:
                self.fail(job, error)
            return
        for job in jobs:
            name = names[job.cell.key]
            unstable = instability(name, entries, noise, COMPARED)
            self.save(job, self._latency(entries[name], entries), started, unstable)

    def _warm_process(self) -> None:
        """Read the image, start threads and libraries: else whichever attention comes first would pay for them."""
        self.check_memory(self._without_attention())
        self.forward(self.model, self.first_input)

    def _without_attention(self) -> nn.Module:
        return plug(self.model, IdentityAttention())

    def _warm_entries(self, jobs: list[Job], names: dict[str, str], timing: Timing, clock: Clock) -> dict[str, Entry]:
        """The entries whose warm-up succeeds, by name; the cells of the others fail."""
        entries: dict[str, Entry] = {}
        for name, entry in self._candidates(jobs, names).items():
            cells = [job for job in jobs if names[job.cell.key] == name]
            self.tell_start(cells or jobs)  # without a companion that takes the worker down, no cell can be timed
            model = self.native if name == "native" else self.model
            try:
                entry.prepare()
                self.check_memory(model)
                warm_up(entry, timing, clock)
                entry.setup_ms = 1e3 * setup_seconds(model)
                entries[name] = entry
            except Exception as error:
                traceback.print_exc()
                for job in cells:
                    self.fail(job, error)
        return entries

    def _entry_names(self, jobs: list[Job]) -> dict[str, str]:
        """Which entry times a cell: a reference's where it is the same attention, else one of its own."""
        references = {canonical_json(config): name for name, config in self.request["references"].items()}
        return {job.cell.key: references.get(canonical_json(job.config), job.cell.key) for job in jobs}

    def _candidates(self, jobs: list[Job], names: dict[str, str]) -> dict[str, Entry]:
        entries = {name: self._entry(self.model, attention) for name, attention in self.references.items()}
        if self.native is not self.model:
            entries["native"] = self._entry(self.native, None)
        own = {names[job.cell.key]: job for job in jobs if names[job.cell.key] not in entries}
        return entries | {name: self._entry(self.model, job.attention) for name, job in own.items()}

    def _entry(self, model: nn.Module, attention) -> Entry:
        prepare = (lambda: None) if attention is None else (lambda: plug(model, attention))
        return Entry(prepare, lambda: self.forward(model, self.first_input))

    def _add_twin(self, entries: dict[str, Entry]) -> tuple[str, str]:
        """A second entry of the first reference that runs: their ratio is the noise floor (A/A)."""
        name = next(name for name in [*self.references, *entries] if name in entries)
        entries[f"{name}_again"] = replace(entries[name], samples_ms=[])
        return name, f"{name}_again"

    def _latency(self, entry: Entry, entries: dict[str, Entry]) -> dict:
        cells = {job.cell.key for job in self.jobs}
        companions = {name: e.samples_ms for name, e in entries.items() if name not in cells}
        return {
            "samples_ms": entry.samples_ms,
            "first_ms": entry.first_ms,
            "setup_ms": entry.setup_ms or None,
            "repeats": entry.repeats,
            "companions": companions,
            "seed": self.request["seed"],
            **self._size(),
        }

    def _size(self) -> dict:
        batch, _, height, width = self.first_input.shape
        return {"batch": batch, "height": height, "width": width}

    # ----------------------------------------------------------------- memory and operations

    def measure_memory(self, jobs: list[Job]) -> None:
        self.each(jobs, self._memory)

    def _memory(self, job: Job) -> None:
        started = time.perf_counter()
        reason = memory.available(self.device)
        if reason:
            raise RuntimeError(reason)

        def call() -> Tensor:
            return self.forward(self.model, self.first_input)

        call()  # what libraries allocate once is no cost of the attention
        for site in attention_sites(self.model):
            site.caches.clear()  # what the attention keeps is
        peak, method = memory.peak_memory(call, self.device)
        flops = count_flops(lambda: self._call(self.model, self.first_input))
        value = {
            "peak_mb": peak,
            "method": method,
            "gflops": flops / 1e9,
            "attention_gflops": (flops - self._flops_without_attention) / 1e9,
        }
        self.save(job, value | self._size(), started)

    @cached_property
    def _flops_without_attention(self) -> int:
        model = self._without_attention()
        return count_flops(lambda: self._call(model, self.first_input))

    # ----------------------------------------------------------------- spectral errors

    def measure_bound(self, jobs: list[Job]) -> None:
        self.each(jobs, self._bound)

    def _bound(self, job: Job) -> None:
        """What the attention makes of the queries and keys that the exact model has in each layer, on the first image.

        Of an image in tiles, the first tile is looked at.
        """
        started = time.perf_counter()
        sample = next(iter(self.task.samples()))
        probes = {}
        for seed, (name, site) in enumerate(named_attention_sites(self.model).items()):
            probes[name] = site.attention = SpectrumProbe(job.attention.at_layer(name), seed)
        self.forward(self.model, self._tensor(sample.degraded))
        layers = [{"layer": name, "windows": p.chosen, "values": p.by_head()} for name, p in probes.items()]
        height, width = sample.degraded.shape[:2]
        self.save(job, {"image": sample.id, "height": height, "width": width, "layers": layers}, started)

    # ----------------------------------------------------------------- quality

    def measure_quality(self, jobs: list[Job]) -> None:
        self.metrics = {name: instantiate(config) for name, config in self.request["metrics"].items()}
        self.input_scores: dict[str, dict[str, float]] = {}
        with tempfile.TemporaryDirectory(dir=self.store.folder, prefix=UNFINISHED) as folder:
            self.outputs = ReferenceOutputs(self, Path(folder))
            self.each(jobs, self._quality)

    def _quality(self, job: Job) -> None:
        started = time.perf_counter()
        images, sets, first = [], self._open_sets(), None
        for sample in self.task.samples():
            output = self._output(job, sample)
            images.append(self._scores(sample, output))
            self._collect(sets, sample, output)
            if first is None:
                first = sample, output
        describe = {name: m.describe(self.task.convention) for name, m in self.metrics.items()}
        value = {"images": images, "describe": describe, "unavailable": self._unavailable}
        if any(sets.values()):
            value["set"] = {part: {name: a.result() for name, a in opened.items()} for part, opened in sets.items()}
        self._save_panel_images(job, first[0])
        self.save(job, value, started, attach=lambda folder: _save_output(folder, *first))

    def _output(self, job: Job, sample: Sample) -> np.ndarray:
        """The attention's output, (height, width, C) float32, neither clipped nor rounded."""
        if canonical_json(job.config) == canonical_json(self.request["references"]["exact"]):
            return self.outputs.get("exact", sample)
        plug(self.model, job.attention)
        return self.restore(self.model, sample)

    def restore(self, model: nn.Module, sample: Sample) -> np.ndarray:
        return self.forward(model, self._tensor(sample.degraded))[0].permute(1, 2, 0).float().cpu().numpy()

    @cached_property
    def _unavailable(self) -> dict[str, str]:
        return {name: reason for name, m in self.metrics.items() if (reason := m.available())}

    def _usable(self, of_sets: bool) -> dict[str, Metric]:
        """The metrics of single images, or those of whole sets, that this machine can compute."""
        usable = {name: m for name, m in self.metrics.items() if name not in self._unavailable}
        return {name: m for name, m in usable.items() if isinstance(m, SetMetric) == of_sets}

    def _scores(self, sample: Sample, output: np.ndarray) -> dict:
        metrics, convention = self._usable(of_sets=False), self.task.convention
        scores = {name: m(output, self._target(m.against, sample), convention) for name, m in metrics.items()}
        if sample.id not in self.input_scores:  # the same in every cell
            degraded = self.task.as_output(sample.degraded)
            against_truth = {name: m for name, m in metrics.items() if m.against == "truth"}
            of_input = {name: m(degraded, sample.clean, convention) for name, m in against_truth.items()}
            self.input_scores[sample.id] = of_input
        height, width = sample.clean.shape[:2]
        own = {"id": sample.id, "height": height, "width": width}
        return own | {"metrics": scores, "input": self.input_scores[sample.id]}

    def _open_sets(self) -> dict[str, dict[str, Accumulator]]:
        """What collects the images for the metrics of whole sets: of the outputs, and of the degraded images."""
        metrics = self._usable(of_sets=True)
        against_truth = {name: m for name, m in metrics.items() if m.against == "truth"}
        parts = {"metrics": metrics, "input": against_truth}
        return {part: {n: m.open(self.task.convention) for n, m in of.items()} for part, of in parts.items()}

    def _collect(self, sets: dict[str, dict[str, Accumulator]], sample: Sample, output: np.ndarray) -> None:
        for name, accumulator in sets["metrics"].items():
            accumulator.add(output, self._target(self.metrics[name].against, sample))
        for accumulator in sets["input"].values():
            accumulator.add(self.task.as_output(sample.degraded), sample.clean)

    def _target(self, against: str, sample: Sample) -> np.ndarray:
        return sample.clean if against == "truth" else self.outputs.get(against, sample)

    def _save_panel_images(self, job: Job, sample: Sample) -> None:
        path = self.store.panel_images(job.cell, sample.id)
        if not path.exists():
            arrays = {"input": self.task.as_output(sample.degraded), "clean": sample.clean}
            self.store.write_arrays(path, **{name: array.astype(np.float16) for name, array in arrays.items()})


class ReferenceOutputs:
    """Outputs that deviations are measured from, made once a session and kept on disk: data sets can be large."""

    def __init__(self, worker: Worker, folder: Path):
        self.worker, self.folder = worker, folder

    def get(self, which: str, sample: Sample) -> np.ndarray:
        """``exact``: the session's model under exact attention; ``native``: the model as released."""
        w = self.worker
        if which == "native" and w.native is w.model:
            which = "exact"
        file = self.folder / f"{which}-{quote(sample.id, safe='')}.npy"
        if not file.exists():
            model = w.native if which == "native" else plug(w.model, w.references["exact"])
            np.save(file, w.restore(model, sample))
        return np.load(file)


def _save_output(folder: Path, sample: Sample, output: np.ndarray) -> None:
    np.savez_compressed(folder / "output.npz", output=output.astype(np.float16), id=sample.id)


def end_with_parent() -> None:
    """End this process when standard input closes, which it does when the parent ends, however it ends."""

    def wait() -> None:
        # Not sys.stdin: at the end of the interpreter its lock, held by this thread, would be a fatal error.
        while os.read(0, 4096):
            pass
        os._exit(3)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    sys.path[:0] = request["sys_path"]
    sink = own_stdout()
    end_with_parent()
    Worker(request, lambda event: print(json.dumps(event), file=sink, flush=True)).run()


if __name__ == "__main__":
    main()
