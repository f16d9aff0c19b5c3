"""How maps are cut into windows, shifted or not, and put together again.

Maps are channels-last, (B, height, width, C), and their sides are multiples of the window. The size of a window is a
number, the side of a square, or a pair (height, width); a shift likewise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from nystra_bench.sizes import Size, sides

KEPT = 64
"""How many orders of tokens are kept, the last ones that were used: a few for each size of map in use."""


def partition(x: Tensor, size: Size) -> Tensor:
    """(B, height, width, C) -> (B * nW, N, C), windows row by row."""
    b, h, w, c = x.shape
    rows, columns = sides(size)
    x = x.view(b, h // rows, rows, w // columns, columns, c)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, rows * columns, c)


def merge(windows: Tensor, size: Size, height: int, width: int) -> Tensor:
    """The inverse of :func:`partition`: (B * nW, N, C) -> (B, height, width, C)."""
    rows, columns = sides(size)
    x = windows.view(-1, height // rows, width // columns, rows, columns, windows.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, height, width, windows.shape[-1])


def in_windows(x: Tensor, size: Size, shift: Size, attend: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply ``attend``, (B * nW, N, C) to (B * nW, N, C'), to the windows of a map.

    The map (B, height, width, C) is rolled by ``-shift`` before, and back after; that and the cutting are one copy, as
    is the way back. Returns (B, height, width, C').
    """
    height, width = x.shape[1:3]
    if not any(sides(shift)):
        return merge(attend(partition(x, size)), size, height, width)
    order = height, width, sides(size), sides(shift), x.device
    there, _ = _orders(len(x), *order)
    windows = attend(x.reshape(len(there), -1).index_select(0, there).view(-1, math.prod(sides(size)), x.shape[-1]))
    images, channels = windows.shape[0] * windows.shape[1] // (height * width), windows.shape[-1]
    _, back = _orders(images, *order)
    return windows.reshape(len(back), -1).index_select(0, back).view(images, height, width, channels)


@lru_cache(KEPT)
def _orders(
    images: int, height: int, width: int, size: tuple[int, int], shift: tuple[int, int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Which tokens of rolled maps the windows hold one after the other, and the inverse, int64.

    Tokens are counted in runs of as many as stay side by side whatever the shift.
    """
    run = math.gcd(size[1], shift[1])
    with torch.inference_mode(False):  # they serve calls where gradients are recorded, too
        runs = torch.arange(images * height * width // run, device=device).view(images, height, -1, 1)
        there = partition(_rolled(runs, (shift[0], shift[1] // run)), (size[0], size[1] // run)).flatten()
        return there, there.argsort()


@lru_cache(KEPT)
def window_places(height: int, width: int, size: tuple[int, int], shift: tuple[int, int]) -> Tensor:
    """Which token of a map, counted row by row, stands at each place of each of its windows: (nW, N) int32."""
    with torch.inference_mode(False):
        tokens = torch.arange(height * width, dtype=torch.int32).view(1, height, width, 1)
        return partition(_rolled(tokens, shift), size)[..., 0].contiguous()


def _rolled(x: Tensor, shift: tuple[int, int]) -> Tensor:
    return x.roll((-shift[0], -shift[1]), (1, 2))


def add_to_windows(x: Tensor, tokens: Tensor, size: Size, shift: Size) -> Tensor:
    """Add (N, C) to each window of maps (B, height, width, C) that are rolled by ``-shift`` before they are cut."""
    (b, h, w, c), (rows, columns) = x.shape, sides(size)
    tile = tokens.view(rows, columns, c).roll(sides(shift), (0, 1))
    return (x.view(b, h // rows, rows, w // columns, columns, c) + tile[:, None]).view(b, h, w, c)


@dataclass(frozen=True)
class Cut:
    """How the windows of an attention lie on the image.

    Attributes:
        height, width: of the map in tokens as it is cut, padding included.
        size: of a window in tokens.
        shift: tokens by which the map is rolled up and left before it is cut.
        stride: side of a token in pixels of the image.
        top, left: row and column, in pixels of the image, where the map begins; negative where padding comes first.
    """

    height: int
    width: int
    size: Any
    shift: Size = 0
    stride: int = 1
    top: int = 0
    left: int = 0

    def places(self) -> Tensor:
        """Row and column of each token's first pixel, (nW, N, 2) int64; outside of the image for padding."""
        rows = self.top + self.stride * torch.arange(self.height)
        columns = self.left + self.stride * torch.arange(self.width)
        found: list[Tensor] = []

        def keep(windows: Tensor) -> Tensor:
            found.append(windows)
            return windows

        # The same way as features take, so that nothing here has to know it.
        in_windows(torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1)[None], self.size, self.shift, keep)
        return found[0]


def shift_regions(height: int, width: int, size: Size, shift: Size, device=None) -> Tensor:
    """Regions (nW, N) int64 of a cyclically shifted map: tokens of a window that were neighbours before.

    Rolling the map by ``-shift`` brings opposite borders together in the last row and column of windows; three
    bands a side (as in Swin, arXiv 2103.14030, fig. 4) tell them apart.
    """

    def bands(length: int, window: int, moved: int) -> Tensor:
        position = torch.arange(length, device=device)
        return (position >= length - window).long() + (position >= length - moved).long()

    rows, columns = map(bands, (height, width), sides(size), sides(shift))
    regions = 3 * rows[:, None] + columns[None, :]
    return partition(regions[None, :, :, None], size)[..., 0]


def half(size: Size) -> tuple[int, int]:
    """The usual shift of windows."""
    rows, columns = sides(size)
    return rows // 2, columns // 2
