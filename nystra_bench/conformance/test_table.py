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


@pytest.fixture
def shown(subject, table, data) -> Table:
    """The table, where it has something to show."""
    if reason := table.nothing(data):
        pytest.skip(f"{subject}: {reason}")
    return table


def is_sentence(text: object) -> bool:
    return isinstance(text, str) and text.strip().endswith(".")


def test_it_says_what_it_is(table):
    assert isinstance(table, Table)
    assert isinstance(table.title, str) and table.title
    assert isinstance(table.place, int)
    assert table.stem is None or (isinstance(table.stem, str) and table.stem and "/" not in table.stem)


def test_why_there_is_nothing_is_a_sentence(table, data):
    reason = table.nothing(data)
    assert reason is None or is_sentence(reason)


def test_csv_and_readable_form_have_the_same_rows(shown, data):
    frame, readable = shown.table(data), shown.readable(data)
    assert isinstance(frame, pd.DataFrame) and isinstance(readable, ReadableTable)
    assert len(readable.rows) == len(frame)
    assert all(isinstance(name, str) for name in frame) and frame.columns.is_unique
    if len(frame):
        assert len(pd.read_csv(io.StringIO(frame.to_csv(index=False)))) == len(frame)


def test_the_readable_form_has_a_cell_for_each_column(shown, data):
    readable = shown.readable(data)
    for row in readable.rows:
        assert len(row) == len(readable.columns)
        assert all(isinstance(cell, TableCell) and isinstance(cell.text, str) and cell.text for cell in row)
    assert all(column.header for column in readable.columns)


def test_it_is_written_as_markdown_and_latex(shown, data):
    readable, notes = shown.readable(data), shown.notes(data)
    assert isinstance(notes, list) and all(map(is_sentence, notes))
    for written in (markdown(shown.title, readable, notes), latex(shown.title, readable, notes)):
        assert written.endswith("\n")


def test_it_is_the_same_each_time_and_leaves_the_data_as_they_were(shown, data, unchanged):
    first, second = ((shown.table(data), shown.readable(data), shown.notes(data)) for _ in range(2))
    pd.testing.assert_frame_equal(first[0], second[0])
    assert repr(first[1:]) == repr(second[1:])
