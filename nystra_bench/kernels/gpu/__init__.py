"""Kernels in Triton: the same algorithms as those in C++, one program a window and head, for NVIDIA and AMD GPUs.

Triton comes with PyTorch's builds for GPUs. Its interpreter runs the same source on a CPU, slowly, which is how the
tests hold it to the eager forms on machines without a GPU: set ``TRITON_INTERPRET=1`` before the first import.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from importlib import import_module

from torch import Tensor
from torch.utils.flop_counter import register_flop_formula


@cache
def unusable() -> str | None:
    """Why these kernels cannot be used in this process, as one clause; None where nothing speaks against it."""
    return None if importlib.util.find_spec("triton") else "triton is not installed"


@cache
def operator(name: str, flops: Callable[..., int]) -> Callable[..., Tensor]:
    """An operator of the module of that name, known to PyTorch's compiler and its FLOP counter.

    Args:
        flops: floating point operations from the operator's arguments, of tensors their shapes.

    Raises:
        ImportError: triton is not installed; :func:`unusable` says so.
    """
    made = getattr(import_module(f"nystra_bench.kernels.gpu.{name}"), name)
    register_flop_formula(made._opoverload.overloadpacket)(flops)
    return made
