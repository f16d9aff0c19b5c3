"""PnP-Nystra against the float64 reference, its guard, and what the two starts of the iteration mean for a batch."""

from __future__ import annotations

import math

import pytest
import torch
from attention_references import kernel, nystra, random_qkv, relative_error, smooth_qkv

from nystra_bench.attention.base import Window
from nystra_bench.attention.nystra import NystraAttention

LANDMARKS = (8, 16, 32)
ITERATIONS = range(1, 7)


def run(q, k, v, height, width, **parameters):
    with torch.inference_mode():
        return NystraAttention(**parameters)(q, k, v, Window(height, width))


# --------------------------------------------------------------------------- against float64


@pytest.mark.parametrize("landmarks", LANDMARKS)
@pytest.mark.parametrize("side", (16, 32, 64))
@pytest.mark.parametrize("init", ("global", "matrix"))
def test_agrees_with_float64_on_random_tokens(init, side, landmarks):
    q, k, v = random_qkv(2, 2, side * side, 16, seed=side + landmarks)
    for iterations in ITERATIONS:
        expected = nystra(q, k, v, side, side, landmarks, iterations, init)
        actual = run(q, k, v, side, side, landmarks=landmarks, iterations=iterations, init=init)
        assert actual.dtype == torch.float32
        assert relative_error(actual, expected) < 1e-5, f"iterations={iterations}"


@pytest.mark.parametrize("landmarks", LANDMARKS)
@pytest.mark.parametrize("height, width", ((16, 16), (32, 32), (64, 64), (16, 32)))
@pytest.mark.parametrize("init", ("global", "matrix"))
def test_agrees_with_float64_on_smooth_tokens_where_the_inverse_matters(init, height, width, landmarks):
    """White noise has landmarks near zero, so that its output hardly feels the pseudo-inverse; these tokens do."""
    q, k, v = smooth_qkv(2, 2, height, width, 16, seed=height + landmarks)
    outputs = []
    for iterations in ITERATIONS:
        expected = nystra(q, k, v, height, width, landmarks, iterations, init)
        actual = run(q, k, v, height, width, landmarks=landmarks, iterations=iterations, init=init)
        assert relative_error(actual, expected) < 1e-5, f"iterations={iterations}"
        outputs.append(actual)
    assert relative_error(outputs[0], outputs[-1]) > 0.1, "the data does not exercise the iteration"


def test_agrees_with_float64_where_the_guard_is_at_work():
    q, k, v = smooth_qkv(2, 2, 16, 16, 16, seed=5)
    q = 1.5 * q
    unguarded = nystra(q, k, v, 16, 16, 16, 2, guard=50.0)
    for guard in (0.5, 1.0):
        expected = nystra(q, k, v, 16, 16, 16, 2, guard=guard)
        assert relative_error(expected, unguarded) > 1e-3, "the data does not reach the guard"
        assert relative_error(run(q, k, v, 16, 16, landmarks=16, guard=guard), expected) < 1e-5


def test_agrees_with_float64_where_the_landmark_grid_does_not_divide_the_window():
    q, k, v = smooth_qkv(2, 2, 7, 7, 16, seed=6)
    expected = nystra(q, k, v, 7, 7, 8, 3)
    assert relative_error(run(q, k, v, 7, 7, landmarks=8, iterations=3), expected) < 1e-5


def test_values_may_have_another_width_than_keys():
    q, k, v = random_qkv(2, 2, 64, 16, dim_v=5)
    out = run(q, k, v, 8, 8, landmarks=8)
    assert out.shape == (2, 2, 64, 5)
    assert relative_error(out, nystra(q, k, v, 8, 8, 8, 2)) < 1e-5


def test_defaults_are_those_published_for_swinir():
    attention = NystraAttention()
    assert (attention.landmarks, attention.iterations, attention.init, attention.guard) == (16, 2, "global", 5.0)


# --------------------------------------------------------------------------- batches


@pytest.fixture
def uneven_batch():
    """Windows of very different logits, so that maxima over the batch differ from each window's own."""
    q, k, v = smooth_qkv(4, 2, 16, 16, 16, seed=7)
    return q * torch.tensor([0.3, 0.6, 1.0, 1.5])[:, None, None, None], k, v


@pytest.mark.parametrize("iterations", ITERATIONS)
def test_matrix_init_gives_each_window_the_same_output_in_any_batch(uneven_batch, iterations):
    q, k, v = uneven_batch
    parameters = dict(landmarks=16, iterations=iterations, init="matrix")
    together = run(q, k, v, 16, 16, **parameters)
    for i in range(len(q)):
        alone = run(q[i : i + 1], k[i : i + 1], v[i : i + 1], 16, 16, **parameters)
        assert relative_error(together[i : i + 1], alone) < 1e-6
    for h in range(q.shape[1]):
        alone = run(q[:, h : h + 1], k[:, h : h + 1], v[:, h : h + 1], 16, 16, **parameters)
        assert relative_error(together[:, h : h + 1], alone) < 1e-6


def test_global_init_lets_the_windows_of_a_batch_influence_one_another_as_published(uneven_batch):
    q, k, v = uneven_batch
    parameters = dict(landmarks=16, iterations=3, init="global")
    together = run(q, k, v, 16, 16, **parameters)
    alone = run(q[:1], k[:1], v[:1], 16, 16, **parameters)
    assert relative_error(together[:1], alone) > 1e-3


def test_both_inits_agree_on_a_single_matrix():
    q, k, v = smooth_qkv(1, 1, 16, 16, 16, seed=8)
    assert torch.equal(run(q, k, v, 16, 16, init="global"), run(q, k, v, 16, 16, init="matrix"))


# --------------------------------------------------------------------------- the guard


@pytest.mark.parametrize("guard", (5.0, 2.0))
def test_kernel_is_exponential_below_the_guard_and_linear_beyond(guard):
    attention = NystraAttention(guard=guard)
    below = torch.linspace(-60, guard, 101, dtype=torch.float64)
    torch.testing.assert_close(attention.kernel(below), below.exp(), rtol=1e-12, atol=0)
    beyond = torch.linspace(guard, 60, 101, dtype=torch.float64)
    torch.testing.assert_close(attention.kernel(beyond), math.exp(guard) + beyond - guard, rtol=1e-12, atol=0)
    both = torch.cat([below, beyond])
    torch.testing.assert_close(attention.kernel(both), torch.from_numpy(kernel(both.numpy(), guard)))


def test_kernel_is_continuous_at_the_guard():
    step = 1e-9
    below, at, above = NystraAttention().kernel(torch.tensor([5 - step, 5.0, 5 + step], dtype=torch.float64)).tolist()
    assert at == pytest.approx(math.exp(5), rel=1e-12)
    assert 0 < at - below < 200 * step  # slope e^5 = 148
    assert 0 < above - at < 2 * step  # slope 1


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("iterations", ITERATIONS)
def test_logits_up_to_60_stay_finite(iterations, dtype):
    q, k, v = smooth_qkv(2, 2, 16, 16, 16, seed=9)
    q = q * (60 / (q @ k.transpose(-2, -1)).abs().max())
    out = run(q.to(dtype), k.to(dtype), v.to(dtype), 16, 16, landmarks=16, iterations=iterations)
    assert out.isfinite().all()


@pytest.mark.parametrize("init", ("global", "matrix"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.float16, torch.bfloat16))
def test_logits_near_minus_60_give_zero_as_the_authors_code_does(init, dtype):
    """The kernel is below 1e-26 everywhere; the norms of A vanish, and 1e-15 and 1e-12 decide."""
    q = torch.full((2, 2, 64, 16), -60 / 16, dtype=dtype)
    v = random_qkv(2, 2, 64, 16, dtype=dtype)[2]
    out = run(q, torch.ones_like(q), v, 8, 8, init=init)
    assert out.isfinite().all() and out.abs().max() < 1e-6


# --------------------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    "parameters, message",
    (
        (dict(landmarks=0), r"landmarks=0 is out of range"),
        (dict(landmarks=-8), r"landmarks=-8 is out of range"),
        (dict(iterations=-1), r"iterations=-1 is out of range"),
        (dict(init="frobenius"), r"init=frobenius is unknown: accepted are global, matrix"),
    ),
)
def test_parameters_out_of_range_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        NystraAttention(**parameters)


@pytest.mark.parametrize("parameters", (dict(landmarks=16.5), dict(iterations=2.5)))
def test_counts_that_are_not_whole_numbers_are_refused_when_constructed(parameters):
    """Otherwise they fail with a TypeError in the middle of a forward pass."""
    with pytest.raises(ValueError, match="accepted are whole numbers"):
        NystraAttention(**parameters)
