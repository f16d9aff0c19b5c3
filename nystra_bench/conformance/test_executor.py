"""What every executor keeps to: sessions are run to their ends, what they measure is the same, and ends are told."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from nystra_bench.configuration import Catalogue, configs_folder
from nystra_bench.sweep.cell import Cell
from nystra_bench.sweep.executors.base import Executor, SessionJob, executor
from nystra_bench.sweep.plan import Run, request_of
from nystra_bench.sweep.store import Store

HERE = {"cluster": "local", "address": None, "cpus": 1, "parallel": 2}
"""Parameters that an executor may have, of small jobs on this machine."""

TOY = '''\
import os
import pathlib

from nystra_bench.measure.base import Measurement


class Toy(Measurement):
    """Ends as it is told to."""

    needs = ("device", "dtype")

    def __init__(self, ends="well"):
        self.ends = ends

    def measure(self, bench, job):
        if self.ends == "badly":
            raise ArithmeticError("no luck")
        if self.ends == "at once":
            os._exit(7)
        return {"here": pathlib.Path("here").read_text()}
'''


@pytest.fixture
def made(subject) -> Executor:
    made = executor(subject.name, subject.config | {k: v for k, v in HERE.items() if k in subject.config})
    if reason := made.available():
        pytest.skip(reason)
    return made


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The folder that a user is in, with a plug-in's measurement."""
    (tmp_path / "plugins" / "measure").mkdir(parents=True)
    (tmp_path / "plugins" / "toy_of_executors.py").write_text(TOY)
    (tmp_path / "results" / "store").mkdir(parents=True)
    (tmp_path / "here").write_text("as it should be")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NYSTRA_BENCH_LOCKS", str(tmp_path / "locks"))
    return tmp_path


def job(folder: Path, *ends: str) -> SessionJob:
    """A session with a cell for each of these ends."""
    cells = []
    for end in ends:
        config = {"_target_": "toy_of_executors.Toy", "ends": end}
        content = {"measure": {"name": "toy", "version": "1", "params": {"ends": end}}, "device": "cpu"}
        cell = Cell.of(content | {"dtype": "float32", "settings": {}})
        cells.append({"cell": cell.text, "measure": config, "attention": None, "parts": {}})
    device = {"_type_": "cpu", "threads": 1}
    request: dict[str, Any] = {"store": str(folder / "results" / "store"), "sys_path": [str(folder / "plugins")]}
    request |= {"device": device, "metrics": {}, "references": {}, "timing": {}, "model": None, "task": None}
    request |= {"tiling": None, "window": None, "position_bias": None, "dtype": "float32", "seed": 0, "tf32": False}
    return SessionJob(request | {"cells": cells}, timeout_s=60, quiet=False)


def test_its_file_is_a_class_of_the_contract(subject):
    made = subject.make()
    assert isinstance(made, Executor) and type(made).__doc__
    reason = made.available()
    assert reason is None or reason.strip()


def test_sessions_are_run_to_their_ends(made, folder):
    """In the folder that the command was started in; an end is put down to the cell that it came at."""
    jobs = [job(folder, "well", "badly", "at once"), job(folder, "in time")]
    told: list[dict] = []
    (folder / "results" / "toy").mkdir()
    made.run(jobs, folder / "results" / "toy", told.append)
    store = Store(folder / "results" / "store")
    ends = {cell.content["measure"]["params"]["ends"]: cell.key for one in jobs for cell in one.cells}
    assert {end: store.status(key)[0] for end, key in ends.items()} == {
        **{"well": "done", "badly": "failed", "at once": "crashed", "in time": "done"},
    }
    well = store.result(ends["well"])
    assert well and well["value"] == {"here": "as it should be"}
    assert "no luck" in str(store.status(ends["badly"])) and "exit code 7" in str(store.status(ends["at once"]))
    settled = Counter(event["key"] for event in told if event["event"] in ("done", "failed"))
    assert settled == Counter(ends.values())
    assert not list((folder / "results" / "store").glob(".new-*"))


def test_it_tells_the_machine_that_sessions_run_on(made, folder):
    request = request_of([], Run(metrics={}, references={}, timing={}))
    device = Catalogue([configs_folder()]).option("device", "cpu")
    facts = made.look(request | {"devices": {"it": device}}, folder / "results" / "toy")
    assert facts["devices"]["it"]["hardware"] and facts["devices"]["it"]["threads"] >= 1
