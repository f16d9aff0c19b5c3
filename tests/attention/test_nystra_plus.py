"""nystra_plus and folded attention: what is folded is what it stands for."""

from __future__ import annotations

import pytest
import torch
from attention_references import random_qkv, relative_error

from nystra_bench.attention.base import Window, region_mask
from nystra_bench.attention.exact import ExactAttention
from nystra_bench.attention.folded import FoldedAttention
from nystra_bench.attention.folding import bias_factors, pooled_mask
from nystra_bench.attention.landmarks import pooled_landmarks
from nystra_bench.attention.nystra_plus import NystraPlusAttention
from nystra_bench.models.windows import bias_from_table, shift_regions

SIDE, HEADS, DIM = 16, 2, 16
TOKENS = SIDE * SIDE


def smooth_bias(seed=0):
    """A relative position bias (H, N, N) as trained models have: it falls with the distance, and is not symmetric."""
    offset = torch.arange(1 - SIDE, SIDE).float()
    y, x = torch.meshgrid(offset, offset, indexing="ij")
    table = torch.stack([2 - 0.3 * (y**2 + x**2).sqrt() + 0.1 * y, 1 - 0.1 * (y.abs() + x.abs()) - 0.05 * x], -1)
    return bias_from_table(table.flatten(0, 1), SIDE)


def with_bias(regions=None) -> Window:
    """A window of its own for each method, as layers have: what a method keeps is its own."""
    return Window(SIDE, SIDE, smooth_bias, None if regions is None else lambda: regions)


def smooth_qkv(windows, logits=3.0):
    """Tokens of a smooth picture, so that few landmarks can stand for them."""
    rng = torch.Generator().manual_seed(3)
    small = torch.randn(3 * windows * HEADS, DIM, 4, 4, generator=rng)
    maps = torch.nn.functional.interpolate(small, size=(SIDE, SIDE), mode="bicubic").flatten(2).transpose(1, 2)
    q, k, v = maps.view(3, windows, HEADS, TOKENS, DIM)
    scale = (logits / (q @ k.transpose(-2, -1)).std()) ** 0.5
    return q * scale, k * scale, v


def test_the_pooled_bias_is_the_bias_of_the_averaged_features():
    bias = smooth_bias()
    f, g = bias_factors(bias, TOKENS)
    torch.testing.assert_close(f @ g.transpose(-2, -1), bias, rtol=1e-4, atol=1e-4)
    attention = NystraPlusAttention(landmarks=16)
    left, middle, right = attention._pooled_bias(torch.zeros(1), Window(SIDE, SIDE, lambda: bias))
    f_marks, g_marks = (pooled_landmarks(x, SIDE, SIDE, 16) for x in (f, g))
    for pooled, expected in ((left, f @ g_marks.mT), (middle, f_marks @ g_marks.mT), (right, f_marks @ g.mT)):
        torch.testing.assert_close(pooled[0], expected, rtol=1e-3, atol=1e-3)


def test_a_bias_of_low_rank_is_recovered_by_its_factors_whatever_the_window():
    for tokens in (64, 1024):  # a full SVD, and a randomised one
        rng = torch.Generator().manual_seed(tokens)
        bias = torch.randn(1, tokens, 4, generator=rng) @ torch.randn(1, 4, tokens, generator=rng)
        f, g = bias_factors(bias, 4)
        assert f.shape == g.shape == (1, tokens, 4)
        assert relative_error(f @ g.mT, bias) < 1e-4
        again, _ = bias_factors(bias, 4)
        assert torch.equal(f, again)


@pytest.mark.parametrize("landmarks", [4, 16, 64])
def test_the_mask_of_landmarks_within_one_region_is_the_shift_mask(landmarks):
    regions = shift_regions(2 * SIDE, 2 * SIDE, SIDE, SIDE // 2)
    left, middle, right = pooled_mask(regions, lambda x: pooled_landmarks(x, SIDE, SIDE, landmarks), torch.float32)
    mask = region_mask(regions)
    pooled = pooled_landmarks(mask, SIDE, SIDE, landmarks)
    torch.testing.assert_close(right[:, 0], pooled)
    torch.testing.assert_close(left[:, 0], pooled.mT)
    torch.testing.assert_close(middle[:, 0], pooled_landmarks(pooled.mT, SIDE, SIDE, landmarks))
    assert set(left.unique().tolist()) == {0.0, -100.0}


def test_tokens_do_not_see_other_regions():
    q, k, v = smooth_qkv(4)
    regions = shift_regions(2 * SIDE, 2 * SIDE, SIDE, SIDE // 2)
    window = Window(SIDE, SIDE, smooth_bias, lambda: regions)
    weights = NystraPlusAttention(landmarks=16).matrix(q, k, window)
    across = (regions[:, :, None] != regions[:, None, :])[:, None].expand_as(weights)
    assert weights[across].abs().max() < 1e-6


def test_the_bias_brings_the_output_nearer_to_the_exact_one():
    q, k, v = smooth_qkv(2)
    exact = ExactAttention()(q, k, v, with_bias())
    errors = {
        rank: relative_error(NystraPlusAttention(bias_rank=rank)(q, k, v, with_bias()), exact) for rank in (0, 8, None)
    }
    assert errors[None] <= 1.05 * errors[8] < 0.6 * errors[0]
    assert errors[None] < 0.3


@pytest.mark.parametrize("completion", [False, True])
def test_more_landmarks_and_iterations_come_closer(completion):
    q, k, v = smooth_qkv(2)
    exact = ExactAttention()(q, k, v, with_bias())
    settings = ((4, 2), (16, 6), (64, 12), (TOKENS, 30))
    methods = [NystraPlusAttention(m, i, completion=completion) for m, i in settings]
    errors = [relative_error(method(q, k, v, with_bias()), exact) for method in methods]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.03


def test_rows_sum_to_one_with_completion_even_without_iterations():
    q, k, _ = random_qkv(2, HEADS, TOKENS, DIM)
    completed = NystraPlusAttention(iterations=0, completion=True).matrix(q, k, with_bias()).sum(-1)
    torch.testing.assert_close(completed, torch.ones_like(completed), rtol=0, atol=1e-4)
    plain = NystraPlusAttention(iterations=0).matrix(q, k, with_bias()).sum(-1)
    assert (plain - 1).abs().max() > 0.01


def test_the_bias_is_asked_for_once_a_layer_and_window():
    asked = []
    window = Window(SIDE, SIDE, lambda: asked.append(1) or smooth_bias())
    for attention in (NystraPlusAttention(), FoldedAttention()):
        window.cache.clear()
        asked.clear()
        for _ in range(3):
            attention(*smooth_qkv(1), window)
        assert len(asked) == 1


def test_folded_attention_is_exact_attention_with_the_reduced_bias():
    q, k, v = smooth_qkv(4)
    regions = shift_regions(2 * SIDE, 2 * SIDE, SIDE, SIDE // 2)
    exact = ExactAttention()(q, k, v, with_bias(regions))
    errors = [relative_error(FoldedAttention(rank)(q, k, v, with_bias(regions)), exact) for rank in (2, 8, 32, TOKENS)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-4


@pytest.mark.parametrize(
    ("parameters", "named"),
    [({"landmarks": 0}, "landmarks=0"), ({"iterations": -1}, "iterations=-1"), ({"bias_rank": -1}, "bias_rank=-1")],
)
def test_parameters_out_of_range_are_refused(parameters, named):
    with pytest.raises(ValueError, match=named):
        NystraPlusAttention(**parameters)
    with pytest.raises(ValueError, match="bias_rank=0"):
        FoldedAttention(bias_rank=0)
