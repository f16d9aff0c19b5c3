"""What is in the store or in a plan and does not hold what it should counts as missing, or is told in one sentence."""

import json
import logging
from pathlib import Path

import pytest

from nystra_bench.cli import main
from nystra_bench.errors import UserError
from nystra_bench.sweep.cell import SCHEMA, Cell
from nystra_bench.sweep.planfile import read_cells
from nystra_bench.sweep.store import Store, write_atomically

ABOUT = {"status": "done", "reason": None, "seconds": 1.0, "session": "s", "environment": {}}
CELL = Cell.of({"measure": "quality", "attention": {"name": "exact"}})
OTHER = Cell.of({"measure": "quality", "attention": {"name": "identity"}})


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results" / "store")


def changed(**changes):
    def damage(path):
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def without(name):
    def damage(path):
        found = json.loads(path.read_text())
        del found[name]
        path.write_text(json.dumps(found))

    return damage


def a_folder(path):
    path.unlink()
    path.mkdir()
    (path / "inside").touch()


def a_file_for_the_key(path):
    for inside in path.parent.iterdir():
        inside.unlink()
    path.parent.rmdir()
    path.parent.write_text("a file")


DAMAGES = {
    "another cell's": changed(key=OTHER.key, cell=OTHER.content),
    "another cell's content": changed(cell=OTHER.content),
    "another cell's key": changed(key=OTHER.key),
    "another schema": changed(schema=SCHEMA + 1),
    "no schema": without("schema"),
    "no cell": changed(cell=[1]),
    "a cell that no digest can be made of": changed(cell={"name": "\udce4"}),
    "a list": lambda path: path.write_text("[1]"),
    "null": lambda path: path.write_text("null"),
    "empty": lambda path: path.write_text(""),
    "truncated": lambda path: path.write_text(path.read_text()[:-5]),
    "no status": without("status"),
    "an unknown status": changed(status="fine"),
    "a status that is no text": changed(status=["done"]),
    "a reason that is no text": changed(reason={}),
    "brackets": lambda path: path.write_text("[" * 100_000 + "]" * 100_000),
    "bytes": lambda path: path.write_bytes(b'{"schema": "\xff"}'),
    "a number that is too long": lambda path: path.write_text("1" * 5000),
    "a folder": a_folder,
    "a file for the key": a_file_for_the_key,
}
OF_RESULTS = {"no value": without("value"), "a value that is no object": changed(value=[])}


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


@pytest.fixture(autouse=True)
def heard(monkeypatch):
    """Other tests start logs of their own."""
    monkeypatch.setattr(logging.getLogger("nystra_bench"), "propagate", True)


@pytest.mark.parametrize("damage", DAMAGES | OF_RESULTS)
def test_a_damaged_result_counts_as_missing_and_is_measured_again(store, caplog, damage):
    store.save(CELL, {"n": 1}, **ABOUT)
    path = store.folder / CELL.key / "result.json"
    (DAMAGES | OF_RESULTS)[damage](path)
    assert store.status(CELL.key) == ("missing", None)
    assert store.result(CELL.key) is None
    assert any(str(path) in said and "\n" not in said for said in warnings(caplog))
    store.save(CELL, {"n": 2}, **ABOUT)
    assert store.result(CELL.key)["value"] == {"n": 2}
    assert [p.name for p in (store.folder / CELL.key).iterdir()] == ["result.json"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_failure_counts_as_missing_and_gives_way_to_the_next(store, caplog, damage):
    store.fail(CELL, "oom", "too large")
    path = store.folder / CELL.key / "failure.json"
    DAMAGES[damage](path)
    assert store.status(CELL.key) == ("missing", None)
    assert any(str(path) in said for said in warnings(caplog))
    store.fail(CELL, "timeout", "too long")
    assert store.status(CELL.key) == ("timeout", "too long")


def test_a_file_that_may_not_be_read_counts_as_missing(store, caplog, monkeypatch):
    store.save(CELL, {"n": 1}, **ABOUT)
    read = Path.read_text

    def refusing(path, *arguments, **more):
        if path.name == "result.json":
            raise PermissionError(13, "Permission denied")
        return read(path, *arguments, **more)

    monkeypatch.setattr(Path, "read_text", refusing)
    assert store.status(CELL.key) == ("missing", None)
    assert "Permission denied" in warnings(caplog)[0]


def test_the_log_says_it_once(store, caplog):
    store.fail(CELL, "oom", "too large")
    (store.folder / CELL.key / "failure.json").write_text("{")
    for _ in range(3):
        store.status(CELL.key)
    assert len(warnings(caplog)) == 1


def test_what_was_never_there_is_no_damage(store, caplog):
    assert store.status(CELL.key) == ("missing", None)
    store.folder.parent.mkdir(parents=True)
    store.folder.write_text("a file")
    assert store.status(CELL.key) == ("missing", None)
    assert warnings(caplog) == []


@pytest.mark.parametrize("write", [Store.save, Store.fail])
def test_a_status_that_could_not_be_read_again_is_not_written(store, write):
    arguments = [{}] if write is Store.save else ["reason"]
    with pytest.raises(ValueError, match="'fine' is none of"):
        if write is Store.save:
            store.save(CELL, *arguments, status="fine")
        else:
            store.fail(CELL, "fine", *arguments)
    assert not (store.folder / CELL.key).exists()


def test_a_reason_with_bytes_that_are_no_text_can_be_shown(store):
    store.fail(CELL, "failed", "no file caf\udce4", "Traceback \udce4")
    assert store.status(CELL.key) == ("failed", "no file caf\\udce4")
    assert store.failure(CELL.key)["traceback"] == "Traceback \\udce4"
    changed(reason="caf\udce4")(store.folder / CELL.key / "failure.json")  # as earlier versions wrote it
    assert store.status(CELL.key) == ("failed", "caf\\udce4")


def test_a_store_that_is_a_file_is_told_in_one_sentence(bench, looked_at_here):
    bench.results.mkdir()
    (bench.results / "store").write_text("a file")
    outcome = bench()
    assert outcome.code == 1
    assert f"results={bench.results}" in outcome.sentence
    assert str(bench.results / "store") in outcome.sentence
    assert (bench.results / "store").read_text() == "a file"


# ------------------------------------------------------------------ plans

PLANNED = {"key": CELL.key, "cell": CELL.content, "uses": {"bias": "used"}, "status": "planned", "reason": None}


def plan_of(*cells, **about):
    return json.dumps({"schema": SCHEMA, "sweep": "tiny", "cells": list(cells), **about})


BAD_PLANS = {
    "truncated": (plan_of(PLANNED)[:-9], "no JSON"),
    "brackets": ("[" * 100_000, "no JSON"),
    "list": ("[]", "no JSON object"),
    "schema": (plan_of(PLANNED, schema=99), "schema 99"),
    "no cells": (plan_of(cells=None), "no list of cells"),
    "a cell that is none": (plan_of(PLANNED, 3), "cells[1] is no object"),
    "another cell's key": (plan_of(PLANNED | {"key": OTHER.key}), "cells[0]: it belongs to another cell"),
    "no cell": (plan_of(PLANNED | {"cell": None}), "cells[0]: no cell"),
    "status": (plan_of(PLANNED | {"status": "done"}), "status 'done'"),
    "reason": (plan_of(PLANNED | {"reason": 1}), "its reason"),
    "uses": (plan_of(PLANNED | {"uses": [1]}), "its uses"),
}


def test_a_plan_comes_back(tmp_path):
    without_uses = {key: value for key, value in PLANNED.items() if key != "uses"}
    write_atomically(tmp_path / "cells.json", plan_of(PLANNED, without_uses))
    assert read_cells(tmp_path / "cells.json") == [PLANNED, without_uses]


@pytest.mark.parametrize("kind", BAD_PLANS)
def test_a_damaged_plan_is_told_in_one_sentence(tmp_path, kind):
    text, part = BAD_PLANS[kind]
    file = tmp_path / "cells.json"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        read_cells(file)
    assert str(caught.value).startswith(f"{file} cannot be read as the plan of a sweep")
    assert part in str(caught.value)
    assert "without mode=report" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_report_of_a_damaged_plan(bench, capfd):
    file = bench.results / "tiny" / "cells.json"
    write_atomically(file, plan_of(PLANNED)[:-9])
    # No other words: with options of its own, a report plans anew.
    words = [word for word in bench.words("mode=report") if not word.startswith("device.threads")]
    assert main(words) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert str(file) in line
    assert "without mode=report" in line
