"""Summaries of timing samples: medians, and paired ratios with bootstrap intervals. Needs numpy alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A median and its bootstrap interval."""

    median: float
    low: float
    high: float

    def contains(self, value: float) -> bool:
        return self.low <= value <= self.high

    @property
    def uncertainty(self) -> float:
        """Half the width of the interval over the median."""
        return (self.high - self.low) / 2 / self.median


Ratio = Estimate
"""An estimate of a ratio of two times."""


def median_interval(samples: Sequence[float], seed: int = 0) -> Estimate:
    """Median of samples, with a percentile bootstrap interval of 95 %."""
    values = np.asarray(samples, float)
    rng = np.random.default_rng(seed)
    medians = np.median(rng.choice(values, (RESAMPLES, len(values))), axis=1)
    low, high = np.quantile(medians, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(np.median(values)), float(low), float(high))


def paired_ratio(numerator: Sequence[float], denominator: Sequence[float], seed: int = 0) -> Ratio:
    """Median over rounds of ``numerator[i] / denominator[i]``, with a percentile bootstrap interval of 95 %.

    Pairing within a round removes the drift of the machine's speed from one round to the next.

    Raises:
        ValueError: the two have different numbers of rounds, or none.
    """
    a, b = np.asarray(numerator, float), np.asarray(denominator, float)
    if len(a) != len(b) or not len(a):
        raise ValueError(f"paired samples are needed, not {len(a)} and {len(b)}")
    return median_interval(a / b, seed)


def interquartile_range(samples: Sequence[float]) -> float:
    low, high = np.quantile(np.asarray(samples, float), [0.25, 0.75])
    return float(high - low)
