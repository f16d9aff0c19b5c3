"""The position bias of single pairs is that of the whole matrix, less the mean of its row."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import window_of

from nystra_bench.attention.base import Window
from nystra_bench.attention.folding import centred
from nystra_bench.attention.pairs import bias_of_pairs, entries_of_offsets

LIKE = torch.empty(0)
HEADS = 2


def all_pairs(window: Window) -> torch.Tensor:
    heads, tokens = torch.arange(HEADS), torch.arange(window.tokens).expand(HEADS, -1)
    return bias_of_pairs(window, LIKE).of(heads, tokens, tokens)


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 9), st.integers(1, 9))
def test_a_bias_of_offsets_is_kept_as_a_table(height, width):
    window = window_of(height, width)
    assert bias_of_pairs(window, LIKE).entries.shape == (HEADS, (2 * height - 1) * (2 * width - 1))
    assert torch.equal(all_pairs(window), centred(window.bias()))


def test_any_other_bias_is_kept_whole():
    bias = window_of(3, 4).bias()
    bias[1, 7, 2] += 1
    assert entries_of_offsets(bias, 3, 4) is None
    window = Window(3, 4, lambda: bias)
    assert bias_of_pairs(window, LIKE).entries.shape == (HEADS, 144)
    assert torch.equal(all_pairs(window), centred(bias))


def test_pairs_are_picked_by_head_query_and_key():
    window = window_of(4, 5)
    heads, queries, keys = torch.tensor([1, 0, 1]), torch.tensor([[3, 19]] * 3), torch.tensor([[0, 7, 7, 18]] * 3)
    expected = centred(window.bias())[heads[:, None, None], queries[..., None], keys[:, None]]
    assert torch.equal(bias_of_pairs(window, LIKE).of(heads, queries, keys), expected)


def test_it_has_the_dtype_that_is_asked_for_and_nothing_comes_of_no_bias():
    assert bias_of_pairs(window_of(3, 3), LIKE.double()).entries.dtype == torch.float64
    assert bias_of_pairs(Window(3, 3), LIKE) is None


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (6, 1)])
def test_strips_have_their_corners_twice(size):
    assert torch.equal(all_pairs(window_of(*size)), centred(window_of(*size).bias()))
