"""The landmark grid and its pooling."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from attention_references import grid, pooled
from hypothesis import given, settings
from hypothesis import strategies as st

from nystra_bench.attention.landmarks import landmark_grid, pooled_landmarks, refuses_landmarks


@pytest.mark.parametrize(
    "landmarks, expected", ((8, (2, 4)), (16, (4, 4)), (32, (4, 8)), (7, (1, 7)), (1, (1, 1)), (36, (6, 6)))
)
def test_grid_is_the_one_nearest_to_a_square(landmarks, expected):
    assert landmark_grid(landmarks) == expected


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 300))
def test_grid_equals_the_one_found_by_trying_all(landmarks):
    assert landmark_grid(landmarks) == grid(landmarks)


@pytest.mark.parametrize("height, width, landmarks", ((8, 8, 8), (16, 16, 16), (32, 16, 32), (7, 7, 8), (9, 5, 6)))
def test_pooling_equals_torch_adaptive_average_pooling(height, width, landmarks):
    tokens = torch.randn(2, 3, height * width, 5, dtype=torch.float64)
    image = tokens.reshape(6, height, width, 5).permute(0, 3, 1, 2)
    expected = F.adaptive_avg_pool2d(image, landmark_grid(landmarks)).flatten(2).transpose(1, 2)
    actual = pooled_landmarks(tokens, height, width, landmarks)
    torch.testing.assert_close(actual, expected.reshape(2, 3, landmarks, 5), rtol=1e-12, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 40), st.integers(0, 99))
def test_pooling_equals_the_mean_of_each_cell_wherever_the_window_is_accepted(height, width, landmarks, seed):
    if refuses_landmarks(landmarks, height, width):
        return
    tokens = torch.randn(1, height * width, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    expected = torch.from_numpy(pooled(tokens[0].numpy(), height, width, landmarks))
    torch.testing.assert_close(pooled_landmarks(tokens, height, width, landmarks)[0], expected, rtol=1e-12, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 150))
def test_a_window_is_refused_exactly_when_no_grid_fits_in(height, width, landmarks):
    refused, fitting = refuses_landmarks(landmarks, height, width), grid(landmarks, height, width)
    assert (refused is None) == (fitting is not None)
    assert fitting is None or landmark_grid(landmarks, height, width) == fitting


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 12), st.integers(1, 150))
def test_in_a_square_window_it_is_the_grid_nearest_to_a_square_or_none(side, landmarks):
    assert grid(landmarks, side, side) in (grid(landmarks), None)


def test_a_strip_of_one_row_holds_its_landmarks_in_one_row():
    assert landmark_grid(16, 1, 1225) == (1, 16) and landmark_grid(16, 1225, 1) == (16, 1)


def test_more_landmarks_than_tokens_are_refused_with_both_numbers():
    assert refuses_landmarks(65, 8, 8) == "landmarks=65 exceed the 64 tokens of a 8x8 window"


def test_a_grid_longer_than_the_window_is_refused_with_its_size():
    assert refuses_landmarks(11, 8, 8) == "landmarks=11 make a grid of 1x11, which exceeds a 8x8 window"


@pytest.mark.parametrize("landmarks", (8, 16, 32, 64))
def test_the_published_numbers_fit_every_window_from_8_on(landmarks):
    assert refuses_landmarks(landmarks, 8, 8) is None


def test_pooling_works_on_tokens_that_are_not_contiguous():
    tokens = torch.randn(2, 64, 3, 5).transpose(1, 2)
    for landmarks in (16, 6):
        expected = pooled_landmarks(tokens.contiguous(), 8, 8, landmarks)
        assert torch.equal(pooled_landmarks(tokens, 8, 8, landmarks), expected)
