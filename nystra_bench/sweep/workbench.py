"""What the cells of a session share: model, images and references, loaded once, and the ways to run and keep them."""

from __future__ import annotations

import sys
import time
import traceback
import uuid
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nystra_bench.attention.base import Attention
from nystra_bench.attention.identity import IdentityAttention
from nystra_bench.configuration import instantiate
from nystra_bench.errors import UserError
from nystra_bench.instruments.compiled import CompiledModels, PreparedModels
from nystra_bench.instruments.environment import environment, hardware
from nystra_bench.instruments.graphs import GraphedModels
from nystra_bench.instruments.memory_guard import MemoryGuard
from nystra_bench.instruments.threads import thread_count
from nystra_bench.measure.base import Measured, measurement
from nystra_bench.models import calibrate, load_configured, plug
from nystra_bench.models.images import as_image, as_input
from nystra_bench.models.tiling import restore_in_tiles
from nystra_bench.models.windows import WindowedModel
from nystra_bench.sweep.cell import Cell, canonical_json
from nystra_bench.sweep.store import Store
from nystra_bench.tasks.base import Sample, Task
from nystra_bench.words import ORIGINAL, RELEASED

PARENT_DRAWS_S = 0.02
"""Seconds that the parent is given to draw its progress, so that it does not draw while a timing runs."""


RECIPE = (
    *("sys_path", "model_name", "model", "task", "window", "position_bias", "device"),
    *("references", "reference_names", "timing", "tiling", "seed", "tf32"),
)
"""What of a session's request a cell is repeated by, besides its own entries."""

MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
"""What the axis ``memory_format`` calls them."""

RUNTIMES: dict[str, type[PreparedModels]] = {"compiled": CompiledModels, "graphs": GraphedModels}
"""What runs models where ``runtime`` is not ``eager``."""

ABSENT: Any = None
"""A task, model or attention that no measurement of the session needs; one that does need it has it."""


class NotFinite(Exception):
    """NaN or infinite numbers where there should be none; the text says where."""


class Job:
    """A cell to be measured.

    Attributes:
        measurement: what measures it.
        measure: the measurement's configuration.
        attention: its attention; None where the measurement needs none.
        config: the attention's configuration.
        parts: what its value is put together from (``Measurement.parts``).
        calibration: what was recorded when the attention was calibrated; None where it was not.
    """

    def __init__(self, cell: str, measure: dict, attention: dict | None, parts: dict):
        self.cell = Cell(cell)
        self.measurement = measurement(self.cell.measure, measure)
        self.measure, self.config, self.parts = measure, attention, parts
        self.attention: Attention = ABSENT if attention is None else instantiate(attention)
        self.calibration: dict | None = None


def status_of(error: BaseException) -> str:
    """``oom`` where memory ran out, ``nonfinite``, or ``failed``."""
    out_of_memory = isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
    return "oom" if out_of_memory else "nonfinite" if isinstance(error, NotFinite) else "failed"


def reason_of(error: BaseException) -> str:
    said = str(error).strip()
    is_sentence = isinstance(error, (NotFinite, UserError))
    return (said if is_sentence else f"{type(error).__name__}: {said}").splitlines()[0][:300]


def _laid_out(x: Any, memory_format: torch.memory_format) -> Any:
    """A tensor or a module in this layout; in the usual one it is left as it is."""
    return x if memory_format == torch.contiguous_format else x.to(memory_format=memory_format)


class Workbench:
    """One session, as measurements see it.

    What a session's measurements do not need (a model, a task) is not in its request, and not loaded.

    Args:
        request: ``store``, ``sys_path``, ``metrics`` and ``references`` (configurations by name), ``timing``,
            ``tiling`` (``tile`` and ``overlap``, or nothing), ``seed``, ``tf32``, and what ``Session.request`` adds.
            ``execution`` has the axes of ``execution.py`` that are not at their defaults. ``images`` is there where a
            part of the images alone is to be measured and kept: the first of them, and the one behind the last.
        tell: takes events for the parent.
    """

    def __init__(self, request: dict, tell: Callable[[dict], None]):
        self.request = request
        self.tell = tell
        self.id = uuid.uuid4().hex
        self.store = Store(Path(request["store"]))
        self.device = request["device"]["_type_"]
        self.dtype = getattr(torch, request["dtype"])
        self.execution: dict = request.get("execution") or {}  # what of it is not as usual
        self.memory_format = MEMORY_FORMATS[self.execution.get("memory_format", "contiguous")]
        runtime = RUNTIMES.get(self.execution.get("runtime", "eager"))
        self.compiled: PreparedModels | None = None if runtime is None else runtime()
        self.images: tuple[int, int] | None = tuple(request["images"]) if request.get("images") else None
        """Which images alone are to be measured and kept: the first of them, and the one behind the last; None: all."""
        self.settled: set[str] = set()
        """Keys of the cells that have a result or a failure, or whose part is kept."""
        self._passes_s = 0.0

    # ----------------------------------------------------------------- what is loaded once

    def load(self) -> None:
        """Load what the cells need; raises what is wrong with it."""
        request = self.request
        torch.set_num_threads(self.threads)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = bool(request["tf32"])
        self.references: dict[str, Attention] = {n: instantiate(config) for n, config in request["references"].items()}
        self.task: Task = instantiate(request["task"]) if request["task"] else ABSENT
        if not request["model"]:
            return
        bias = request["position_bias"] or RELEASED
        self.model = self._load_model(request["window"], bias, self.dtype, self.memory_format)
        is_native = bias == RELEASED
        self.native = self.model if is_native else self._load_model(None, RELEASED, self.dtype, self.memory_format)
        if self.task:
            tile = (request["tiling"] or {}).get("tile")
            self.guard = MemoryGuard(
                self.task.sizes(), self.task.channels, tile, self.device, self.dtype, self.forward_eager, self.batch
            )

    @property
    def threads(self) -> int:
        return self.execution.get("threads") or thread_count(self.request["device"]["threads"])

    @property
    def batch(self) -> int:
        return self.execution.get("batch", 1)

    def _load_model(
        self, window: int | None, bias: str, dtype: torch.dtype, memory_format: torch.memory_format
    ) -> WindowedModel:
        model = load_configured(self.request["model"], window, bias).to(self.device, dtype)
        _laid_out(model, memory_format)
        for name, tensor in model.state_dict().items():
            if not torch.isfinite(tensor).all():
                raise NotFinite(f"the weights are not finite: {name} holds NaN or infinite numbers")
        return model

    @cached_property
    def originals(self) -> dict[str, WindowedModel]:
        """The models that deviations are measured from: ``exact`` in the session's window, ``native`` as released.

        In float32 where the session is of half precision, and laid out as usual: what half precision and another way
        to run do to the output is part of a deviation. Plug the exact reference in before use.
        """
        precise, usual = torch.promote_types(self.dtype, torch.float32), torch.contiguous_format
        if (precise, usual) == (self.dtype, self.memory_format):
            return {ORIGINAL: self.model, RELEASED: self.native}
        window, bias = self.request["window"], self.request["position_bias"] or RELEASED
        original = self._load_model(window, bias, precise, usual)
        is_native = self.native is self.model
        released = original if is_native else self._load_model(None, RELEASED, precise, usual)
        return {ORIGINAL: original, RELEASED: released}

    @cached_property
    def first_input(self) -> Tensor:
        """What latency and memory are measured on, ready on the device: the first image of the task, as often as a
        batch of this session has images."""
        image = self.tensor(next(iter(self.task.samples())).degraded)
        return image if self.batch == 1 else _laid_out(image.repeat(self.batch, 1, 1, 1), self.memory_format)

    def tensor(self, image: np.ndarray) -> Tensor:
        """(height, width, C) -> (1, C, height, width) on the device, in the session's precision."""
        return _laid_out(as_input(image, self.device, self.dtype), self.memory_format)

    def first_tile(self, x: Tensor) -> Tensor:
        """Of an input (1, C, height, width) the first tile, where the run cuts images into tiles; else all of it."""
        tile = (self.request["tiling"] or {}).get("tile")
        return x[..., :tile, :tile]

    # ----------------------------------------------------------------- running the model

    @torch.inference_mode()
    def forward(self, model: WindowedModel, x: Tensor) -> Tensor:
        return self.call(model, x)

    @torch.inference_mode()
    def forward_eager(self, model: WindowedModel, x: Tensor) -> Tensor:
        """The same, operation by operation, whatever the session's runtime."""
        return self.call(model, x, eager=True)

    def call(self, model: WindowedModel, x: Tensor, eager: bool = False) -> Tensor:
        """What a user of the model would call: on whole images, or on tiles where the run says so."""
        restore = model if eager or self.compiled is None else partial(self.compiled, model)
        tiling, started = self.request["tiling"], time.perf_counter()
        try:
            return restore_in_tiles(restore, x, **tiling, scale=model.scale) if tiling else restore(x)
        finally:
            self._passes_s += time.perf_counter() - started

    def compile(self, model: WindowedModel) -> float:
        """Make a model ready for the first input, where it is not run eagerly; gives the seconds that it took."""
        if self.compiled is None:
            return 0.0
        self.forward(model, self.first_input)
        return self.compiled.seconds(model)

    def restore(self, model: WindowedModel, sample: Sample) -> np.ndarray:
        """The output for a sample, (height, width, C) float32, neither clipped nor rounded."""
        return as_image(self.forward(model, self.tensor(sample.degraded)))

    def restore_original(self, model: WindowedModel, sample: Sample) -> np.ndarray:
        """The same by one of ``originals``: eager, and in its own precision."""
        precise = torch.promote_types(self.dtype, torch.float32)
        return as_image(self.forward_eager(model, as_input(sample.degraded, self.device, precise)))

    def without_attention(self) -> WindowedModel:
        return plug(self.model, IdentityAttention())

    def calibrate(self, jobs: list[Job]) -> list[Job]:
        """Let the methods that ask for images see them, once a session each; gives the jobs that can go on."""
        waiting = [job for job in jobs if job.attention is not None and job.attention.calibration_images]
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
                jobs = [job for job in jobs if job not in same]
        return jobs

    def _calibrated(self, attention: Attention) -> dict:
        if not self.request["model"] or not self.task:
            return {}  # without a model there is nothing to fit it to
        samples, measured = self.task.calibration(attention.calibration_images)
        images = [self.tensor(sample.degraded) for sample in samples]
        record = calibrate(self.model, attention, images, lambda image: self.forward_eager(self.model, image))
        return record | {"images": [sample.id for sample in samples], "measured_too": measured}

    def belongs(self, job: Job) -> bool:
        """Whether a cell is of this machine, where its numbers are of one; it fails where it is not."""
        own: dict[str, Any] = {"hardware": hardware(self.device), "threads": self.threads}
        own |= {"torch": torch.__version__}
        for name, said in job.cell.content.get("settings", {}).items():
            if name in own and said != own[name]:
                known = f"planned for {name}={said}, it came to a machine of {own[name]}"
                self.fail(job, UserError(f"{known}: accepted are machines that are alike (docs/CLUSTERS.md)"))
                return False
        return True

    # ----------------------------------------------------------------- cell by cell

    def each(self, jobs: list[Job], measure: Callable[[Workbench, Job], dict | Measured | None]) -> None:
        """Measure cell by cell; one that fails does not stop the next.

        Args:
            measure: gives a cell's value, or None where this job measures a part of it (``images``) and has kept that.
        """
        for job in jobs:
            started = time.perf_counter()
            self.tell_start([job])
            try:
                self.place(job)
                found = measure(self, job)
                if found is None:
                    self.settled.add(job.cell.key)
                    self.tell({"event": "kept", "key": job.cell.key})
                else:
                    self.save(job, found, started)
            except Exception as error:
                self.fail(job, error)

    def place(self, job: Job) -> None:
        """Plug a cell's attention into the model, where it has both, if the images then fit the memory."""
        if self.request["model"] and job.attention is not None:
            self.place_attention(job.attention)

    def place_attention(self, attention: Attention) -> None:
        """Plug an attention into the model, and see that the images of the task, where there is one, fit the memory."""
        plug(self.model, attention)
        if self.task:
            self.guard.check(self.model)

    def tell_start(self, jobs: list[Job], silent_s: float = 0.0) -> None:
        """Say what comes next, and how long nothing more will be said; the parent has drawn it when this returns."""
        keys = [job.cell.key for job in jobs]
        event = {"event": "start", "measure": jobs[0].cell.measure, "keys": keys, "silent_s": silent_s}
        self.tell(event | self._part())
        time.sleep(PARENT_DRAWS_S)

    def alive(self, job: Job, done: int, of: int, kept: int = 0) -> None:
        """A sign of life within a long cell: how many of its images, layers, … are done.

        Args:
            kept: so many of them were done by an earlier process.
        """
        event = {"event": "alive", "key": job.cell.key, "done": done, "of": of}
        self.tell(event | ({"kept": kept} if kept else {}) | self._part())

    def _part(self) -> dict:
        return {"images": list(self.images)} if self.images else {}

    def _settle(self, job: Job, event: str, status: str, reason: str | None) -> None:
        """Tell that a cell has a result or a failure, and the seconds in passes of models since the one before.

        Not on a GPU, where calls return before they are done.
        """
        self.settled.add(job.cell.key)
        passes_s, self._passes_s = self._passes_s, 0.0
        told = {"event": event, "key": job.cell.key, "status": status, "reason": reason}
        self.tell(told | ({"passes_s": passes_s} if self.device == "cpu" else {}))

    def save(self, job: Job, measured: dict | Measured, started: float) -> None:
        """Keep what was measured; ``started`` is the ``time.perf_counter()`` of its begin."""
        found = measured if isinstance(measured, Measured) else Measured(measured)
        extra = {"parts": job.parts} if job.parts else {}
        extra |= {"calibration": job.calibration} if job.calibration else {}
        about = dict(job.attention.about()) if job.attention is not None else {}
        self.store.save(
            job.cell,
            found.value | extra,
            attach=found.attach,
            extends=bool(job.parts),
            status=found.status,
            reason=found.reason,
            seconds=round(time.perf_counter() - started, 3),
            session=self.id,
            attention=about,
            recipe=self._recipe(job),
            environment=self._environment(),
        )
        self._settle(job, "done", found.status, found.reason)

    def _recipe(self, job: Job) -> dict:
        """The configurations that the cell was measured by: what ``python -m nystra_bench.replay`` repeats it from."""
        metrics = {name: config for name, config in self.request["metrics"].items() if name in job.parts}
        own = {"measure": job.measure, "attention": job.config, "metrics": metrics}
        return {name: self.request.get(name) for name in RECIPE} | own

    def _environment(self) -> dict:
        model = self.request["model"]
        return {
            **environment(tuple(self.request["sys_path"])),
            "device": self.device,
            "threads": torch.get_num_threads(),
            "tf32": bool(self.request["tf32"]),
            **({"weights": str(model["weights"])} if model else {}),
        }

    def fail(self, job: Job, error: BaseException) -> None:
        text = "".join(traceback.format_exception(error))
        print(f"{job.cell.describe()}\n{text}", file=sys.stderr, flush=True)
        self.store.fail(job.cell, status_of(error), reason_of(error), text)
        self._settle(job, "failed", status_of(error), reason_of(error))
