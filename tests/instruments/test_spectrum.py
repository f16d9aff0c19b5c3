"""Spectral errors: against numpy, on kernels of known rank, and on those for which the lemma is tight or vain."""

import math

import numpy as np
import pytest
import torch
from attention_references import exact_matrix, random_qkv, smooth_qkv
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nystra_bench.attention.base import Window
from nystra_bench.attention.exact import ExactAttention
from nystra_bench.attention.identity import IdentityAttention
from nystra_bench.attention.nystra import NystraAttention
from nystra_bench.attention.nystra_plus import NystraPlusAttention
from nystra_bench.instruments.spectrum import (
    WINDOWS,
    SpectrumProbe,
    kernel_blocks,
    kernel_spectrum,
    layer_spectrum,
    nystrom_bounds,
    singular_values,
)
from nystra_bench.models.windows import shift_regions

SEEDS = st.integers(0, 2**31 - 1)


class PolynomialKernel(NystraAttention):
    """(c + x)^p, whose features have finitely many dimensions, in the place of the exponential kernel."""

    def __init__(self, landmarks: int, constant: float, power: int):
        super().__init__(landmarks)
        self.constant, self.power = constant, power

    def kernel(self, logits):
        return (self.constant + logits) ** self.power


def tokens(seed, windows, count, dim):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(windows, 1, count, dim, generator=generator, dtype=torch.float64) for _ in range(2)]


# ---------------------------------------------------------------- Corollary 2.2


@settings(deadline=None)
@given(seed=SEEDS, dim=st.sampled_from([1, 2, 3, 4, 6, 8]), side=st.sampled_from([4, 8]))
def test_a_kernel_of_rank_m_is_recovered_to_rounding(seed, dim, side):
    """The linear kernel of d features has rank d: with d landmarks G~ has rank m, and the approximation is exact."""
    q, k = tokens(seed, 1, side * side, dim)
    check_recovered(PolynomialKernel(dim, 0.0, 1), q, k, Window(side, side))


@settings(deadline=None)
@given(seed=SEEDS, power=st.integers(1, 5))
def test_a_feature_map_of_m_dimensions_is_recovered_to_rounding(seed, power):
    """(1 + q k)^p of scalars is a product of p + 1 features."""
    q, k = tokens(seed, 1, 36, 1)
    check_recovered(PolynomialKernel(power + 1, 1.0, power), q, k, Window(6, 6))


def check_recovered(attention, q, k, window):
    blocks = kernel_blocks(attention, q, k, window)
    found = nystrom_bounds(*blocks)
    rounding = float(found["rounding"])
    scale = float(singular_values(blocks[0])[..., 0])
    assume(rounding < 1e-6 * scale)  # landmarks that are nearly dependent leave nothing to be seen
    assert found["floor"] <= 1e-13 * scale * len(q[0, 0])  # the construction: no singular value beyond the m-th
    assert found["error"] <= 100 * rounding


def test_one_dimension_more_than_landmarks_is_not_recovered():
    q, k = tokens(0, 1, 64, 5)
    found = nystrom_bounds(*kernel_blocks(PolynomialKernel(4, 0.0, 1), q, k, Window(8, 8)))
    assert found["error"] >= found["floor"] > 0.1


# ---------------------------------------------------------------- Lemma 2.1


@settings(deadline=None)
@given(seed=SEEDS, m=st.integers(1, 6), n=st.integers(1, 12), decay=st.floats(0, 3), asymmetry=st.floats(0, 1))
def test_bounds_enclose_the_error_of_any_matrix(seed, m, n, decay, asymmetry):
    """Any matrix may stand for G~, its singular values falling slowly or fast: the lemma is no matter of kernels."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.standard_normal((m + n, m + n)))[0] for _ in range(2))
    right = left if asymmetry < 0.3 else right
    extended = torch.from_numpy((left * np.exp(-decay * np.arange(m + n))) @ right.T)
    check_enclosed(nystrom_bounds(extended[m:, m:], extended[m:, :m], extended[:m, :m], extended[:m, m:]))


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("landmarks", [4, 16])
def test_bounds_enclose_the_error_of_attention_kernels(scale, landmarks):
    q, k, _ = smooth_qkv(2, 2, 8, 8, 6, seed=3)
    blocks = kernel_blocks(NystraAttention(landmarks), scale * q.double(), scale * k.double(), Window(8, 8))
    check_enclosed(nystrom_bounds(*blocks))


def check_enclosed(found):
    slack = 100 * found["rounding"]
    bounded = found["bound"].isfinite()
    assert (found["floor"] <= found["error"] + slack)[bounded].all()
    assert (found["error"] <= found["projection"] + slack)[bounded].all()
    assert (found["projection"] <= found["bound"] + slack)[bounded].all()
    assert (found["projection"].isfinite() == bounded).all()


def test_the_error_of_one_landmark_and_token_is_known():
    """There the error is sigma_1 sigma_2 / |a|, by the determinant."""
    a, u, left, g = (torch.tensor([[x]]) for x in (0.5, 2.0, -1.0, 3.0))
    found = nystrom_bounds(g, left, a, u)
    assert found["error"] == pytest.approx(7.0)
    values = np.linalg.svd([[0.5, 2.0], [-1.0, 3.0]])[1]
    assert float(found["gap"]) == pytest.approx(values[1] / 0.5)
    assert float(found["bound"]) == pytest.approx(math.sqrt(2) * values[0] ** 2 * values[1] / 0.25)


def test_no_function_of_the_largest_singular_value_alone_is_a_bound():
    """The example of the module: with C a function of sigma_1 the lemma would be wrong."""
    errors = []
    for e in (1e-2, 1e-4):
        left, right = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0], [0.0]])
        found = nystrom_bounds(torch.zeros(1, 1), left, e * torch.eye(2, dtype=torch.float64), right)
        assert float(found["gap"]) == pytest.approx(1, rel=1e-6)
        errors.append(float(found["error"]))
        check_enclosed(found)
    assert errors == pytest.approx([1e2, 1e4])


def test_the_lemma_says_nothing_where_landmarks_coincide():
    q, k = (x[:, :, :1].expand(-1, -1, 16, -1) for x in tokens(1, 1, 16, 3))
    found = nystrom_bounds(*kernel_blocks(NystraAttention(4), q, k, Window(4, 4)))
    assert found["bound"] == math.inf and found["projection"] == math.inf
    assert found["error"] < 1e-10  # the kernel is constant: rank 1


# ---------------------------------------------------------------- layers


def test_errors_are_those_of_the_attentions_own_matrix():
    q, k, _ = random_qkv(8, 2, 16, 4, seed=1)
    bias = 0.5 * torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(2))
    regions = shift_regions(8, 8, 4, 2)
    window, chosen = Window(4, 4, lambda: bias, lambda: regions), [1, 7]  # the second image's last window is masked
    whole = exact_matrix(q, k, bias, regions)
    attention = NystraPlusAttention(landmarks=4, iterations=3)
    theirs = attention.matrix(q.double(), k.double(), Window(4, 4, lambda: bias.double(), lambda: regions)).numpy()
    expected = np.linalg.norm(whole - theirs, 2, (2, 3)) / np.linalg.norm(whole, 2, (2, 3))
    found = layer_spectrum(attention, q, k, window, chosen)
    assert set(found) == {"matrix_error"}
    np.testing.assert_allclose(found["matrix_error"], expected[chosen], rtol=1e-5)
    assert layer_spectrum(ExactAttention(), q, k, window, chosen)["matrix_error"].max() < 1e-12


@pytest.mark.parametrize("init", ["global", "matrix"])
def test_the_published_method_is_looked_at_as_it_runs(init):
    """Its iteration starts from all windows, also where some are looked at."""
    q, k, _ = smooth_qkv(4, 2, 8, 8, 4, seed=5)
    q, k, window = q.double(), k.double(), Window(8, 8)
    k[0] *= 2  # without this window, the norms would be others
    attention = NystraAttention(landmarks=4, iterations=2, init=init)
    matrix, exact = attention.matrix(q, k, window), exact_matrix(q, k)
    expected = np.linalg.norm(exact - matrix.numpy(), 2, (2, 3)) / np.linalg.norm(exact, 2, (2, 3))
    found = layer_spectrum(attention, q, k, window, [2, 3])
    np.testing.assert_allclose(found["matrix_error"], expected[[2, 3]], rtol=1e-9)
    kernel = kernel_spectrum(attention, q, k, window, [2, 3])
    np.testing.assert_allclose(found["kernel_error"], kernel["kernel_error"])
    g = attention.kernel(q @ k.transpose(-2, -1))[[2, 3]].numpy()
    error = np.linalg.norm(g - kernel["approximation"].numpy(), 2, (2, 3)) / np.linalg.norm(g, 2, (2, 3))
    np.testing.assert_allclose(found["kernel_error"], error, rtol=1e-9)
    assert all(values.shape == (2, 2) for values in found.values())


def test_many_iterations_reach_the_true_pseudo_inverse():
    q, k, _ = smooth_qkv(2, 1, 8, 8, 4, seed=5)
    found = layer_spectrum(NystraAttention(4, iterations=40, init="matrix"), q, k, Window(8, 8), [0, 1])
    np.testing.assert_allclose(found["kernel_error"], found["kernel_error_pinv"], rtol=1e-6)


def test_a_probe_is_exact_attention_that_looks_once():
    q, k, v = random_qkv(6, 2, 16, 4, seed=3)
    probe = SpectrumProbe(IdentityAttention(), seed=1)
    window = Window(4, 4)
    assert torch.equal(probe(q, k, v, window), ExactAttention()(q, k, v, window))
    first = probe.by_head()
    probe(2 * q, k, v, window)
    assert probe.by_head() == first
    assert len(set(probe.chosen)) == WINDOWS and set(probe.chosen) <= set(range(6))
    assert np.shape(first["matrix_error"]) == (2, WINDOWS)
    again = SpectrumProbe(IdentityAttention(), seed=1)
    again(q, k, v, window)
    assert again.chosen == probe.chosen


def test_singular_values_are_numpys():
    matrix = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(singular_values(matrix), np.linalg.svd(matrix.double().numpy())[1])
