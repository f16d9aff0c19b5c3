"""How a cost grows: the exponent of a power law, with its interval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nystra_bench.instruments.statistics import LEVEL, Estimate

LEAST = 3
"""Points that a fit needs: two give no interval."""


def fitted_exponent(sizes: Sequence[float], costs: Sequence[float]) -> Estimate | None:
    """The slope b of ``log cost = a + b log size``, by least squares, with the t-interval of a regression's slope.

    The interval tells how well a power law fits over these sizes, bends of the curve included; the costs' own noise is
    part of that. n points have n - 2 degrees of freedom (Draper and Smith, Applied Regression Analysis, section 1.4).

    Returns:
        None where there are fewer than ``LEAST`` sizes with a positive cost.
    """
    x, y = np.asarray(sizes, float), np.asarray(costs, float)
    usable = np.isfinite(y) & (y > 0)
    x, y = np.log(x[usable]), np.log(y[usable])
    if len(set(x)) < LEAST:
        return None
    from scipy.special import stdtrit  # the quantiles of Student's t, by degrees of freedom

    centred = x - x.mean()
    slope = float(centred @ y / (centred @ centred))
    residuals = y - y.mean() - slope * centred
    error = np.sqrt(residuals @ residuals / (len(x) - 2) / (centred @ centred))
    half = float(stdtrit(len(x) - 2, (1 + LEVEL) / 2) * error)
    return Estimate(slope, slope - half, slope + half, LEVEL)
