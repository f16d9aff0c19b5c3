"""Restoring an image tile by tile, for images whose whole would not fit the memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def restore_in_tiles(restore: Callable[[Tensor], Tensor], image: Tensor, tile: int, overlap: int, scale: int) -> Tensor:
    """Restore overlapping tiles of an image and blend them.

    Args:
        restore: restores (B, C, h, w) to (B, C', scale * h, scale * w).
        image: (B, C, height, width).
        tile: side of the tiles in pixels of ``image``; a side that is not longer is not cut.
        overlap: pixels that neighbours share at least; there their weights fall linearly, so that no seam is seen.

    Returns:
        (B, C', scale * height, scale * width). Away from overlaps and borders of tiles by more than a model's reach,
        it is the whole image's output; elsewhere a tile lacks what lies beyond its border.
    """
    height, width = image.shape[-2:]
    total, weight = None, torch.zeros(0)
    for top in _starts(height, tile, overlap):
        for left in _starts(width, tile, overlap):
            part = image[..., top : top + tile, left : left + tile]
            out = restore(part)
            share = _ramp(out.shape[-2], scale * overlap, out)[:, None] * _ramp(out.shape[-1], scale * overlap, out)
            if total is None:
                total = out.new_zeros(*out.shape[:-2], scale * height, scale * width)
                weight = out.new_zeros(scale * height, scale * width)
            y, x = scale * top, scale * left
            total[..., y : y + out.shape[-2], x : x + out.shape[-1]] += share * out
            weight[y : y + out.shape[-2], x : x + out.shape[-1]] += share
    assert total is not None  # there is always a first tile
    return total.div_(weight)


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin: evenly spread, the last one ends with the image."""
    if length <= tile:
        return [0]
    count = -(-(length - overlap) // (tile - overlap))
    return [i * (length - tile) // (count - 1) for i in range(count)]


def _ramp(length: int, overlap: int, like: Tensor) -> Tensor:
    """Weights that rise over ``overlap`` pixels from both ends, and are 1 between; never 0."""
    position = torch.arange(length, device=like.device, dtype=torch.float32)
    from_end = torch.minimum(position, length - 1 - position) + 1
    return (from_end / (overlap + 1)).clamp(max=1).to(like.dtype)
