"""How often the interval of a median holds the true median, and how wide it is: the harness's beside the bootstrap's.

    python scripts/interval_coverage.py [repetitions]

draws samples of n values from three distributions of known median, and prints a Markdown table. The order-statistic
interval is the one of ``nystra_bench.instruments.statistics``; the percentile bootstrap (Efron and Tibshirani, An
Introduction to the Bootstrap, 1993, chapter 13; 2,000 resamples) is what the harness had before.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from statistics import NormalDist

import numpy as np

from nystra_bench.instruments.statistics import LEVEL, interval_rank

SIZES = (3, 5, 7, 9, 10, 20)
REPETITIONS = 20_000
RESAMPLES = 2_000
CHUNK = 500
"""Repetitions at a time: their medians of all resamples take 8 MB."""

Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]


def normal(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.standard_normal(shape)


def lognormal(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Heavy-tailed: one value in forty is more than 19 times the median."""
    return rng.lognormal(0, 1.5, shape)


def bimodal(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """A machine of two speeds: 70 % of the values near 1, 30 % near 1.3."""
    return rng.normal(np.where(rng.random(shape) < 0.7, 1.0, 1.3), 0.01)


DISTRIBUTIONS: dict[str, tuple[Draw, float]] = {
    "normal": (normal, 0.0),
    "log-normal, σ = 1.5": (lognormal, 1.0),
    # Where the lower mode, seven tenths of all, has five tenths below.
    "bimodal": (bimodal, 1 + 0.01 * NormalDist().inv_cdf(5 / 7)),
}
"""Name -> how it is drawn, and its median."""


def order_statistics(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both ends of the order-statistic interval of each row of (repetitions, n)."""
    ordered = np.sort(samples, axis=1)
    rank, _ = interval_rank(samples.shape[1])
    return ordered[:, rank - 1], ordered[:, -rank]


def bootstrap(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both ends of the percentile bootstrap interval of each row of (repetitions, n); all have the same resamples."""
    n = samples.shape[1]
    drawn = np.sort(np.random.default_rng(0).integers(n, size=(RESAMPLES, n)), axis=1)
    below, above = drawn[:, (n - 1) // 2], drawn[:, n // 2]  # a median is that of the places in the sorted sample
    ends = []
    for start in range(0, len(samples), CHUNK):
        ordered = np.sort(samples[start : start + CHUNK], axis=1)
        medians = (ordered[:, below] + ordered[:, above]) / 2
        ends.append(np.quantile(medians, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1))
    low, high = np.concatenate(ends, axis=1)
    return low, high


def coverage(low: np.ndarray, high: np.ndarray, median: float) -> float:
    """The share of the intervals that hold the true median."""
    return float(((low <= median) & (median <= high)).mean())


def rows(repetitions: int, seed: int = 0) -> Iterator[list[str]]:
    for place, (name, (draw, median)) in enumerate(DISTRIBUTIONS.items()):
        for n in SIZES:
            samples = draw(np.random.default_rng([seed, place, n]), (repetitions, n))
            found = [interval(samples) for interval in (order_statistics, bootstrap)]
            shares = [f"{100 * coverage(*ends, median):.1f} %" for ends in found]
            widths = [f"{(high - low).mean():.3g}" for low, high in found]
            yield [name, str(n), f"{100 * interval_rank(n)[1]:.1f} %", *shares, *widths]


def main(repetitions: int = REPETITIONS) -> None:
    header = ["distribution", "n", "level", "order statistics: coverage", "bootstrap: coverage"]
    header += ["order statistics: mean width", "bootstrap: mean width"]
    print(f"| {' | '.join(header)} |\n|---|{'---:|' * (len(header) - 1)}")
    for row in rows(repetitions):
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
