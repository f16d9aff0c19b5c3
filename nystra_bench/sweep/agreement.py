"""Whether a number that was measured again agrees with the first one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ROUNDING_DB = 100.0
"""Above it, in dB, outputs differ by the rounding of float32 alone: all such deviations agree."""

NEAR_DB = 0.01
"""Decibels within which a number agrees: the second digit is what tables show."""

NEAR_ZERO = 1e-5
"""Whatever the unit, differences below it are rounding."""


@dataclass(frozen=True)
class Compared:
    """A number, measured twice.

    Attributes:
        before, after: numbers, or text; None where one was not measured.
    """

    name: str
    before: Any
    after: Any
    agrees: bool
    unit: str | None = None

    @property
    def difference(self) -> float | None:
        """Of two finite numbers that are more than rounding."""
        pair = (self.before, self.after)
        finite = all(isinstance(x, (int, float)) and math.isfinite(x) for x in pair)
        if not finite or (self.unit == "dB" and min(pair) >= ROUNDING_DB):
            return None
        return self.after - self.before

    def __str__(self) -> str:
        told = "agrees" if self.agrees else "DIFFERS"
        difference = "" if not self.difference else f", by {self.difference:+.2g}"
        return f"{self.name}: {_text(self.before)} -> {_text(self.after)}: {told}{difference}"


def compare(before: Mapping, after: Mapping, described: Mapping[str, Mapping], tolerance: float) -> list[Compared]:
    """Two runs' scalars, in the order of the first; what only one of them has does not agree.

    Args:
        described: metric -> ``unit``, where it is known (``Measurement.describe``).
        tolerance: relative difference within which numbers agree whose unit is not dB.
    """
    found = []
    for name in dict.fromkeys([*before, *after]):
        unit = described.get(name.removeprefix("input_"), {}).get("unit")
        pair = before.get(name), after.get(name)
        found.append(Compared(name, *pair, agree(*pair, unit, tolerance), unit))
    return found


def agree(before: Any, after: Any, unit: str | None, tolerance: float) -> bool:
    """Whether two numbers agree: within 0.01 dB, or the tolerance; NaN and infinities with their like."""
    if not all(isinstance(x, (int, float)) for x in (before, after)):
        return bool(before == after)
    if before == after or (math.isnan(before) and math.isnan(after)):
        return True
    if unit == "dB" and min(before, after) >= ROUNDING_DB:
        return True
    if not math.isfinite(before) or not math.isfinite(after):
        return False
    near = NEAR_DB if unit == "dB" else tolerance * max(abs(before), abs(after))
    return abs(after - before) <= max(near, NEAR_ZERO)


def _text(value: Any) -> str:
    return "not measured" if value is None else f"{value:.6g}" if isinstance(value, (int, float)) else str(value)
