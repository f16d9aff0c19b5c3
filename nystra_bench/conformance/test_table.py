"""What every table keeps to: it bears all that a sweep can leave behind, and its two forms agree."""

from __future__ import annotations

import io

import pandas as pd
import pytest

from nystra_bench.report.base import Table
from nystra_bench.report.columns import ReadableTable, TableCell
from nystra_bench.report.markup import latex, markdown


@pytest.fixture
def table(subject) -> Table:
    return subject.make()


def is_sentence(text: object) -> bool:
    return isinstance(text, str) and text.strip().endswith(".")


def test_it_says_what_it_is(table):
    assert isinstance(table, Table)
    assert isinstance(table.title, str) and table.title
    assert isinstance(table.place, int)
    assert table.stem is None or (isinstance(table.stem, str) and table.stem and "/" not in table.stem)


def test_csv_and_readable_form_agree_and_can_be_written(subject, table, data):
    if reason := table.nothing(data):
        assert is_sentence(reason), "why there is nothing is a sentence"
        pytest.skip(f"{subject}: {reason}")
    frame, readable, notes = table.table(data), table.readable(data), table.notes(data)
    check_frame(frame)
    check_readable(readable)
    assert len(readable.rows) == len(frame)
    assert isinstance(notes, list) and all(map(is_sentence, notes))
    for written in (markdown(table.title, readable, notes), latex(table.title, readable, notes)):
        assert written.endswith("\n")


def check_frame(frame: pd.DataFrame) -> None:
    """The table can be read again from its CSV, with as many rows."""
    assert isinstance(frame, pd.DataFrame)
    assert all(isinstance(name, str) for name in frame) and frame.columns.is_unique
    if len(frame.columns):
        assert len(pd.read_csv(io.StringIO(frame.to_csv(index=False)))) == len(frame)


def check_readable(readable: ReadableTable) -> None:
    """There is a cell with a text for each column of each row."""
    assert isinstance(readable, ReadableTable)
    assert all(column.header for column in readable.columns)
    for row in readable.rows:
        assert len(row) == len(readable.columns)
        assert all(isinstance(cell, TableCell) and isinstance(cell.text, str) and cell.text for cell in row)


def test_it_is_the_same_each_time_and_leaves_the_data_as_they_were(table, data, unchanged):
    def shown() -> tuple:
        reason = table.nothing(data)
        return (reason,) if reason else (table.table(data).to_csv(), table.readable(data), table.notes(data))

    assert repr(shown()) == repr(shown())
