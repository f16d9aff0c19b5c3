"""The attentions of 2025 and 2026 against their float64 references: with and without bias, whole and masked windows."""

from __future__ import annotations

import numpy as np
import pytest
import rival_references as reference
import torch
from attention_references import exact, grid, random_qkv, relative_error, smooth_qkv

from nystra_bench.attention.base import Window
from nystra_bench.attention.clusters import farthest_points
from nystra_bench.attention.folding import bias_factors, centred
from nystra_bench.attention.landmarks import central_tokens
from nystra_bench.baselines.avggt import AVGGTAttention
from nystra_bench.baselines.fna import FNAAttention, distances_among
from nystra_bench.baselines.pisa import PISAAttention
from nystra_bench.baselines.thinformer import ThinformerAttention, halve
from nystra_bench.baselines.wildcat import WildCatAttention, pivoted_cholesky

HEADS, RANK = 2, 4
SIZES = ((8, 8), (6, 9))


@pytest.fixture(params=SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def size(request):
    return request.param


@pytest.fixture
def qkv(size):
    q, k, v = smooth_qkv(4, HEADS, *size, 12, seed=3)
    return 2 * q, k, v[..., :5]


def random_bias(size) -> torch.Tensor:
    tokens = size[0] * size[1]
    return torch.randn(HEADS, tokens, tokens, generator=torch.Generator().manual_seed(1))


def seam(size) -> torch.Tensor:
    """Windows as a cyclic shift leaves them: one whole, one cut in columns, in rows, in both, into unequal parts."""
    rows, columns = (torch.arange(n) for n in size)
    lower, right = (rows >= size[0] // 2 + 1).long(), (columns >= size[1] // 3).long()
    whole = torch.zeros(size, dtype=torch.int64)
    cuts = (whole, whole + right, whole + 3 * lower[:, None], whole + 3 * lower[:, None] + right)
    return torch.stack(cuts).flatten(1)


@pytest.fixture(params=("plain", "bias", "mask"))
def setting(request, size):
    """A window, and the regions and factors of it for the reference."""
    bias, regions = (x if request.param == name else None for name, x in (("bias", random_bias), ("mask", seam)))
    made = None if bias is None else bias(size)
    cut = None if regions is None else regions(size)
    window = Window(*size, None if made is None else lambda: made, None if cut is None else lambda: cut)
    return window, cut, None if made is None else bias_factors(centred(made), RANK)


def agrees(attention, qkv, size, setting, formula, tolerance=2e-5):
    window, regions, factors = setting
    with torch.inference_mode():
        actual = attention(*qkv, window)
    assert relative_error(actual, reference.by_region(formula, *qkv, size, regions, factors)) < tolerance
    softmax = reference.by_region(lambda q, k, v, _: reference.softmax_attention(q, k, v), *qkv, size, regions, factors)
    assert relative_error(actual, softmax) > 1e-3, "the data does not tell it from softmax attention"


# --------------------------------------------------------------------------- each against its formula


def middles(size, landmarks) -> list[int]:
    """Tokens in the middle of the cells of the largest grid that a region can have, of no more than ``landmarks``."""
    count = next(m for m in range(min(landmarks, size[0] * size[1]), 0, -1) if grid(m, *size))
    rows, columns = grid(count, *size)
    return [
        (2 * y + 1) * size[0] // (2 * rows) * size[1] + (2 * x + 1) * size[1] // (2 * columns)
        for y in range(rows)
        for x in range(columns)
    ]


@pytest.mark.parametrize("landmarks", (1, 6, 12))
def test_avggt(landmarks, qkv, size, setting):
    def formula(q, k, v, size):
        return reference.avggt(q, k, v, size, middles(size, landmarks))

    agrees(AVGGTAttention(landmarks, RANK), qkv, size, setting, formula)


@pytest.mark.parametrize("landmarks, iterations", ((1, 6), (6, 6), (8, 2), (8, 0)))
def test_fna(landmarks, iterations, qkv, size, setting):
    def formula(q, k, v, size):
        return reference.fna(q, k, v, size, landmarks, iterations)

    agrees(FNAAttention(landmarks, iterations, RANK), qkv, size, setting, formula, 1e-4)


@pytest.mark.parametrize(
    "block, density, blocks_from, first_order",
    ((4, 0.1, "cells", True), (6, 0.5, "cells", False), (16, 0.1, "segments", True), (5, 0.3, "segments", True)),
)
def test_pisa(block, density, blocks_from, first_order, qkv, size, setting):
    def formula(q, k, v, size):
        cell = (grid(block, *size) or grid(block)) if blocks_from == "cells" else None
        return reference.pisa(q, k, v, size, block, density, cell, first_order)

    agrees(PISAAttention(block, density, blocks_from, first_order, RANK), qkv, size, setting, formula)


@pytest.mark.parametrize("oversampling", (0, 1))
@pytest.mark.parametrize("values", (True, False))
def test_thinformer(oversampling, values, qkv, size, setting):
    attention = ThinformerAttention(oversampling, values, 5, RANK)

    def formula(q, k, v, size):
        tokens = size[0] * size[1]
        power = next(p for p in range(9, -1, -1) if 4**p <= tokens)
        rounds = max(power - oversampling, 0)
        randomness = [
            (bucket, noise.numpy(), coins.flatten().tolist())
            for bucket, noise, coins in attention._randomness(4**power, rounds, torch.zeros(1), Window(1, 1).cache)
        ]
        thinned = [i * (tokens // 4**power) for i in range(4**power)]
        return reference.thinformer(q, k, v, size, thinned, randomness, values)

    agrees(attention, qkv, size, setting, formula)


@pytest.mark.parametrize("landmarks", (1, 5, 9))
@pytest.mark.parametrize("clip", (True, False))
def test_wildcat(landmarks, clip, qkv, size, setting):
    attention = WildCatAttention(landmarks, clip, 3, RANK)

    def formula(q, k, v, size):
        like = torch.zeros(size[0] * size[1], 1, dtype=torch.float64)
        return reference.wildcat(q, k, v, size, attention._noise(like, Window(1, 1).cache).numpy(), clip)

    agrees(attention, qkv, size, setting, formula, 1e-3)


# --------------------------------------------------------------------------- their parts


def test_thinformers_coresets_have_the_papers_size():
    q, k, v = smooth_qkv(2, HEADS, 16, 16, 12, seed=3)
    for oversampling, expected in ((0, 16), (1, 32), (2, 64), (4, 256), (7, 256)):
        chosen = ThinformerAttention(oversampling)._coreset(k, v, Window(16, 16).cache)
        assert chosen.shape == (2, HEADS, expected)
        assert all(len(own.unique()) == expected for own in chosen.flatten(0, 1))


def test_halving_keeps_the_kernel_sums_closer_than_chance():
    """With thresholds of zero; the larger they are, the nearer it comes to chance."""
    _, k, _ = smooth_qkv(40, 1, 8, 8, 6, seed=1)
    kernel = (k @ k.mT / 6).exp()
    generator = torch.Generator().manual_seed(0)

    def error(second):
        taken = second + 2 * torch.arange(32)
        part = kernel.gather(-1, taken[..., None, :].expand(-1, -1, 64, -1)).mean(-1)
        return ((kernel.mean(-1) - part).norm(dim=-1) / kernel.mean(-1).norm(dim=-1)).mean()

    noise = 2 * torch.rand(40, 1, 32, generator=generator) - 1
    chance = error(torch.randint(0, 2, (40, 1, 32), generator=generator))
    errors = [error(halve(kernel, scale * noise)) for scale in (0, 1, 100)]
    assert errors[0] < errors[1] < errors[2] and errors[0] < 0.7 * chance < errors[2]


def test_farthest_points_are_those_found_by_trying_all():
    points = torch.randn(3, 30, 4, generator=torch.Generator().manual_seed(0))
    expected = [reference.farthest(own.double().numpy(), 12) for own in points]
    assert farthest_points(distances_among(points), 12, points).tolist() == expected


def test_farthest_points_of_equal_points_differ():
    points = torch.ones(2, 9, 3)
    chosen = farthest_points(distances_among(points), 9, points)
    assert [sorted(own) for own in chosen.tolist()] == [list(range(9))] * 2


def test_pivots_are_drawn_in_proportion_to_what_is_left_of_the_exponential_kernels_diagonal():
    keys = torch.randn(1, 1, 6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    half = keys.square().sum(-1) / 2
    uniform = torch.rand(600, 2, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    draws = torch.stack([pivoted_cholesky(keys, half, -(-u.log()).log())[0][0, 0] for u in uniform])
    kernel = (keys[0, 0] @ keys[0, 0].mT).exp()
    first = kernel.diagonal() / kernel.trace()
    assert (torch.bincount(draws[:, 0], minlength=6) / 600 - first).abs().max() < 0.06
    pivot = int(first.argmax())
    left = kernel.diagonal() - kernel[pivot].square() / kernel[pivot, pivot]
    after = torch.bincount(draws[draws[:, 0] == pivot, 1], minlength=6)
    assert after[pivot] == 0
    assert (after / after.sum() - left / left.sum()).abs().max() < 0.12


def test_the_cholesky_factor_gives_the_kernels_rows_of_the_pivots():
    keys = torch.randn(2, 2, 40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    half = keys.square().sum(-1) / 2
    noise = torch.randn(12, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pivots, factor = pivoted_cholesky(keys, half, noise)
    kernel = (keys @ keys.mT - half[..., None] - half[..., None, :]).exp()
    rows = pivots[..., None].expand(-1, -1, -1, 40)
    torch.testing.assert_close((factor.mT @ factor).gather(-2, rows), kernel.gather(-2, rows), rtol=0, atol=1e-9)


def test_few_distinct_keys_make_wildcat_exact():
    """Of three different keys three pivots hold all; the others are left out, and harm nothing."""
    q, k, v = smooth_qkv(2, HEADS, 8, 8, 12, seed=3)
    k = k[..., torch.arange(64) % 3, :]
    with torch.inference_mode():
        out = WildCatAttention(landmarks=10)(q, k, v, Window(8, 8))
    assert relative_error(out, exact(q, k, v)) < 1e-3


def test_wildcats_output_stays_within_the_values():
    q, k, _ = (3**0.5 * t for t in smooth_qkv(4, HEADS, 8, 8, 4, seed=3))
    v = k[..., :2]  # which is extrapolated beyond what there is
    with torch.inference_mode():
        clipped, free = (WildCatAttention(8, clip)(q, k, v, Window(8, 8)) for clip in (True, False))
    low, high = v.amin(-2, keepdim=True), v.amax(-2, keepdim=True)
    torch.testing.assert_close(clipped, free.clamp(low, high))
    assert not torch.equal(clipped, free), "the data need no clipping"


@pytest.mark.parametrize(
    "attention",
    (AVGGTAttention(63), PISAAttention(7, 1.0), PISAAttention(64), ThinformerAttention(3), WildCatAttention(64)),
    ids=lambda attention: type(attention).__name__,
)
def test_what_is_softmax_attention_with_enough_of_everything(attention):
    """AVGGT's mean of the one token dropped is that token."""
    q, k, v = smooth_qkv(2, HEADS, 8, 8, 12, seed=3)
    size = (7, 9) if isinstance(attention, AVGGTAttention) else (8, 8)
    q, k, v = (t[..., : size[0] * size[1], :] for t in (q, k, v))
    with torch.inference_mode():
        assert relative_error(attention(q, k, v, Window(*size)), exact(q, k, v)) < 1e-5


def test_avggt_with_one_token_dropped_is_exact():
    attention, size = AVGGTAttention(15), (4, 4)
    assert len(attention._sampled(size, torch.zeros(1), Window(*size).cache)[0]) < 16
    assert central_tokens(15, 3, 5).tolist() == list(range(15))


# --------------------------------------------------------------------------- bad input

METHODS = {
    "avggt": lambda **p: AVGGTAttention(**{"landmarks": 16} | p),
    "fna": lambda **p: FNAAttention(**{"landmarks": 16} | p),
    "pisa": lambda **p: PISAAttention(),
    "thinformer": lambda **p: ThinformerAttention(),
    "wildcat": lambda **p: WildCatAttention(**{"landmarks": 16} | p),
}
STOCHASTIC = ("avggt", "pisa", "thinformer")


@pytest.fixture(params=METHODS)
def name(request):
    return request.param


def attend(attention, q, k, v, window):
    with torch.inference_mode():
        return attention(q, k, v, window)


@pytest.mark.parametrize("size", ((1, 1), (1, 13), (3, 3), (5, 7), (11, 3), (2, 31)))
def test_small_and_odd_windows_are_served_or_refused_with_a_reason(name, size):
    attention = METHODS[name]()
    q, k, v = random_qkv(2, HEADS, size[0] * size[1], 12)
    reason = attention.refuses(*size)
    if reason is None:
        assert attend(attention, q, k, v, Window(*size)).isfinite().all()
    else:
        assert "landmarks=16" in reason and f"{size[0]}x{size[1]}" in reason


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16))
def test_one_token_gets_its_own_value(name, dtype):
    attention = METHODS[name](landmarks=1)
    q, k, v = random_qkv(3, HEADS, 1, 12, dtype=dtype)
    assert attention.refuses(1, 1) is None
    torch.testing.assert_close(attend(attention, q, k, v, Window(1, 1)), v)


def test_with_a_region_a_token_each_gets_its_own_value(name):
    q, k, v = random_qkv(4, HEADS, 64, 12)
    regions = torch.arange(64).expand(2, -1)
    window = Window(8, 8, lambda: random_bias((8, 8)), lambda: regions)
    torch.testing.assert_close(attend(METHODS[name](), q, k, v, window), v)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16))
def test_equal_keys_are_attended_to_equally(name, dtype):
    """With weights of its own only where a subset stands for all; PISA's means of blocks are exact then."""
    q, k, v = random_qkv(2, HEADS, 256, 12, dtype=dtype)
    k = k[..., :1, :].expand_as(k)
    out = attend(METHODS[name](), q, k, v, Window(16, 16)).float()
    assert out.isfinite().all()
    if name in ("pisa", "wildcat", "fna"):
        torch.testing.assert_close(out, v.float().mean(-2, keepdim=True).expand_as(out), rtol=0, atol=5e-3)
    assert (out.amax(-2) - out.amin(-2)).max() < (v.float().amax(-2) - v.float().amin(-2)).max()


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16))
@pytest.mark.parametrize("masked", (False, True))
def test_logits_of_ten_thousand_are_borne(name, dtype, masked):
    q, k, v = random_qkv(4, HEADS, 256, 12, seed=1)
    factor = (1e4 / (q @ k.mT).abs().amax()) ** 0.5
    q, k, v = (t.to(dtype) for t in (factor * q, factor * k, v))
    regions = seam((16, 16))
    window = Window(16, 16, lambda: 100 * random_bias((16, 16)), (lambda: regions) if masked else None)
    attention = METHODS[name]()
    assert attend(attention, q, k, v, window).isfinite().all()
    if name in STOCHASTIC and dtype == torch.float32:
        with torch.inference_mode():
            sums = attention.matrix(q, k, window).double().sum(-1)
        torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=0.05 if name == "pisa" else 1e-5)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16))
def test_equal_values_stay_what_they_are(name, dtype):
    """FNA's rows sum to one as far as its iteration has converged."""
    q, k, _ = smooth_qkv(2, HEADS, 16, 16, 12, seed=3)
    v = torch.linspace(-2, 3, 5).expand(2, HEADS, 256, 5)
    out = attend(METHODS[name](), q.to(dtype), k.to(dtype), v.to(dtype), Window(16, 16))
    torch.testing.assert_close(out.float(), v.to(dtype).float(), rtol=0, atol=0.5 if name == "fna" else 5e-3)


def test_no_region_sees_another(name):
    q, k, v = smooth_qkv(4, HEADS, 16, 16, 12, seed=3)
    regions = seam((16, 16))
    window = Window(16, 16, lambda: random_bias((16, 16)), lambda: regions)
    attention = METHODS[name]()
    before = attend(attention, q, k, v, window)
    elsewhere = (regions == 4)[:, None, :, None]
    after = attend(attention, *(torch.where(elsewhere, 3 * t + 1, t) for t in (q, k, v)), window)
    assert torch.equal(*(torch.where(elsewhere, 0, t) for t in (before, after)))
    assert not torch.allclose(*(torch.where(elsewhere, t, 0) for t in (before, after)))


def test_regions_that_are_no_rectangles_and_images_of_a_batch(name):
    """Two images of two windows; an image's windows have the regions of their own places."""
    q, k, v = smooth_qkv(4, HEADS, 16, 16, 12, seed=3)
    odd = (torch.arange(256) % 5 == 0).long()
    regions = torch.stack([odd, torch.zeros(256, dtype=torch.int64)])
    attention = METHODS[name]()
    together = attend(attention, q, k, v, Window(16, 16, regions=lambda: regions))
    for window in range(4):
        for region in (0, 1):
            own = (regions[window % 2] == region).nonzero()[:, 0]
            if len(own):
                size = (16, 16) if len(own) == 256 else (1, len(own))
                parts = (t[window : window + 1, :, own] for t in (q, k, v))
                expected = attend(attention, *parts, Window(*size))
                torch.testing.assert_close(together[window : window + 1, :, own], expected, rtol=1e-4, atol=1e-5)


def test_without_rank_the_bias_is_never_asked_for():
    def untouchable():
        raise AssertionError("asked for")

    q, k, v = random_qkv(2, HEADS, 64, 12)
    for method in (AVGGTAttention, FNAAttention, PISAAttention, ThinformerAttention, WildCatAttention):
        attention = method(bias_rank=0)
        assert attention.uses() == {"bias": "ignored", "mask": "used"}
        expected = attend(attention, q, k, v, Window(8, 8))
        assert torch.equal(attend(attention, q, k, v, Window(8, 8, untouchable)), expected)


@pytest.mark.parametrize(
    "method, parameters, message",
    (
        (AVGGTAttention, dict(landmarks=0), "landmarks=0 is out of range"),
        (AVGGTAttention, dict(bias_rank=-1), "bias_rank=-1 is out of range"),
        (FNAAttention, dict(iterations=-1), "iterations=-1 is out of range"),
        (PISAAttention, dict(block=0), "block=0 is out of range"),
        (PISAAttention, dict(density=0), "density=0 is out of range"),
        (PISAAttention, dict(density=1.5), "density=1.5 is out of range"),
        (PISAAttention, dict(blocks_from="rows"), "accepted are cells, segments"),
        (PISAAttention, dict(first_order=1), "first_order=1 is unknown: accepted are true, false"),
        (ThinformerAttention, dict(oversampling=-1), "oversampling=-1 is out of range"),
        (ThinformerAttention, dict(values=1), "values=1 is unknown: accepted are true, false"),
        (WildCatAttention, dict(landmarks=1.5), "landmarks=1.5 is out of range"),
        (WildCatAttention, dict(clip="yes"), "clip=yes is unknown: accepted are true, false"),
    ),
)
def test_parameters_out_of_range_are_named(method, parameters, message):
    with pytest.raises(ValueError, match=message):
        method(**parameters)


def test_references_cut_windows_as_they_should():
    """The references' own geometry."""
    assert reference.rectangle(np.array([5, 6, 9, 10]), 4) == (2, 2)
    assert reference.rectangle(np.array([0, 3]), 4) == (1, 2)
    assert reference.blocks((4, 4), 4, (2, 2))[1] == [2, 3, 6, 7]
