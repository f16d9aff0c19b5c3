"""Cutting into windows, padding, shift regions and the position bias, against plain independent constructions."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nystra_bench.attention.base import Attention
from nystra_bench.models.cutting import add_to_windows, in_windows, merge, partition, shift_regions, window_places
from nystra_bench.models.windows import (
    WindowAttention,
    bias_from_table,
    pad_to_multiple,
    reflect_pad,
    relative_position_index,
    resize_bias_table,
)

SIDES = st.integers(1, 9)

# --------------------------------------------------------------------------- partition and merge


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 8), st.integers(1, 3))
def test_merge_undoes_partition(batch, rows, columns, size, channels):
    x = torch.arange(batch * rows * columns * size**2 * channels).view(batch, rows * size, columns * size, channels)
    windows = partition(x, size)
    assert windows.shape == (batch * rows * columns, size * size, channels)
    assert torch.equal(merge(windows, size, rows * size, columns * size), x)


def test_windows_of_one_image_stand_together_row_by_row():
    x = torch.arange(2 * 4 * 6).view(2, 4, 6, 1)
    windows = partition(x, 2)[..., 0]
    for i in range(2 * 2 * 3):
        b, row, column = i // 6, i % 6 // 3, i % 3
        expected = x[b, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2, 0].flatten()
        assert torch.equal(windows[i], expected)


def test_partition_takes_maps_that_are_not_contiguous():
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(partition(x.permute(0, 2, 3, 1), 4), partition(x.permute(0, 2, 3, 1).contiguous(), 4))
    rolled = x.permute(0, 2, 3, 1).roll((-2, -2), (1, 2))
    assert torch.equal(partition(rolled, 4), partition(rolled.contiguous(), 4))


def rolled(x, size, shift, attend):
    """The usual way: roll, cut, put together, and roll back."""
    windows = attend(partition(x.roll((-shift[0], -shift[1]), (1, 2)), size))
    return merge(windows, size, *x.shape[1:3]).roll(shift, (1, 2))


SIDES_AND_SHIFTS = st.tuples(st.integers(1, 3), st.integers(1, 8)).flatmap(
    lambda given: st.tuples(st.just(given[0]), st.just(given[1]), st.integers(0, given[1] - 1))
)


@settings(max_examples=60, deadline=None)
@given(SIDES_AND_SHIFTS, SIDES_AND_SHIFTS, st.integers(1, 3))
def test_cutting_at_once_is_rolling_and_cutting(vertical, horizontal, batch):
    (rows, high, down), (columns, wide, right) = vertical, horizontal
    x = torch.rand(batch, rows * high, columns * wide, 3)
    given, expected = [], []

    def attend(keep, windows):
        keep.append(windows)
        return torch.cat([windows, 2 * windows.flip(1)], -1)

    out = in_windows(x, (high, wide), (down, right), partial(attend, given))
    assert torch.equal(out, rolled(x, (high, wide), (down, right), partial(attend, expected)))
    assert torch.equal(given[0], expected[0])
    places = window_places(rows * high, columns * wide, (high, wide), (down, right))
    assert places.dtype == torch.int32 and places.shape == given[0].view(batch, -1, high * wide, 3).shape[1:3]
    assert torch.equal(x.flatten(1, 2)[:, places.long()].flatten(0, 1), given[0])
    tokens = torch.rand(high * wide, 3)
    added = in_windows(add_to_windows(x, tokens, (high, wide), (down, right)), (high, wide), (down, right), lambda w: w)
    assert torch.equal(added, rolled(x, (high, wide), (down, right), lambda windows: windows + tokens))


def test_fewer_images_may_come_back_than_were_cut():
    x = torch.rand(6, 4, 8, 3)
    out = in_windows(x, 4, 2, lambda windows: windows.chunk(3)[1])
    assert torch.equal(out, x[2:4])


def test_gradients_pass_through_shifted_windows():
    x = torch.rand(1, 8, 8, 2, requires_grad=True)
    with torch.inference_mode():
        in_windows(torch.rand(1, 8, 8, 2), 4, 2, lambda windows: windows)  # what it keeps serves both
    (in_windows(x, 4, 2, lambda windows: windows**2)).sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.detach())


# --------------------------------------------------------------------------- padding


@settings(max_examples=80, deadline=None)
@given(SIDES, SIDES, st.integers(0, 30), st.integers(0, 30))
def test_reflect_pad_equals_numpy_however_small_the_image(height, width, bottom, right):
    image = np.random.default_rng(0).random((1, 2, height, width), np.float32)
    expected = np.pad(image, ((0, 0), (0, 0), (0, bottom), (0, right)), mode="reflect")
    np.testing.assert_array_equal(reflect_pad(torch.from_numpy(image), bottom, right).numpy(), expected)


def test_reflect_pad_repeats_a_single_pixel():
    assert reflect_pad(torch.full((1, 1, 1, 1), 7.0), 3, 2).tolist() == [[[[7.0] * 3] * 4]]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 32))
def test_padding_reaches_the_next_multiple_and_keeps_the_image_in_place(height, width, multiple):
    image = torch.rand(1, 1, height, width)
    padded = pad_to_multiple(image, multiple)
    for before, after in zip((height, width), padded.shape[-2:], strict=True):
        assert after % multiple == 0 and 0 <= after - before < multiple
    assert torch.equal(padded[..., :height, :width], image)


# --------------------------------------------------------------------------- the shift


def classical_regions(height: int, width: int, size: int, shift: int) -> torch.Tensor:
    """Swin's construction: paint the nine slices of the shifted map, then cut it into windows."""
    painted = np.empty((height, width), np.int64)
    number = 0
    for rows in (slice(0, -size), slice(-size, -shift), slice(-shift, None)):
        for columns in (slice(0, -size), slice(-size, -shift), slice(-shift, None)):
            painted[rows, columns] = number
            number += 1
    windows = [
        painted[y : y + size, x : x + size].ravel() for y in range(0, height, size) for x in range(0, width, size)
    ]
    return torch.from_numpy(np.stack(windows))


@pytest.mark.parametrize("size", (2, 3, 7, 8, 16))
@pytest.mark.parametrize("rows, columns", ((1, 1), (1, 3), (2, 2), (4, 3)))
def test_regions_equal_the_classical_slices(size, rows, columns):
    height, width = rows * size, columns * size
    expected = classical_regions(height, width, size, size // 2)
    actual = shift_regions(height, width, size, size // 2)
    assert actual.dtype == torch.int64
    assert torch.equal(actual, expected)


def test_tokens_of_one_region_were_in_one_window_sized_neighbourhood_before_the_shift():
    size, shift = 4, 2
    row, column = torch.meshgrid(torch.arange(8), torch.arange(12), indexing="ij")
    place = torch.stack([row, column], -1)[None].roll((-shift, -shift), (1, 2))
    places, regions = partition(place, size), shift_regions(8, 12, size, shift)
    distance = (places[:, :, None] - places[:, None, :]).abs().amax(-1)
    same = regions[:, :, None] == regions[:, None, :]
    assert distance[same].max() < size
    assert distance[~same].min() >= size


# --------------------------------------------------------------------------- position bias


@pytest.mark.parametrize("size", (1, 2, 3, 7, 8))
def test_bias_equals_the_lookup_by_the_released_index(size):
    table = torch.randn((2 * size - 1) ** 2, 3)
    expected = table[relative_position_index(size)].permute(2, 0, 1)
    assert torch.equal(bias_from_table(table, size), expected)


def test_relative_position_index_is_the_offset_of_query_and_key():
    size = 5
    index = relative_position_index(size)
    for i in range(size * size):
        for j in range(size * size):
            dy, dx = i // size - j // size, i % size - j % size
            assert index[i, j] == (dy + size - 1) * (2 * size - 1) + dx + size - 1


def test_bias_has_a_gradient_to_its_table():
    table = torch.randn(25, 2, requires_grad=True)
    bias_from_table(table, 3).sum().backward()
    counts = torch.bincount(relative_position_index(3).flatten(), minlength=25)
    assert torch.equal(table.grad, counts[:, None].expand(25, 2).float())


@pytest.mark.parametrize("size, new_size", ((8, 8), (7, 7)))
def test_a_table_keeps_its_values_at_the_same_size(size, new_size):
    table = torch.randn((2 * size - 1) ** 2, 3)
    assert torch.equal(resize_bias_table(table, size, new_size), table)


@pytest.mark.parametrize("size, new_size", ((8, 16), (8, 32), (7, 14), (16, 8)))
def test_a_resized_table_has_the_new_shape_and_keeps_constants_head_by_head(size, new_size):
    table = torch.tensor([0.5, -2.0, 3.0]).expand((2 * size - 1) ** 2, 3)
    resized = resize_bias_table(table, size, new_size)
    assert resized.shape == ((2 * new_size - 1) ** 2, 3)
    torch.testing.assert_close(resized, table[:1].expand_as(resized))


@pytest.mark.parametrize("size, new_size", ((8, 16), (8, 32), (16, 8)))
def test_a_resized_table_keeps_its_symmetries(size, new_size):
    """Symmetric under negation of the offset in y, in x, and under their exchange."""
    grid = torch.randn(2 * size - 1, 2 * size - 1, dtype=torch.float64)
    grid = grid + grid.flip(0)
    grid = grid + grid.flip(1)
    grid = grid + grid.t()
    resized = resize_bias_table(grid.reshape(-1, 1), size, new_size).view(2 * new_size - 1, 2 * new_size - 1)
    for mirrored in (resized.flip(0), resized.flip(1), resized.t()):
        torch.testing.assert_close(mirrored, resized, rtol=1e-10, atol=1e-10)


def test_a_resized_table_tells_rows_from_columns_and_heads():
    """Head 0 grows with the row offset, head 1 with the column offset; so they do after the resizing."""
    size, new_size = 8, 16
    offset = torch.linspace(-1, 1, 2 * size - 1)
    table = torch.stack(torch.meshgrid(offset, offset, indexing="ij"), -1).reshape(-1, 2)
    rows, columns = resize_bias_table(table, size, new_size).view(2 * new_size - 1, -1, 2).unbind(-1)
    assert (rows.diff(dim=0)[2:-2] > 0).all() and rows.diff(dim=1).abs().max() < 1e-5
    assert (columns.diff(dim=1)[:, 2:-2] > 0).all() and columns.diff(dim=0).abs().max() < 1e-5


def bicubic_matrix(size: int, new_size: int) -> np.ndarray:
    """(new_size, size): Keys' cubic convolution with a = -0.75, pixel centres at half-integers, edges repeated."""

    def keys(x: float, a: float = -0.75) -> float:
        x = abs(x)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0

    matrix = np.zeros((new_size, size))
    for i in range(new_size):
        centre = (i + 0.5) * size / new_size - 0.5
        for j in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            matrix[i, min(max(j, 0), size - 1)] += keys(centre - j)
    return matrix


@pytest.mark.parametrize("size, new_size", ((8, 16), (8, 32), (7, 12), (16, 8)))
def test_a_table_is_resized_by_bicubic_interpolation_as_swin_does(size, new_size):
    side, new_side = 2 * size - 1, 2 * new_size - 1
    table = torch.randn(side * side, 3, dtype=torch.float64)
    stretch = torch.from_numpy(bicubic_matrix(side, new_side))
    expected = torch.einsum("yi,xj,ijh->yxh", stretch, stretch, table.view(side, side, 3))
    torch.testing.assert_close(resize_bias_table(table, size, new_size).view(new_side, new_side, 3), expected)


# --------------------------------------------------------------------------- the place of an attention


class Remembers(Attention):
    """Computes something once a layer, and counts how often it had to."""

    def __init__(self):
        super().__init__()
        self.computed = 0

    def forward(self, q, k, v, window):
        if "factors" not in window.cache:
            self.computed += 1
            window.cache["factors"] = True
        return v


class Site(WindowAttention):
    def __init__(self):
        super().__init__(2)
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.attention = Remembers()


def attend(site):
    v = torch.zeros(1, 1, 4, 1)
    site.attend(v, v, v, None)


@pytest.mark.parametrize(
    "change",
    (
        lambda site: site.double(),
        lambda site: site.to("meta"),
        lambda site: site.load_state_dict(site.state_dict()),
        lambda site: torch.nn.Sequential(site).load_state_dict(torch.nn.Sequential(site).state_dict()),
    ),
    ids=("dtype", "device", "weights", "weights of the whole model"),
)
def test_what_an_attention_caches_lasts_until_the_layers_weights_change(change):
    site = Site()
    attend(site)
    attend(site)
    assert site.attention.computed == 1
    change(site)
    attend(site)
    assert site.attention.computed == 2


def test_layers_do_not_share_a_cache():
    first, second = Site(), Site()
    second.attention = first.attention
    attend(first)
    attend(second)
    assert first.attention.computed == 2


def test_two_attentions_of_a_layer_do_not_share_a_cache():
    site = Site()
    attend(site)
    other = site.attention = Remembers()
    attend(site)
    assert other.computed == 1


def test_a_layer_can_be_copied_after_something_was_cached():
    site = Site()
    attend(site)
    twin = copy.deepcopy(site)
    attend(twin)
    assert twin.attention is not site.attention and twin.attention.computed == 2


def test_a_method_of_its_own_does_not_inherit_how_maps_are_read():
    class OnMaps(Attention):
        def forward(self, q, k, v, window):
            return v

        def reads_maps(self, x, window):
            return True

        def forward_map(self, q, k, v, window, places, scale):
            return v

    class Doubles(OnMaps):
        def forward(self, q, k, v, window):
            return 2 * v

    class Renamed(OnMaps):
        pass

    assert [kind().reads_maps(None, None) for kind in (OnMaps, Doubles, Renamed)] == [True, False, True]
