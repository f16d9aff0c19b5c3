"""What a column of a readable table is: its name, its header and what it means. Imports nothing of the project."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """A column of a readable table.

    Attributes:
        header: short, with the unit in brackets.
        meaning: one or two sentences, for a tooltip.
        digits: decimals; None for text.
        spread: a second column, written in brackets after the number.
    """

    name: str
    header: str
    meaning: str
    digits: int | None = None
    spread: str | None = None
