"""The kernels as operators of PyTorch: loaded once a process, known to its FLOP counter and to its compiler."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch.utils.flop_counter import register_flop_formula

from nystra_bench.kernels.build import Unbuildable, library

BLOCK = 64
"""Tokens of a block of the panels that nystra_plus takes (``BLOCK`` in tiles.h)."""


@cache
def unusable() -> str | None:
    """Why the kernels cannot be used in this process, as one clause; None where they can.

    They are built, where they are not yet, and loaded; that is tried once a process.
    """
    try:
        file = library()
        try:
            _load(file)
        except OSError:  # of another system that shares this folder, or damaged
            file.unlink(missing_ok=True)
            _load(library())
    except (Unbuildable, OSError) as error:
        return str(error).splitlines()[0]
    return None


def operator(name: str, flops: Callable[..., int]) -> Callable[..., torch.Tensor]:
    """An operator of the library: ``nystra_plus`` or ``nystra``.

    Args:
        flops: floating point operations from the operator's arguments, of tensors their shapes.

    Raises:
        RuntimeError: the kernels are not loaded: :func:`unusable` says why.
    """
    if unusable():
        raise RuntimeError(f"the kernels cannot be used: {unusable()}")
    return _registered(name, flops)


@cache
def _registered(name: str, flops: Callable[..., int]) -> Callable[..., torch.Tensor]:
    packet = getattr(torch.ops.nystra_bench, name)
    register_flop_formula(packet)(flops)
    torch.library.register_fake(f"nystra_bench::{name}")(_shape)
    return packet


def _shape(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_) -> torch.Tensor:
    """What an operator gives, without its numbers: in memory (B * nW, N, H, d_v)."""
    return v.new_empty(v.shape[0], v.shape[2], v.shape[1], v.shape[3]).transpose(1, 2)


def _load(file: Path) -> None:
    torch.ops.load_library(str(file))
