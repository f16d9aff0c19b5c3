"""Shapes, windows and bounds that the kernels of CPUs and GPUs share."""

from __future__ import annotations

import torch

from nystra_bench.attention.base import Window
from nystra_bench.models.windows import bias_from_table, shift_regions

CLOSE = 1e-5
"""Relative RMS difference."""

HEADS = 2


def window_of(height, width, with_bias=True, regions=None) -> Window:
    """A window of its own for each method; the bias falls with the distance, and is not symmetric."""

    def bias():
        y, x = torch.meshgrid(torch.arange(1.0 - height, height), torch.arange(1.0 - width, width), indexing="ij")
        table = torch.stack([2 - 0.3 * (y**2 + x**2).sqrt() + 0.1 * y, 1 - 0.1 * (y.abs() + x.abs()) - 0.05 * x], -1)
        return bias_from_table(table.flatten(0, 1), (height, width))

    return Window(height, width, bias if with_bias else None, None if regions is None else lambda: regions)


def shifted(height, width) -> torch.Tensor:
    """Regions (4, N) of a map of two by two windows, shifted by half a window."""
    return shift_regions(2 * height, 2 * width, (height, width), (height // 2, width // 2))


def errors_of_heads(actual, expected) -> torch.Tensor:
    """Relative RMS differences (B * nW, H)."""
    apart = (actual.double() - expected).flatten(2).norm(dim=-1)
    return apart / expected.double().flatten(2).norm(dim=-1).clamp(1e-30)


CASES = {
    "default": ((16, 16), 30, {}),
    "narrow": ((16, 16), 10, {}),
    "one vector": ((8, 8), 16, {}),
    "wide": ((16, 16), 64, {}),
    "rectangle": ((8, 32), 10, {}),
    "odd": ((9, 13), 32, {}),
    "flat": ((1, 117), 16, {"landmarks": 8}),
    "four landmarks": ((16, 16), 30, {"landmarks": 4}),
    "an odd number of landmarks": ((16, 16), 30, {"landmarks": 21}),
    "64 landmarks": ((16, 16), 16, {"landmarks": 64}),
    "128 landmarks": ((16, 24), 16, {"landmarks": 128}),
    "rank 3": ((12, 12), 30, {"bias_rank": 3}),
    "rank 24": ((12, 12), 30, {"bias_rank": 24}),
    "no features": ((16, 16), 30, {"bias_rank": 0}),
    "no diagonal": ((16, 16), 30, {"exact_diagonal": False}),
    "no iteration": ((16, 16), 30, {"iterations": 0}),
    "narrower than a vector": ((8, 8), 3, {}),
    "all tokens are landmarks": ((4, 4), 16, {}),
    "a thousand tokens": ((32, 32), 30, {}),
}
