"""Holding the parameters of methods to their ranges."""

from __future__ import annotations


def check_whole_numbers(**parameters: tuple[object, int]) -> None:
    """Hold parameters, each given as (value, least), to whole numbers.

    Raises:
        ValueError: one is not, or is too small.
    """
    for parameter, (value, least) in parameters.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{parameter}={value} is out of range: accepted are whole numbers from {least} on")


def check_truth(**parameters: object) -> None:
    """Hold parameters to true and false.

    Raises:
        ValueError: one is neither.
    """
    for parameter, value in parameters.items():
        if not isinstance(value, bool):
            raise ValueError(f"{parameter}={value} is unknown: accepted are true, false")
