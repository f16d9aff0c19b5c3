"""Medians, paired ratios and their intervals: by hand, by the binomial distribution, and by simulation."""

import math

import numpy as np
import pytest
import script_modules

from nystra_bench.instruments.statistics import (
    ENOUGH,
    LEVEL,
    interquartile_range,
    interval_rank,
    median_interval,
    paired_ratio,
)


@pytest.fixture(scope="module")
def script():
    return script_modules.script("interval_coverage")


def level(samples: int, rank: int) -> float:
    """By the definition: fewer than ``rank`` samples on neither side of the median."""
    return 1 - 2 * sum(math.comb(samples, below) for below in range(rank)) / 2**samples


@pytest.mark.parametrize("samples", [*range(1, 61), 500])
def test_the_interval_is_the_narrowest_whose_level_is_reached(samples):
    rank, said = interval_rank(samples)
    assert said == pytest.approx(level(samples, rank))
    assert 1 <= rank <= (samples + 1) // 2
    assert level(samples, rank + 1) < LEVEL
    assert (said >= LEVEL) == (samples >= ENOUGH) and (rank == 1 or said >= LEVEL)


def test_ranks_and_levels_of_the_tables():
    """As tabulated for the sign test; of few samples the interval is the range."""
    found = {n: interval_rank(n) for n in (1, 2, 3, 5, 6, 8, 9, 12, 20)}
    assert {n: rank for n, (rank, _) in found.items()} == {1: 1, 2: 1, 3: 1, 5: 1, 6: 1, 8: 1, 9: 2, 12: 3, 20: 6}
    few = [found[n][1] for n in (1, 2, 3, 5)]
    assert few == [0, 0.5, 0.75, 0.9375] and found[20][1] == pytest.approx(0.9586, abs=1e-4)


def test_many_samples_have_an_interval_too():
    rank, said = interval_rank(20_000)  # whose powers of two exceed a float
    assert rank == pytest.approx(10_000 - 1.96 * math.sqrt(20_000) / 2, abs=2) and LEVEL <= said < LEVEL + 2e-3


def test_a_median_and_its_interval_by_hand():
    found = median_interval([9, 1, 8, 2, 7, 3, 6, 4, 500])
    assert (found.median, found.low, found.high, found.level) == (6, 2, 9, pytest.approx(1 - 20 / 512))
    assert found.contains(2) and not found.contains(1.9) and found.uncertainty == pytest.approx(7 / 12)
    assert (median_interval([3, 1, 2]).low, median_interval([3, 1, 2]).high) == (1, 3)
    with pytest.raises(ValueError, match="at least one sample"):
        median_interval([])


@pytest.mark.parametrize("samples", [7, 10, 20])
@pytest.mark.parametrize("name", ["normal", "log-normal, σ = 1.5", "bimodal"])
def test_the_interval_holds_the_true_median_about_as_often_as_it_says(script, name, samples):
    draw, median = script.DISTRIBUTIONS[name]
    drawn = draw(np.random.default_rng(0), (2000, samples))
    share = np.mean([median_interval(row).contains(median) for row in drawn])
    assert share >= 0.94 and share == pytest.approx(interval_rank(samples)[1], abs=0.012)


def test_the_percentile_bootstrap_does_not(script):
    """The simulation tells the two apart: what the harness had before would fail it."""
    for draw, median in script.DISTRIBUTIONS.values():
        drawn = draw(np.random.default_rng(0), (2000, 7))
        assert script.coverage(*script.bootstrap(drawn), median) < 0.90
        assert script.coverage(*script.order_statistics(drawn), median) >= 0.94


def test_the_medians_of_the_simulated_distributions_are_theirs(script):
    for draw, median in script.DISTRIBUTIONS.values():
        drawn = draw(np.random.default_rng(0), (1, 200_000))
        assert np.mean(drawn < median) == pytest.approx(0.5, abs=0.005)


def test_the_table_of_coverages_is_markdown(script, capsys):
    script.main(50)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(script.DISTRIBUTIONS) * len(script.SIZES)
    assert len({line.count("|") for line in lines}) == 1 and "| normal | 7 | 98.4 % |" in "\n".join(lines)


def test_a_paired_ratio_by_hand():
    ratio = paired_ratio([10, 40, 90], [10, 20, 30])
    assert (ratio.median, ratio.low, ratio.high, ratio.level) == (2, 1, 3, 0.75)
    alike = paired_ratio([3, 6, 9, 12], [2, 4, 6, 8])
    assert (alike.median, alike.low, alike.high) == (1.5, 1.5, 1.5)


def test_pairing_takes_off_the_drift_that_rounds_share():
    drift = np.linspace(1, 5, 15)
    ratio = paired_ratio(2 * drift, drift)
    assert (ratio.low, ratio.high) == pytest.approx((2, 2))


def test_the_interval_of_a_ratio_holds_the_true_one_whatever_the_drift():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        drift = rng.uniform(1, 2, 15)
        fast, slow = drift * rng.lognormal(0, 0.05, 15), 1.3 * drift * rng.lognormal(0, 0.05, 15)
        covered += paired_ratio(slow, fast).contains(1.3)
    assert covered >= 940


def test_samples_that_are_no_pairs_are_refused():
    for a, b in (([1.0], [1.0, 2.0]), ([], [])):
        with pytest.raises(ValueError, match="paired samples"):
            paired_ratio(a, b)


def test_the_interquartile_range_by_hand():
    assert interquartile_range([1, 2, 3, 4, 5]) == 2
