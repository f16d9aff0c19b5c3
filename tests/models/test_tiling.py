"""Restoring in tiles: what does not reach beyond a tile is restored as on the whole image."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from nystra_bench.models.tiling import _starts, restore_in_tiles


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(16, 100), st.integers(0, 50))
def test_tiles_cover_the_image_and_overlap(length, tile, overlap):
    overlap = min(overlap, tile // 2)
    starts = _starts(length, tile, overlap)
    assert starts[0] == 0 and starts[-1] + tile >= length
    assert starts[-1] == max(length - tile, 0)
    assert all(a + tile - b >= overlap and b > a for a, b in zip(starts, starts[1:], strict=False))


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("size", [(40, 40), (90, 64), (130, 33)])
def test_a_pointwise_model_is_not_changed(size, scale):
    x = torch.rand(2, 3, *size)

    def model(y):
        return F.interpolate(y, scale_factor=scale, mode="nearest") ** 2

    torch.testing.assert_close(restore_in_tiles(model, x, 48, 8, scale), model(x))


def test_a_model_of_small_reach_is_not_changed_away_from_tile_borders():
    kernel = torch.full((1, 1, 5, 5), 1 / 25)
    x = torch.rand(1, 1, 100, 100)

    def model(y):
        return F.conv2d(y, kernel, padding=2)

    tiled, whole = restore_in_tiles(model, x, 40, 16, 1), model(x)
    starts = _starts(100, 40, 16)
    near = torch.zeros(100, dtype=torch.bool)
    for start in starts[1:]:
        near[start : start + 2] = True
    for start in starts[:-1]:
        near[start + 38 : start + 40] = True
    clear = ~near[:, None] & ~near[None, :]
    torch.testing.assert_close(tiled[0, 0][clear], whole[0, 0][clear])
    assert (tiled - whole).abs().max() < 0.25  # a border weighs 1 in 17 at most where tiles overlap


def test_only_one_tile_is_in_the_model_at_a_time():
    seen = []

    def model(y):
        seen.append(tuple(y.shape[-2:]))
        return y

    restore_in_tiles(model, torch.rand(1, 3, 100, 30), 40, 8, 1)
    assert len(seen) == 3 and set(seen) == {(40, 30)}
