"""Queries, keys and values made for timing: their statistics, against direct computation."""

import pytest
import torch

from nystra_bench.instruments.workload import logit_deviation, smooth_field, workload
from nystra_bench.models.windows import split_heads


def test_fields_have_mean_0_variance_1_and_the_spectrum_of_natural_images():
    field = smooth_field(64, 64, 64, torch.Generator().manual_seed(1))
    assert field.shape == (64, 64, 64)
    torch.testing.assert_close(field.mean((0, 1)), torch.zeros(64), atol=1e-5, rtol=0)
    torch.testing.assert_close(field.var((0, 1), correction=0), torch.ones(64), atol=1e-4, rtol=0)
    power = torch.fft.fft(field, dim=1).abs().square().mean((0, 2))  # of rows, over all rows and channels
    octaves = torch.stack([power[low : 2 * low].sum() for low in (2, 4, 8)])
    # The 1-D section of a spectrum 1/f^2 in two dimensions falls as 1/f: octave after octave the same, or half.
    assert ((octaves[1:] / octaves[:-1] > 0.4) & (octaves[1:] / octaves[:-1] < 1.1)).all()


def test_neighbours_are_alike_and_distant_tokens_are_not():
    field = smooth_field(32, 48, 48, torch.Generator().manual_seed(2))
    near = (field[:, 1:] * field[:, :-1]).mean()
    far = (field * field.roll((24, 24), (0, 1))).mean()
    assert near > 0.5 and abs(far) < 0.5 * near


def test_the_logits_deviation_is_that_of_all_pairs_within_windows():
    generator = torch.Generator().manual_seed(3)
    q, k = torch.randn(2, 5, 3, 16, 4, generator=generator) + 1
    logits = q @ k.mT
    direct = logits.var((-2, -1), correction=0).mean(0).sqrt()
    torch.testing.assert_close(logit_deviation(q, k), direct)


@pytest.mark.parametrize(("side", "map_side"), [(16, 16), (4, 16)])
@pytest.mark.parametrize("std", [1.0, 6.5])
def test_a_workload_has_the_deviation_that_was_asked_for(side, map_side, std):
    q, k, v = workload(3, 10, side, map_side, seed=4, logit_std=std)
    assert q.shape == k.shape == v.shape == ((map_side // side) ** 2, 3, side * side, 10)
    logits = (q @ k.mT).double()
    found = logits.var((-2, -1), correction=0).mean(0).sqrt()
    torch.testing.assert_close(found, torch.full((3,), std, dtype=torch.float64), rtol=1e-4, atol=0)


def test_the_same_seed_gives_the_same_and_another_gives_another():
    first, again, other = (workload(2, 4, 8, 16, seed=seed) for seed in (0, 0, 1))
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))


def test_windows_are_cut_from_one_map():
    """The last column of a window and the first of the next are neighbours: their values are alike."""
    _, _, v = workload(1, 8, 16, 64, seed=5)
    left, right = (x.reshape(16, 16, 8) for x in v[:2, 0])
    far = (left[:, 0] - right[:, -1]).square().mean()
    assert (left[:, -1] - right[:, 0]).square().mean() < 0.5 * far


def test_it_lies_in_memory_as_a_models_own():
    q, k, v = workload(6, 30, 8, 16)
    (q_own, k_own, v_own) = split_heads(torch.zeros(4, 64, 3 * 180), 3, 6)
    for made, own in ((q, q_own * 0.5), (k, k_own), (v, v_own)):
        assert made.stride() == own.stride()
