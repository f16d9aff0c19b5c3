"""A model with its input, and what becomes of attentions that are put into it."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from nystra_bench import models
from nystra_bench.api.images import forward
from nystra_bench.attention.base import Attention
from nystra_bench.instruments.memory_guard import MemoryGuard
from nystra_bench.models.images import as_image
from nystra_bench.models.windows import WindowedModel
from nystra_bench.sweep.workbench import reason_of, status_of

logger = logging.getLogger("nystra_bench")


@dataclass
class Result:
    """What became of an attention: its output (height, width, C), or why there is none."""

    output: np.ndarray | None
    status: str = "done"
    reason: str = ""

    @property
    def outcome(self) -> dict[str, str]:
        return {"status": self.status, "reason": self.reason}


@dataclass(frozen=True)
class Subject:
    """A model and its input, and for the original of deviations the model as released, where it is another."""

    model: WindowedModel
    x: Tensor
    released: WindowedModel | None

    @property
    def device(self) -> str:
        return self.x.device.type

    @cached_property
    def guard(self) -> MemoryGuard:
        height, width = self.x.shape[-2:]
        return MemoryGuard([(height, width)], self.x.shape[1], None, self.device, self.x.dtype, forward)

    def original(self, exact: Attention) -> np.ndarray:
        """The output of exact attention, in float32 at least, (height, width, C)."""
        precise = torch.promote_types(self.x.dtype, torch.float32)
        model = self.model if precise == self.x.dtype else copy.deepcopy(self.model).to(precise)
        models.plug(model, exact)
        self.guard.check(model)
        return as_image(forward(model, self.x.to(precise)))

    def restore(self, attention: Attention) -> Result:
        """One that cannot run does not stop the others."""
        try:
            models.plug(self.model, attention)
        except ValueError as error:
            return Result(None, "skipped", str(error))
        try:
            self.guard.check(self.model)
            output = as_image(forward(self.model, self.x))
        except Exception as error:
            logger.warning("%s failed", type(attention).__name__, exc_info=error)
            return Result(None, status_of(error), reason_of(error))
        if not np.isfinite(output).all():
            return Result(output, "nonfinite", "the output holds NaN or infinite numbers")
        return Result(output)
