"""How many features stand for a position bias."""

import pytest
import torch
from attention_references import smooth_bias_of

from nystra_bench.attention.base import Window
from nystra_bench.attention.folding import bias_factors, centred, folded_bias

SIDE = 12


def test_no_bias_and_no_rank_have_no_features():
    assert folded_bias(Window(SIDE, SIDE), 8) is None
    assert folded_bias(Window(SIDE, SIDE, lambda: smooth_bias_of(SIDE)), 0) is None


@pytest.mark.parametrize("rank", [1, 4, SIDE * SIDE, 1000])
def test_the_features_are_the_nearest_of_their_rank(rank):
    """What is left is the tail of the singular values, by Eckart and Young; with as many as tokens, nothing is."""
    bias = centred(smooth_bias_of(SIDE))
    f, g = bias_factors(bias, rank)
    left = (bias - f @ g.mT).square().sum((1, 2))
    tail = torch.linalg.svdvals(bias)[:, rank:].square().sum(1)
    assert f.shape == g.shape == (len(bias), SIDE * SIDE, min(rank, SIDE * SIDE))
    assert torch.allclose(left, tail, rtol=1e-3, atol=1e-6)
