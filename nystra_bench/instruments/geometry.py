"""Which windows an attention is measured on alone: heads and channels of known models, and the numbers of tokens.

Pure: planning and reports import it, too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from nystra_bench.errors import UserError, did_you_mean, unknown

MODES = ("window", "image")
"""One window of N tokens; or a map of ``MAP`` x ``MAP`` tokens cut into windows of N, the work of a layer."""

MAP = 256
"""Side of the map in tokens."""

SERIES = {
    "window": (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256),
    "image": (8, 16, 32, 64, 128, 256),
}
"""Sides of the windows that are measured where none are named."""


@dataclass(frozen=True)
class Shape:
    """An attention's heads, and the channels of each."""

    heads: int
    dim: int


SHAPES = {
    "swinir_m": Shape(6, 30),
    "uformer_b_1": Shape(1, 32),
    "uformer_b_4": Shape(4, 32),
    "uformer_b_16": Shape(16, 32),
    "dehazeformer_b": Shape(2, 12),
    "global": Shape(9, 16),
}
"""SwinIR-M in all layers; Uformer-B at full, quarter and sixteenth resolution; DehazeFormer-B at full resolution; and
attention over strips of a whole image (FIWHN)."""


def shape_of(name: str) -> Shape:
    """The shape of a name of ``SHAPES``, or of a text such as ``6x30``: heads and channels a head.

    Raises:
        UserError: it is neither.
    """
    if name in SHAPES:
        return SHAPES[name]
    if found := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", str(name)):
        return Shape(*map(int, found.groups()))
    accepted = f"{', '.join(SHAPES)}, and HEADSxCHANNELS such as 6x30"
    raise UserError(f"shape={name} is unknown{did_you_mean(name, SHAPES)}: accepted are {accepted}")


def sides_of(sizes: Iterable[int] | int | None, mode: str) -> list[int]:
    """The sides of the windows that hold so many tokens, rising; those of ``SERIES`` where no sizes are named.

    Args:
        sizes: numbers of tokens of a window, N.

    Raises:
        UserError: the mode is unknown, or no window of it holds a number of tokens.
    """
    if mode not in MODES:
        raise unknown("mode", mode, MODES)
    if sizes is None:
        return list(SERIES[mode])
    listed = [sizes] if isinstance(sizes, int) or not isinstance(sizes, Iterable) else list(sizes)
    if not listed:
        raise UserError("sizes holds no number of tokens: accepted are one or more, such as 64 and 1024")
    return sorted({_side(tokens, mode) for tokens in listed})


def _side(tokens: object, mode: str) -> int:
    is_number = isinstance(tokens, int) and not isinstance(tokens, bool)
    side = math.isqrt(tokens) if isinstance(tokens, int) and is_number and tokens > 0 else 0
    fits = side >= 2 and side * side == tokens
    if mode == "window" and not fits:
        low = max(side, 2)
        raise UserError(
            f"sizes={tokens} tokens fill no square window: accepted are squares of whole numbers from 2 on, such as "
            f"{low * low} and {(low + 1) ** 2}"
        )
    if mode == "image" and not (fits and MAP % side == 0):
        accepted = ", ".join(str(s * s) for s in range(2, MAP + 1) if MAP % s == 0)
        raise UserError(
            f"sizes={tokens} tokens are no window that a map of {MAP}x{MAP} tokens is cut into: accepted are {accepted}"
        )
    return side
