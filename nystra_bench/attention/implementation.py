"""Which form of a method runs, the eager one or the fused one, and why."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import torch
from torch import Tensor

from nystra_bench import kernels
from nystra_bench.attention.base import Window
from nystra_bench.errors import UserError
from nystra_bench.kernels import gpu

logger = logging.getLogger("nystra_bench")

IMPLEMENTATIONS = ("auto", "eager", "fused")

DEFAULT = "auto"
"""Of the methods whose names say that they are fused."""

LIBRARIES = {
    "cpu": (kernels, (torch.float32, torch.bfloat16)),
    "cuda": (gpu, (torch.float32, torch.float16, torch.bfloat16)),
}
"""The kernels of each device, and the numbers that they take; all their sums are float32."""

Kernel = Callable[..., Tensor]

INSTEAD = "accepted here are implementation=auto and eager"


class Implementation:
    """The choice between a method's eager form and its kernels, which compute without gradients.

    ``auto`` takes the kernel where it can, ``fused`` nothing else; what ran last is told by :meth:`about`.

    Args:
        asked: one of ``IMPLEMENTATIONS``.
        kernel: name of the operator.
        flops: its floating point operations on each device for which there is one (``LIBRARIES``), see
            ``kernels.operator``.
        unserved: why the kernel does not have the method's parameters, as one clause; None where it does.

    Raises:
        ValueError: ``asked`` is unknown, or ``fused`` for parameters that the kernel does not have.
        UserError: ``fused`` where there can be no kernels.
    """

    def __init__(
        self, asked: str, kernel: str, flops: Mapping[str, Callable[..., int]], unserved: str | None = None
    ):
        if asked not in IMPLEMENTATIONS:
            raise ValueError(f"implementation={asked} is unknown: accepted are {', '.join(IMPLEMENTATIONS)}")
        if asked == "fused" and unserved:
            raise ValueError(f"implementation=fused does not fit, since {unserved}: {INSTEAD}")
        elsewhere = "cuda" in flops and torch.cuda.is_available()
        if asked == "fused" and not elsewhere and (reason := kernels.refusal()):
            raise _unavailable(reason)
        self._asked, self._kernel, self._flops, self._unserved = asked, kernel, flops, unserved
        self._dtypes = {device: LIBRARIES[device][1] for device in flops}
        self._ran: str | None = None

    def operator(self, q: Tensor, k: Tensor, v: Tensor, window: Window) -> Kernel | None:
        """The kernel for these tensors; None where the eager form is to run.

        The kernels are built at the first call, where they are not yet; the window's cache counts the seconds.

        Raises:
            UserError: ``fused`` was asked for, and cannot be.
        """
        if self._asked == "eager":
            self._ran = "eager"
            return None
        reason = self._unserved or self._refused(q, k, v)
        library = LIBRARIES.get(q.device.type, LIBRARIES["cpu"])[0]
        if reason is None:
            reason = window.cache.once("kernels", library.unusable)
            if reason and self._asked == "fused":
                raise _unavailable(reason)
            if reason:
                _tell(reason)
        elif self._asked == "fused":
            raise UserError(f"implementation=fused does not fit, since {reason}: {INSTEAD}")
        self._ran = f"eager ({reason})" if reason else "fused"
        return None if reason else library.operator(self._kernel, self._flops[q.device.type])

    def reads_maps(self, x: Tensor, window: Window) -> bool:
        """Whether the kernel is to run, and finds the windows of maps like x by itself: on CPUs, without gradients."""
        elsewhere = x.device.type != "cpu" or torch.is_grad_enabled()
        return not elsewhere and self.operator(x, x, x, window) is not None

    def _refused(self, *tensors: Tensor) -> str | None:
        """Why tensors are not the kernels', as one clause; None where they are."""
        for x in tensors:
            if x.dtype not in self._dtypes.get(x.device.type, ()):
                return f"there is no kernel for {str(x.dtype).removeprefix('torch.')} on {x.device.type}"
        if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
            return "gradients are recorded"
        return None

    def about(self) -> dict[str, str]:
        """``kernel``: what ran last, ``fused`` or ``eager``, the latter with the reason where it was not asked for."""
        return {"kernel": self._ran} if self._ran else {}


def rows_together(*tensors: Tensor) -> list[Tensor]:
    """The tensors (…, d) as kernels read them: any strides, but rows of d numbers side by side."""
    return [x if x.stride(-1) == 1 else x.contiguous() for x in tensors]


def windows_of(q: Sequence[int], places: Sequence[int] | None) -> tuple[int, int, int, int]:
    """(windows, heads, tokens, d) from the shapes of queries and of the places of windows on their maps, if any."""
    windows, heads, tokens, dim = q
    return (windows, heads, tokens, dim) if places is None else (windows * places[0], heads, places[1], dim)


def _unavailable(reason: str) -> UserError:
    return UserError(f"implementation=fused cannot run, since {reason}: {INSTEAD}")


@cache
def _tell(reason: str) -> None:
    """Once a process."""
    logger.warning("the fused kernels cannot be used, since %s: the eager forms run", reason)
