"""Sizes of windows in tokens: a number is the side of a square, a pair (height, width) a rectangle's."""

from __future__ import annotations

from collections.abc import Sequence

Size = int | tuple[int, int]


def sides(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width


def plain(size: int | Sequence[int]) -> Size:
    """One number where it is a square, else the pair: equal sizes are equal, and hashable."""
    height, width = sides(size)
    return height if height == width else (height, width)


def size_text(size: int | Sequence[int]) -> str:
    """For people and keys: ``8``, or ``8×32`` where it is no square."""
    height, width = sides(size)
    return str(height) if height == width else f"{height}×{width}"
