"""Summaries of samples: medians, and paired ratios, with order-statistic intervals. Needs numpy alone.

The interval of a median reaches from the k-th smallest of n samples to the k-th largest. It misses the true median just
when fewer than k samples lie on one side of it. Each lies there with probability 1/2, whatever the distribution, so the
level is 1 - 2 P(Bin(n, 1/2) < k): the interval is that of the sign test (Conover, Practical Nonparametric Statistics,
1999, section 3.2), exact for every continuous distribution, and at least that for one with ties.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

ONE_IN = 20
"""An interval misses the true median at most once in so many times, where there are samples enough."""

LEVEL = 1 - 1 / ONE_IN
"""The least level of an interval, where there are samples enough."""

ENOUGH = 6
"""Samples from which on an interval has that level: the range of n samples has 1 - 2^(1 - n)."""


@dataclass(frozen=True)
class Estimate:
    """A median and its interval.

    Attributes:
        level: with which probability such an interval holds the true median; below ``LEVEL`` for less than ``ENOUGH``
            samples.
    """

    median: float
    low: float
    high: float
    level: float

    def contains(self, value: float) -> bool:
        return self.low <= value <= self.high

    @property
    def uncertainty(self) -> float:
        """Half the width of the interval over the median."""
        return (self.high - self.low) / 2 / self.median


Ratio = Estimate
"""An estimate of a ratio of two times."""


@cache
def interval_rank(samples: int) -> tuple[int, float]:
    """Which samples, counted from the smallest and from the largest, bound the interval of a median; and its level.

    The narrowest pair whose level is at least ``LEVEL``; the outermost pair, the range, where none reaches it.

    Raises:
        ValueError: there are no samples.
    """
    if samples < 1:
        raise ValueError("an interval needs at least one sample")
    rank, ways, below, all_ways = 1, 1, 1, 2**samples  # whole numbers: exact for any number of samples
    allowed = all_ways // (2 * ONE_IN)
    while rank < samples // 2:
        ways = ways * (samples - rank + 1) // rank  # to have exactly ``rank`` samples on one side of the median
        if below + ways > allowed:
            break
        rank, below = rank + 1, below + ways
    return rank, 1 - 2 * below / all_ways


def median_interval(samples: Sequence[float]) -> Estimate:
    """Median of samples with its order-statistic interval.

    Raises:
        ValueError: there are no samples.
    """
    values = np.sort(np.asarray(samples, float))
    rank, level = interval_rank(len(values))
    return Estimate(float(np.median(values)), float(values[rank - 1]), float(values[-rank]), level)


def paired_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Ratio:
    """Median over rounds of ``numerator[i] / denominator[i]`` with its order-statistic interval.

    Pairing within a round removes the drift of the machine's speed from one round to the next.

    Raises:
        ValueError: the two have different numbers of rounds, or none.
    """
    a, b = np.asarray(numerator, float), np.asarray(denominator, float)
    if len(a) != len(b) or not len(a):
        raise ValueError(f"paired samples are needed, not {len(a)} and {len(b)}")
    return median_interval(a / b)


def interquartile_range(samples: Sequence[float]) -> float:
    low, high = np.quantile(np.asarray(samples, float), [0.25, 0.75])
    return float(high - low)
