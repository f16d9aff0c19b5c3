"""What a table and a figure of the report are.

Adding one is one Python file in ``tables/`` or ``figures/`` and one YAML of the same name in ``configs/table/`` or
``configs/figure/``: ``_target_`` names the class, the other entries are the constructor's arguments. Nothing else is
edited. A plug-in that raises becomes a note in the report; the rest is drawn all the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

import pandas as pd

from nystra_bench.report.columns import ReadableTable, readable_table
from nystra_bench.report.frame import ReportData

if TYPE_CHECKING:  # planning and tables do not pay for matplotlib
    import matplotlib.figure


def is_missed(part: Table | Figure, data: ReportData) -> bool:
    """Whether readers are told that a table or figure has nothing to show: where what it is made of is not done.

    Otherwise it does not apply to the sweep, and is left out of the page.
    """
    cells = data.cells[data.cells["measure"].isin(part.made_of)] if part.made_of else data.cells
    planned = set(part.made_of) <= set(cells["measure"])
    return planned and not cells["status"].isin(("done", "unstable", "skipped")).all()


class Table(ABC):
    """A table: every number as CSV, and a readable choice of columns as Markdown, LaTeX and HTML.

    Args:
        title: heading of the table.
        columns: names of the readable columns, in order; those without any content are left out.
        stem: name of its files without the ending; by default the name of its YAML.
    """

    place: ClassVar[int] = 100
    """Tables stand in the report by rising place, those of equal place by name."""

    made_of: ClassVar[tuple[str, ...]] = ()
    """The measurements without which there is nothing to show; () where any will do. See ``is_missed``."""

    def __init__(self, title: str, columns: list[str], stem: str | None = None):
        self.title, self.columns, self.stem = title, list(columns), stem

    @abstractmethod
    def table(self, data: ReportData) -> pd.DataFrame:
        """Every column, raw numbers; what ``<stem>.csv`` holds."""

    def readable(self, data: ReportData) -> ReadableTable:
        """What people read, already rounded and worded."""
        return readable_table(data, self.table(data), self.columns)

    def nothing(self, data: ReportData) -> str | None:
        """Why there is nothing to show, and so no file to write; None where there is something."""
        return None

    def notes(self, data: ReportData) -> list[str]:
        """Sentences below the readable table."""
        return []

    def missed(self, data: ReportData) -> bool:
        """Whether readers are told that there is nothing to show."""
        return is_missed(self, data)


class Figure(ABC):
    """A figure, or several of one kind (one for each model, say).

    Args:
        title: heading in the report.
    """

    place: ClassVar[int] = 100
    """Figures stand in the report by rising place, those of equal place by name."""

    made_of: ClassVar[tuple[str, ...]] = ()
    """The measurements without which there is nothing to show; () where any will do. See ``is_missed``."""

    def __init__(self, title: str):
        self.title = title

    @abstractmethod
    def caption(self, data: ReportData) -> str:
        """What is shown and how to read it."""

    @abstractmethod
    def draw(self, data: ReportData) -> list[tuple[str, matplotlib.figure.Figure]]:
        """(suffix of the file's name, figure) each; an empty list where there is nothing to draw.

        Figures are made by the object-oriented API (``matplotlib.figure.Figure``): pyplot keeps global state.
        """

    def nothing(self, data: ReportData) -> str:
        """Why ``draw`` gives an empty list."""
        return "There is nothing to draw."
