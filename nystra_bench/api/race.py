"""Timing the attentions that are compared, together with the references, as a sweep's session does."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch

from nystra_bench.api.images import forward
from nystra_bench.api.options import load_attention
from nystra_bench.api.subject import Subject
from nystra_bench.attention.base import Attention
from nystra_bench.instruments.environment import hardware, kept_memory
from nystra_bench.instruments.forward import ForwardTimer, add_twin
from nystra_bench.instruments.timer import Clock, Entry, Timing, instability
from nystra_bench.measure.latency import AGAINST, Latency
from nystra_bench.sweep.locks import device_lock
from nystra_bench.sweep.workbench import reason_of, status_of
from nystra_bench.words import FLOOR

logger = logging.getLogger("nystra_bench")


@dataclass
class Race:
    """The timing of attentions together with the references."""

    subject: Subject
    references: Mapping[str, Attention]
    chosen: Mapping[str, Attention]
    timing: Timing
    seed: int
    entries: dict[str, Entry] = field(default_factory=dict)

    @cached_property
    def timer(self) -> ForwardTimer:
        subject = self.subject
        call = partial(forward, x=subject.x)
        return ForwardTimer(subject.model, call, self.timing, Clock(subject.device), subject.released)

    def add_to(self, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """Add the numbers to those of each attention; returns what is to be said of the session."""
        with device_lock(self.subject.device, quiet=True), kept_memory() as keeps:
            self._warm_up(found)
            pair = add_twin(self.entries, self.references)
            broken, noise = self.timer.run(self.entries, pair, self.seed, AGAINST)
        columns = self._columns()
        for label in self.chosen:
            entry = self.entries.get(label)
            numbers = {} if entry is None else self._numbers(entry)
            found[label] |= {name: numbers.get(name, np.nan) for name in columns}
            reason = entry and (broken.get(label) or instability(label, self.entries, noise, AGAINST))
            if reason and found[label]["status"] == "done":
                found[label] |= {"status": "nonfinite" if label in broken else "unstable", "reason": reason}
        rounds = len(self.entries[pair[0]].samples_ms)
        return {
            "hardware": hardware(self.subject.device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "rounds": rounds,
            "kept_memory": keeps,
            "noise": [noise.median, noise.low, noise.high],
            "floor_ms": float(np.median(self.entries[FLOOR].samples_ms)) if FLOOR in self.entries else None,
        }

    def _warm_up(self, found: dict[str, dict[str, Any]]) -> None:
        """Threads, libraries and kernels by objects of their own, then each entry; one that fails is left out."""
        for name in self.references:
            self.subject.restore(load_attention(name))
        others = {label: attention for label, attention in self.chosen.items() if label not in self.references}
        for name, entry in self.timer.entries(self.references, others).items():
            try:
                entry.prepare()
                self.timer.warm_up(name, entry)
                self.entries[name] = entry
            except Exception as error:
                logger.warning("%s could not be timed", name, exc_info=error)
                if name in found:
                    found[name] |= {"status": status_of(error), "reason": reason_of(error)}

    def _columns(self) -> list[str]:
        references = [name for name in AGAINST if name in self.entries]
        ends = [f"speedup_vs_{name}{end}" for name in references for end in ("", "_low", "_high")]
        return ["latency_ms", "latency_iqr_ms", "first_ms", "setup_ms", *ends]

    def _numbers(self, entry: Entry) -> dict[str, Any]:
        """The columns of the measurement ``latency``."""
        beside = {name: self.entries[name].samples_ms for name in AGAINST if name in self.entries}
        value = {"samples_ms": entry.samples_ms, "first_ms": entry.first_ms, "setup_ms": entry.setup_ms or None}
        return Latency().scalars(value | {"companions": beside}, {"position_bias": None})
