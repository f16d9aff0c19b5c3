"""Exponents with their intervals, against SciPy's regression."""

import numpy as np
import pytest
from scipy.stats import linregress, t

from nystra_bench.instruments.power_law import fitted_exponent


def test_a_power_law_is_found_again():
    sizes = np.array([1024, 2304, 4096, 16384])
    found = fitted_exponent(sizes, 3e-6 * sizes**1.7)
    assert found.median == pytest.approx(1.7)
    assert found.high - found.low < 1e-6


def test_slope_and_interval_are_those_of_a_regression():
    rng = np.random.default_rng(0)
    sizes = np.array([64, 256, 1024, 4096, 16384, 65536])
    costs = 1e-3 * sizes**1.2 * np.exp(0.2 * rng.standard_normal(6))
    own, oracle = fitted_exponent(sizes, costs), linregress(np.log(sizes), np.log(costs))
    half = t.ppf(0.975, 4) * oracle.stderr
    assert (own.median, own.low, own.high) == pytest.approx((oracle.slope, oracle.slope - half, oracle.slope + half))


def test_the_interval_holds_the_true_exponent_as_often_as_it_says():
    rng = np.random.default_rng(1)
    sizes = np.array([1.0, 2, 4, 8, 16])
    found = [fitted_exponent(sizes, sizes * np.exp(0.1 * rng.standard_normal(5))) for _ in range(1000)]
    assert 0.93 < np.mean([estimate.contains(1.0) for estimate in found]) < 0.97


def test_what_cannot_be_fitted():
    assert fitted_exponent([64, 256], [1.0, 2.0]) is None
    assert fitted_exponent([64, 64, 64], [1.0, 2.0, 3.0]) is None
    assert fitted_exponent([64, 256, 1024], [0.0, 2.0, float("nan")]) is None
    assert fitted_exponent([], []) is None
