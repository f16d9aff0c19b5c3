"""How many features stand for a position bias: what too few of them do, and the fewest that are enough."""

import pytest
import torch
from attention_references import random_qkv, relative_error, smooth_bias_of

from nystra_bench.attention.base import Window
from nystra_bench.attention.exact import ExactAttention
from nystra_bench.attention.folding import bias_factors, centred, error_of_factors, factors_within, folded_bias
from nystra_bench.attention.nystra_plus_v5 import BIAS_ERROR, RANKS, NystraPlusV5Attention

SIDE = 12


def bias_of(strength: float) -> torch.Tensor:
    return strength * smooth_bias_of(SIDE)


def window_of(strength: float) -> Window:
    return Window(SIDE, SIDE, lambda: bias_of(strength))


def test_the_error_is_that_of_outputs_by_loops():
    bias = centred(bias_of(1.0))
    f, g = bias_factors(bias, 4)
    worst = 0.0
    for head in range(len(bias)):
        total = 0.0
        for i in range(SIDE * SIDE):
            weights, wrong = bias[head, i].softmax(0), g[head] @ f[head, i] - bias[head, i]
            wrong = wrong - (weights * wrong).sum()
            total += float((weights * wrong).square().sum())
        worst = max(worst, (total / SIDE**2) ** 0.5)
    assert error_of_factors(bias, f, g) == pytest.approx(worst, rel=1e-4)


def test_the_error_is_what_outputs_of_independent_values_lose():
    bias = centred(bias_of(1.0))
    f, g = bias_factors(bias, 16)
    values = torch.randn(SIDE * SIDE, 4000, generator=torch.Generator().manual_seed(0))
    lost = ((f @ g.mT).softmax(-1) - bias.softmax(-1)) @ values
    assert lost.square().mean((1, 2)).sqrt().max().item() == pytest.approx(error_of_factors(bias, f, g), rel=0.1)


@pytest.mark.parametrize("error", [1e-1, 1e-2, 1e-3])
def test_the_first_rank_that_is_enough_is_taken(error):
    bias, ranks = centred(bias_of(2.0)), (2, 4, 8, 16, 32)
    f, g = factors_within(bias, ranks, error)
    errors = {rank: error_of_factors(bias, *bias_factors(bias, rank)) for rank in ranks}
    assert f.shape == g.shape and f.shape[-1] == next((r for r in ranks if errors[r] <= error), ranks[-1])


def test_where_none_is_enough_the_last_is_taken():
    f, _ = factors_within(centred(bias_of(1.0)), (2, 4), 0.0)
    assert f.shape[-1] == 4


def test_no_bias_and_no_rank_have_no_features():
    assert folded_bias(Window(SIDE, SIDE), None, RANKS, BIAS_ERROR) is None
    assert folded_bias(window_of(1.0), 0) is None


def test_version_5_takes_more_features_where_the_bias_says_more():
    def rank(strength):
        factors = folded_bias(window_of(strength), None, RANKS, BIAS_ERROR)
        return factors[0].shape[-1]

    assert rank(0.1) == RANKS[0] < rank(4.0)
    qkv, window = random_qkv(1, 2, SIDE * SIDE, 16), window_of(4.0)
    exact = ExactAttention()(*qkv, window)
    errors = [
        relative_error(NystraPlusV5Attention(exact_up_to=0, bias_rank=given)(*qkv, window_of(4.0)), exact)
        for given in (RANKS[0], None)
    ]
    assert errors[1] < errors[0] / 2
