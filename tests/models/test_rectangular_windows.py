"""Windows that are no squares: each function against an independent computation."""

from __future__ import annotations

import pytest
import torch

from nystra_bench.attention.base import Attention
from nystra_bench.attention.exact import ExactAttention
from nystra_bench.models.windows import (
    ShiftedMaps,
    WindowAttention,
    bias_from_table,
    half,
    in_windows,
    merge,
    partition,
    relative_position_index,
    resize_bias_table,
    shift_regions,
)
from nystra_bench.sizes import plain, sides, size_text

SIZES = [(2, 3), (4, 2), (1, 6), (3, 3)]


def test_sizes_in_numbers_and_words():
    assert sides(8) == (8, 8) and sides([8, 32]) == (8, 32)
    assert plain((8, 8)) == plain(8) == 8 and plain([8, 32]) == (8, 32)
    assert (size_text(8), size_text((8, 8)), size_text((8, 32))) == ("8", "8", "8×32")


@pytest.mark.parametrize("size", SIZES)
def test_a_window_holds_the_tokens_of_its_rectangle_row_by_row(size):
    rows, columns = size
    x = torch.arange(2 * 3 * rows * 2 * columns).view(2, 3 * rows, 2 * columns, 1)
    windows = partition(x, size)
    assert windows.shape == (2 * 3 * 2, rows * columns, 1)
    third = x[0, rows : 2 * rows, :columns].flatten()  # windows 0 and 1 are above it
    assert torch.equal(windows[2, :, 0], third)
    assert torch.equal(merge(windows, size, 3 * rows, 2 * columns), x)


@pytest.mark.parametrize("size", SIZES)
def test_the_bias_of_a_pair_of_tokens_is_its_offsets_entry(size):
    rows, columns = size
    table = torch.randn((2 * rows - 1) * (2 * columns - 1), 2)
    grid = table.view(2 * rows - 1, 2 * columns - 1, 2)
    places = [(y, x) for y in range(rows) for x in range(columns)]
    expected = torch.stack(
        [torch.stack([grid[a - c + rows - 1, b - d + columns - 1] for c, d in places]) for a, b in places]
    ).permute(2, 0, 1)
    assert torch.equal(bias_from_table(table, size), expected)
    assert torch.equal(table[relative_position_index(size)].permute(2, 0, 1), expected)


@pytest.mark.parametrize("size", [(2, 4), (4, 2), (2, 6)])
def test_tokens_share_a_region_where_they_lie_on_the_same_side_of_both_borders(size):
    rows, columns = size
    height, width = 3 * rows, 2 * columns
    down, right = half(size)
    regions = shift_regions(height, width, size, half(size))
    place = torch.arange(height * width).view(1, height, width, 1).roll((-down, -right), (1, 2))
    place = partition(place, size)[..., 0]
    y, x = place // width, place % width
    # A window of the rolled map spans less than its own size of the map, unless the roll put opposite borders together.
    together = ((y[:, :, None] - y[:, None, :]).abs() < rows) & ((x[:, :, None] - x[:, None, :]).abs() < columns)
    assert torch.equal(regions[:, :, None] == regions[:, None, :], together)


@pytest.mark.parametrize("along", [0, 1])
def test_each_direction_of_a_table_is_stretched_as_a_squares(along):
    old, new = [(8, 16), (16, 8)][along], [(24, 32), (32, 24)][along]
    profile = torch.randn(15)
    rectangle = torch.empty([2 * side - 1 for side in old]).transpose(0, along).copy_(profile[:, None])
    stretched = resize_bias_table(rectangle.transpose(0, along).reshape(-1, 1), old, new)
    stretched = stretched.view([2 * side - 1 for side in new]).transpose(0, along)
    square = resize_bias_table(profile[:, None].expand(15, 15).reshape(-1, 1), 8, 24).view(47, 47)
    torch.testing.assert_close(stretched, square[:, :1].expand(47, 63))
    assert resize_bias_table(rectangle, old, old) is rectangle


class Sized(WindowAttention):
    def __init__(self, size):
        super().__init__(size)
        rows, columns = sides(size)
        self.table = torch.randn((2 * rows - 1) * (2 * columns - 1), 2)

    def position_bias(self, size):
        return bias_from_table(self.table, size)


class Seen(Attention):
    def forward(self, q, k, v, window):
        self.window = window
        return ExactAttention()(q, k, v, window)


def test_an_attention_is_told_height_and_width_and_bias_and_mask_fit_them():
    site, size = Sized((2, 4)), (2, 4)
    site.attention = Seen()
    regions = ShiftedMaps()(4, 8, size, torch.device("cpu"))
    q, k, v = torch.randn(3, 4, 2, 8, 5)
    out = site.attend(q, k, v, regions)
    window = site.attention.window
    assert (window.height, window.width, window.tokens) == (2, 4, 8)
    assert window.bias().shape == (2, 8, 8) and window.mask().shape == (4, 8, 8)
    logits = q @ k.mT + site.position_bias(size) + window.mask()[:, None]
    torch.testing.assert_close(out, logits.softmax(-1) @ v)


def test_rolling_by_two_different_shifts_and_back_changes_nothing():
    x = torch.randn(1, 4, 12, 3)
    assert torch.equal(in_windows(x, (2, 6), (1, 3), lambda windows: windows), x)
    seen = []
    in_windows(x, (2, 6), (1, 3), lambda windows: seen.append(windows) or windows)
    assert torch.equal(seen[0][0, 0], x[0, 1, 3])
