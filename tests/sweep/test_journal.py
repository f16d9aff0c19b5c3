"""The journal of a long cell: what is done of it outlives the process, and nothing else comes back."""

import os
import subprocess
import sys

import numpy as np
import pytest

from nystra_bench.sweep.cell import Cell
from nystra_bench.sweep.inspection import child_environment
from nystra_bench.sweep.store import Store

CELL = Cell.of({"measure": "quality", "attention": {"name": "exact"}})
HEADER = {"metrics": {"psnr": "1"}}
RECORDS = [{"id": "a", "psnr": 30.5}, {"id": "b", "psnr": float("inf")}, {"id": "caf\udce4"}]
BACK = [RECORDS[0], {"id": "b", "psnr": "inf"}, RECORDS[2]]


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results" / "store")


@pytest.fixture
def file(store):
    return store.folder / CELL.key / "journal.jsonl"


@pytest.fixture
def written(store, file):
    journal = store.journal(CELL, HEADER)
    for record in RECORDS:
        journal.append(record)
    return journal


def test_records_come_back_in_another_process_too(store, written):
    assert written.records() == BACK
    again = store.journal(CELL, HEADER)
    assert again.records() == BACK
    again.append({"id": "d"})
    assert store.journal(CELL, HEADER).records() == [*BACK, {"id": "d"}]


def test_a_journal_alone_is_no_result(store, written):
    assert store.status(CELL.key) == ("missing", None)


def test_another_header_discards_what_was_kept(store, written):
    assert store.journal(CELL, HEADER | {"more": 1}).records() == []
    assert store.journal(CELL, HEADER).records() == []


@pytest.mark.parametrize(
    "text", [b"", b"\n", b"[1]\n", b"{}\n", b"\xff\n{}\n", b"[" * 100_000 + b"\n", b'{"header": {"metrics": {"psnr"']
)
def test_a_journal_without_its_header_is_begun_anew(store, written, file, text):
    file.write_bytes(text)
    assert store.journal(CELL, HEADER).records() == []


def test_a_torn_last_line_and_lines_that_are_no_objects_are_left_out(store, written, file):
    with file.open("ab") as appended:
        appended.write(b'[1]\nnull\n\xff\n{"id": "d"}\n{"id": "torn", "psnr": 3')
    assert store.journal(CELL, HEADER).records() == [*BACK, {"id": "d"}]
    store.journal(CELL, HEADER).append({"id": "e"})
    assert store.journal(CELL, HEADER).records() == [*BACK, {"id": "d"}, {"id": "e"}]
    file.write_bytes(file.read_bytes()[:-1])  # whole but for its end: not known to be whole
    assert store.journal(CELL, HEADER).records() == [*BACK, {"id": "d"}]


def test_every_place_where_the_writer_may_be_cut_off(store, written, file):
    content = file.read_bytes()
    kept = []
    for length in range(len(content) + 1):
        file.write_bytes(content[:length])
        records = store.journal(CELL, HEADER).records()
        assert records == BACK[: len(records)]
        kept.append(len(records))
    assert kept == sorted(kept)
    assert set(kept) == {0, 1, 2, 3}


def test_a_failure_keeps_the_journal_and_the_result_removes_it(store, written, file):
    store.fail(CELL, "timeout", "too long")
    assert store.journal(CELL, HEADER).records() == BACK
    assert store.status(CELL.key) == ("timeout", "too long")
    store.save(CELL, {}, status="done", reason=None)
    assert [path.name for path in file.parent.iterdir()] == ["result.json"]


def test_the_journal_of_the_result_that_is_to_be_replaced_is_not_taken_for_the_new_ones(store, written, file):
    """Killed after the result was put in place and before the journal was removed."""
    old = file.read_bytes()
    store.save(CELL, {}, status="unstable", reason="spread")
    file.write_bytes(old)
    assert store.journal(CELL, HEADER).records() == []
    store.journal(CELL, HEADER).append({"id": "new"})
    assert store.journal(CELL, HEADER).records() == [{"id": "new"}]


def test_a_folder_in_its_place_gives_way(store, file):
    (file / "inside").mkdir(parents=True)
    assert store.journal(CELL, HEADER).records() == []


KILLED = """
import os, sys
from pathlib import Path
from nystra_bench.sweep.cell import Cell
from nystra_bench.sweep.store import Store
journal = Store(Path(sys.argv[1])).journal(Cell(sys.argv[2]), {"metrics": {"psnr": "1"}})
journal.append({"id": "a"})
os.kill(os.getpid(), 9)
"""


def test_a_record_outlives_the_kill_of_its_writer(store):
    command = [sys.executable, "-c", KILLED, str(store.folder), CELL.text]
    assert subprocess.run(command, env=child_environment(), timeout=60, check=False).returncode == -9
    assert os.listdir(store.folder / CELL.key) == ["journal.jsonl"]
    assert store.journal(CELL, HEADER).records() == [{"id": "a"}]


# ------------------------------------------------------------------ arrays, and parts by several processes

FEATURES = np.arange(12, dtype=np.float32).reshape(3, 4)
ARRAYS = {"a": FEATURES, "b": FEATURES.copy(), "c": FEATURES[:1] * np.nan, "d": FEATURES.astype(np.float64)}


def same(found):
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array, equal_nan=True)
    return True


def test_arrays_come_back_to_the_bit_and_equal_ones_are_kept_once(store, written, file):
    written.keep("an image/with odd characters", ARRAYS)
    again = store.journal(CELL, HEADER)
    assert same(again.kept("an image/with odd characters")) and again.kept("another") is None
    (kept,) = (file.parent / "journal").iterdir()
    with np.load(kept) as found:
        assert len(found.files) == 3 + 1


def test_arrays_that_cannot_be_read_are_as_if_they_were_not_kept(store, written, file):
    written.keep("x", ARRAYS)
    (kept,) = (file.parent / "journal").iterdir()
    content = kept.read_bytes()
    for damaged in (b"", content[: len(content) // 2], b"no arrays", content[:60] + bytes(60) + content[120:]):
        kept.write_bytes(damaged)
        assert store.journal(CELL, HEADER).kept("x") is None


def test_another_header_discards_arrays_and_the_result_removes_them(store, written, file):
    written.keep("x", ARRAYS)
    assert store.journal(CELL, HEADER | {"more": 1}).kept("x") is None
    store.journal(CELL, HEADER).keep("x", ARRAYS)
    store.save(CELL, {}, status="done", reason=None)
    assert [path.name for path in file.parent.iterdir()] == ["result.json"]


def test_parts_write_journals_of_their_own_and_are_read_together(store, file):
    for part, record in (("0-1", {"id": "a"}), ("1-2", {"id": "b"})):
        journal = store.journal(CELL, HEADER, part)
        journal.append(record)
        journal.keep(record["id"], ARRAYS)
    store.journal(CELL, HEADER | {"more": 1}, "2-3").append({"id": "of other metrics"})
    whole = store.journal(CELL, HEADER)
    assert whole.records() == [{"id": "a"}, {"id": "b"}]
    assert same(whole.kept("a")) and same(whole.kept("b"))
    whole.append({"id": "c"})
    assert store.journal(CELL, HEADER).records() == [{"id": "c"}, {"id": "a"}, {"id": "b"}]
    store.save(CELL, {}, status="done", reason=None)
    assert [path.name for path in file.parent.iterdir()] == ["result.json"]
