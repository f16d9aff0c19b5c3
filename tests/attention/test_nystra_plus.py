"""nystra_plus and folded attention: what is folded is what it stands for."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from attention_references import random_qkv, relative_error, smooth_bias_of

from nystra_bench.attention.base import Window
from nystra_bench.attention.exact import ExactAttention
from nystra_bench.attention.folded import FoldedAttention
from nystra_bench.attention.folding import bias_factors, centred
from nystra_bench.attention.landmarks import central_tokens, pooled_landmarks
from nystra_bench.attention.nystra_plus import LANDMARKS_FROM, NystraPlusAttention
from nystra_bench.attention.pinv import razavi_pinv
from nystra_bench.models.windows import shift_regions

SIDE, HEADS, DIM = 16, 2, 16
TOKENS = SIDE * SIDE
smooth_bias = partial(smooth_bias_of, SIDE)


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


def test_a_bias_of_low_rank_is_recovered_by_its_factors_whatever_the_window():
    for tokens in (64, 1024):  # a full SVD, and a randomised one
        rng = torch.Generator().manual_seed(tokens)
        bias = torch.randn(1, tokens, 4, generator=rng) @ torch.randn(1, 4, tokens, generator=rng)
        f, g = bias_factors(centred(bias), 4)
        assert f.shape == g.shape == (1, tokens, 4)
        assert relative_error(f @ g.mT, bias - bias.mean(-1, keepdim=True)) < 1e-4
        again, _ = bias_factors(centred(bias), 4)
        assert torch.equal(f, again)


@pytest.mark.parametrize("landmarks", [4, 8, 16, 64])
@pytest.mark.parametrize("landmarks_from", LANDMARKS_FROM)
def test_tokens_do_not_see_other_regions(landmarks, landmarks_from):
    """Where a window is shifted by half of its side, as in all models, and for keys that are far from one another."""
    q, k, v = smooth_qkv(4, logits=20)
    regions = shift_regions(2 * SIDE, 2 * SIDE, SIDE, SIDE // 2)
    window = Window(SIDE, SIDE, smooth_bias, lambda: regions)
    weights = NystraPlusAttention(landmarks, landmarks_from=landmarks_from).matrix(q, k, window)
    across = (regions[:, :, None] != regions[:, None, :])[:, None].expand_as(weights)
    assert weights[across].abs().max() < 1e-6


METHODS = [("clusters", 0), ("clusters", 2), ("cells", 0)]


@pytest.mark.parametrize(("landmarks_from", "clustering"), METHODS)
def test_the_bias_brings_the_output_nearer_to_the_exact_one(landmarks_from, clustering):
    q, k, v = smooth_qkv(2)
    exact = ExactAttention()(q, k, v, with_bias())
    methods = {
        rank: NystraPlusAttention(bias_rank=rank, landmarks_from=landmarks_from, clustering=clustering)
        for rank in (0, 2, 16)
    }
    errors = {rank: relative_error(method(q, k, v, with_bias()), exact) for rank, method in methods.items()}
    assert errors[16] < errors[2] < errors[0]
    assert errors[16] < 0.6 * errors[0]


def test_more_landmarks_come_closer_and_all_of_them_are_exact_but_for_the_rank_of_the_bias():
    q, k, v = smooth_qkv(2)
    exact = ExactAttention()(q, k, v, with_bias())
    methods = [NystraPlusAttention(m, bias_rank=TOKENS) for m in (4, 16, 64, TOKENS)]
    errors = [relative_error(method(q, k, v, with_bias()), exact) for method in methods]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-4


def plain(q, k, v, bias, landmarks, iterations, clustering, own):
    """The formula by loops over clusters, with the bias whole; for one window and head.

    ``own`` (N,): the bias of the tokens to themselves, or None for no exact diagonal.
    """
    extended = torch.cat([k, bias[1]], -1)  # G of the factors stands beside the keys
    means = extended[central_tokens(landmarks, SIDE, SIDE)]
    sample = extended.view(SIDE, SIDE, -1)[1::2, 1::2].flatten(0, 1)
    for _ in range(clustering):
        nearest = torch.cdist(sample, means).argmin(-1)
        groups = [nearest == c for c in range(landmarks)]
        means = torch.stack([sample[g].mean(0) if g.any() else mean for g, mean in zip(groups, means, strict=True)])
    nearest = torch.cdist(extended, means).argmin(-1)
    groups = [nearest == c for c in range(landmarks)]
    sizes = q.new_tensor([float(g.sum()) for g in groups])
    logits = q @ k.T + bias[0] @ bias[1].T
    to_mean = torch.stack([logits[:, g].mean(1) for g in groups], 1) + sizes.log()
    rows = torch.stack([to_mean[g].mean(0) for g in groups])
    left, kernel = to_mean.softmax(-1), rows.softmax(-1)
    right = torch.stack([logits[g].mean(0) for g in groups]).softmax(-1)
    first = torch.stack([v[g].mean(0) for g in groups])
    values = first + razavi_pinv(kernel, iterations) @ (right @ v - kernel @ first)
    if own is None:
        return left @ values
    masses = to_mean.exp()
    member = torch.stack([g.double() / g.sum() for g in groups], 1)
    beyond = (q * k).sum(-1).add(own).exp() - (masses * member).sum(1)
    return (masses @ values + beyond[:, None] * v) / (masses.sum(1) + beyond)[:, None]


@pytest.mark.parametrize("clustering", [0, 1, 3])
@pytest.mark.parametrize("exact_diagonal", [False, True])
def test_agrees_with_the_formula_by_loops(clustering, exact_diagonal):
    q, k, v = (x.double() for x in smooth_qkv(1))
    attention = NystraPlusAttention(8, 4, 3, clustering=clustering, exact_diagonal=exact_diagonal)
    out = attention(q, k, v, Window(SIDE, SIDE, lambda: smooth_bias().double()))
    bias = centred(smooth_bias())
    f, g = (x.double() for x in bias_factors(bias, 3))
    for head in range(HEADS):
        own = bias[head].diagonal().double() if exact_diagonal else None
        expected = plain(q[0, head], k[0, head], v[0, head], (f[head], g[head]), 8, 4, clustering, own)
        torch.testing.assert_close(out[0, head], expected, rtol=1e-4, atol=1e-4)  # the inverse is in float32


def test_a_token_that_sees_only_itself_keeps_its_value():
    """As exact attention has it where keys are long; a mean of keys alone would lose that."""
    _, k, v = random_qkv(2, HEADS, TOKENS, DIM)
    q = k = 60**0.5 * torch.nn.functional.normalize(k, dim=-1)
    window = Window(SIDE, SIDE)
    assert relative_error(ExactAttention()(q, k, v, window), v) < 1e-3
    assert relative_error(NystraPlusAttention()(q, k, v, window), v) < 1e-3
    assert relative_error(NystraPlusAttention(exact_diagonal=False)(q, k, v, window), v) > 0.3


def test_cells_of_the_grid_can_be_the_landmarks():
    """By the formula: the cells' means, each of as many tokens as it has."""
    q, k, v = (x.double() for x in smooth_qkv(1))
    out = NystraPlusAttention(4, 6, landmarks_from="cells", exact_diagonal=False)(q, k, v, Window(SIDE, SIDE))
    size = SIDE, SIDE, 4
    q_marks, k_marks, v_marks = (pooled_landmarks(x, *size) for x in (q, k, v))
    kernel = (q_marks @ k_marks.mT).softmax(-1)  # all cells are of one size, which softmax does not see
    correct = (q_marks @ k.mT).softmax(-1) @ v
    values = v_marks + razavi_pinv(kernel, 6) @ (correct - kernel @ v_marks)
    torch.testing.assert_close(out, (q @ k_marks.mT).softmax(-1) @ values, rtol=1e-4, atol=1e-4)


def test_cells_may_overlap():
    q, k, v = smooth_qkv(1)
    attention = NystraPlusAttention(landmarks=6, landmarks_from="cells")  # 2 x 3 does not divide 16 x 16
    out = attention(q, k, torch.ones_like(v), Window(SIDE, SIDE))
    torch.testing.assert_close(out, torch.ones_like(v), rtol=0, atol=1e-4)


def test_a_cluster_that_loses_all_its_tokens_is_ignored():
    q, k, v = smooth_qkv(2)
    few = k[:, :, :1] * torch.tensor([1.0, 2.0, 3.0]).repeat(TOKENS // 3 + 1)[:TOKENS, None]
    for clustering in (0, 2, 4):
        attention = NystraPlusAttention(landmarks=16, clustering=clustering)
        out = attention(q, few, v, Window(SIDE, SIDE))
        assert out.isfinite().all()
        ones = attention(q, few, torch.ones_like(v), Window(SIDE, SIDE))
        torch.testing.assert_close(ones, torch.ones_like(v), rtol=0, atol=1e-4)


def test_rows_sum_to_one_whatever_the_inverse_is():
    q, k, _ = random_qkv(2, HEADS, TOKENS, DIM)
    for iterations in (0, 1, 6):
        sums = NystraPlusAttention(iterations=iterations).matrix(q, k, with_bias()).sum(-1)
        torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-4)


def test_gradients_pass_through():
    q, k, v = (x.requires_grad_() for x in smooth_qkv(1))
    NystraPlusAttention()(q, k, v, with_bias()).square().sum().backward()
    assert all(x.grad.isfinite().all() and x.grad.abs().sum() > 0 for x in (q, k, v))


def test_the_bias_is_asked_for_once_a_layer_and_window():
    asked = []
    window = Window(SIDE, SIDE, lambda: asked.append(1) or smooth_bias())
    for attention in (NystraPlusAttention(), FoldedAttention()):
        window.cache.clear()
        asked.clear()
        for _ in range(3):
            attention(*smooth_qkv(1), window)
        assert len(asked) == 1


def test_large_windows_never_see_a_full_svd(monkeypatch):
    decomposed, svd = [], torch.linalg.svd
    monkeypatch.setattr(torch.linalg, "svd", lambda x, **how: decomposed.append(tuple(x.shape)) or svd(x, **how))
    side = 32
    position = torch.arange(side * side).float()
    bias = torch.exp(-(position[:, None] - position).abs() / 99)[None]
    q, k, v = random_qkv(1, 1, side * side, DIM)
    for attention in (NystraPlusAttention(), FoldedAttention()):
        decomposed.clear()
        attention(q, k, v, Window(side, side, lambda: bias))
        assert decomposed and max(min(shape[-2:]) for shape in decomposed) <= 64


def test_folded_attention_is_exact_attention_with_the_reduced_bias():
    q, k, v = smooth_qkv(4)
    regions = shift_regions(2 * SIDE, 2 * SIDE, SIDE, SIDE // 2)
    exact = ExactAttention()(q, k, v, with_bias(regions))
    errors = [relative_error(FoldedAttention(rank)(q, k, v, with_bias(regions)), exact) for rank in (2, 8, 32, TOKENS)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-4


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"landmarks": 0}, "landmarks=0"),
        ({"iterations": -1}, "iterations=-1"),
        ({"bias_rank": -1}, "bias_rank=-1"),
        ({"clustering": -1}, "clustering=-1"),
        ({"landmarks_from": "tokens"}, "landmarks_from=tokens"),
    ],
)
def test_parameters_out_of_range_are_refused(parameters, named):
    with pytest.raises(ValueError, match=named):
        NystraPlusAttention(**parameters)
    with pytest.raises(ValueError, match="bias_rank=0"):
        FoldedAttention(bias_rank=0)
