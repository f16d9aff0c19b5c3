"""Sessions that run elsewhere, on a toy cluster in this process; real ones are in the conformance tests."""

import importlib.util
import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from nystra_bench.sweep import locks
from nystra_bench.sweep.cell import Cell
from nystra_bench.sweep.durations import Durations
from nystra_bench.sweep.executors import cluster
from nystra_bench.sweep.executors.base import SessionJob
from nystra_bench.sweep.executors.cluster import ClusterExecutor, Lost
from nystra_bench.sweep.executors.jobfile import JobFile, run_file
from nystra_bench.sweep.inspection import child_environment
from nystra_bench.sweep.store import Store
from nystra_bench.sweep.workbench import Workbench

DONE = {"status": "done", "reason": None, "session": "s"}


def cell(name, measure="quality"):
    content = {"measure": {"name": measure, "version": "1", "params": {}}, "model": {"name": "toy"}, "window": 8}
    content |= {"attention": {"name": name, "params": {}}, "device": "cpu", "dtype": "float32", "settings": {}}
    return Cell.of(content)


def job(folder, *names, quiet=False):
    cells = [{"cell": cell(name).text, "measure": {}, "attention": None, "parts": {}} for name in names]
    request = {"store": str(folder / "store"), "device": {"_type_": "cpu", "threads": 1}, "cells": cells}
    return SessionJob(request, timeout_s=1, quiet=quiet)


def spread(folder, images, *names, whole=()):
    """A job whose cells with these names have so many images; those of ``whole`` cannot be spread."""
    own = job(folder, *names, *whole)
    return replace(own, images={cell(name).key: images for name in names})


class Gone(BaseException):
    """The machine of a job was taken away."""


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """Sessions that measure at once; at a cell whose name is in ``gone`` their machine is taken away, once."""
    (tmp_path / "store").mkdir()
    about = SimpleNamespace(gone=set(), runs=[], parts=[], lost=[])

    def run(self, log_file, on_event, apart):
        about.runs.append([c.content["attention"]["name"] for c in self.cells])
        for one in self.cells:
            name = one.content["attention"]["name"]
            if self.is_part:
                about.parts.append((name, *self.request["images"]))
                if self.request["images"] in about.lost:
                    raise Gone
                on_event({"event": "alive", "key": one.key, "done": 1, "of": 1})
                on_event({"event": "kept", "key": one.key})
                continue
            if name in about.gone:
                about.gone.remove(name)
                raise Gone
            self.store.save(one, {"of": name}, **DONE)
            on_event({"event": "done", "key": one.key, "status": "done", "reason": None})

    monkeypatch.setattr(SessionJob, "run", run)
    return about


class HereCall:
    """A call that runs when it is first asked for, and again where its machine is taken away and it is requeued."""

    def __init__(self, function, argument, name, starts):
        self.function, self.argument, self.name, self.starts = function, argument, name, starts
        self.ended = self.cancelled = False

    def done(self):
        if not self.ended and self.starts:
            self.starts -= 1
            try:
                self.value, self.ended = self.function(self.argument), True
            except Gone:
                self.ended = not self.starts
                self.value = None if self.starts else Lost("was taken away")
        return self.ended

    def result(self):
        if isinstance(self.value, Lost):
            raise self.value
        return self.value

    def cancel(self):
        self.cancelled = True


class Here(ClusterExecutor):
    poll_s = 0.001

    def __init__(self, starts=1, parallel=16, images_per_job=None):
        super().__init__(2, 0, None, parallel, images_per_job)
        self.starts, self.calls, self.most = starts, [], 0

    def start(self, function, calls, folder):
        before = len(self.calls)
        self.calls += [HereCall(function, of, f"n{before + n}", self.starts) for n, (of, _) in enumerate(calls)]
        self.most = max(self.most, sum(not call.ended for call in self.calls))
        return self.calls[before:]


def outcome(folder, executor, *jobs):
    """Names of cells by their statuses, and the events by their keys."""
    told = []
    executor.run(list(jobs), folder, told.append)
    statuses = {c.content["attention"]["name"]: job.store.status(c.key)[0] for job in jobs for c in job.cells}
    return statuses, [event["key"] for event in told]


def test_all_jobs_are_run_no_more_at_a_time_than_is_said(tmp_path, toy):
    executor = Here(parallel=2)
    statuses, told = outcome(tmp_path, executor, *(job(tmp_path, name) for name in "abcde"))
    assert statuses == dict.fromkeys("abcde", "done")
    assert sorted(told) == sorted(cell(name).key for name in "abcde")
    assert executor.most == 2 and len(executor.calls) == 5


def test_a_job_that_is_started_again_goes_on_where_it_was(tmp_path, toy):
    toy.gone.add("b")
    statuses, told = outcome(tmp_path, Here(starts=2), job(tmp_path, "a", "b", "c"))
    assert statuses == dict.fromkeys("abc", "done")
    assert toy.runs == [["a", "b", "c"], ["b", "c"]]
    assert told == [cell(name).key for name in "abc"]


def test_what_a_lost_job_has_not_settled_is_put_down_to_its_end(tmp_path, toy):
    toy.gone.add("b")
    statuses, told = outcome(tmp_path, Here(), job(tmp_path, "a", "b", "c"), job(tmp_path, "d"))
    assert statuses == {"a": "done", "b": "crashed", "c": "crashed", "d": "done"}
    reason = Store(tmp_path / "store").status(cell("b").key)[1]
    assert reason.startswith("the job n0 was taken away; its log is ") and reason.endswith("1.log")
    assert sorted(told) == sorted(cell(name).key for name in "abcd")


def test_a_job_that_ends_well_with_a_cell_unsettled_is_waited_for_and_told(tmp_path, toy, monkeypatch):
    monkeypatch.setattr(cluster, "LAG_S", 0.01)
    monkeypatch.setattr(JobFile, "tell", lambda self, event: None)  # as if the disk did not show what was written
    assert outcome(tmp_path, Here(), job(tmp_path, "a"))[1] == [cell("a").key]
    assert "without having measured" in Store(tmp_path / "store").failure(cell("a").key)["reason"]


def test_a_session_of_many_images_is_spread_over_jobs_before_its_own(tmp_path, toy):
    executor = Here(images_per_job=4)
    jobs = [spread(tmp_path, 10, "a", "b", whole=["timed"]), spread(tmp_path, 4, "c"), job(tmp_path, "d")]
    statuses, told = outcome(tmp_path, executor, *jobs)
    assert statuses == dict.fromkeys(["a", "b", "timed", "c", "d"], "done")
    assert toy.parts == [(name, *span) for span in ((0, 4), (4, 8), (8, 10)) for name in "ab"]
    assert toy.runs == [["a", "b"]] * 3 + [["c"], ["d"], ["a", "b", "timed"]]
    ends = [cell(name).key for name in ("c", "d", "a", "b", "timed")]
    assert [key for key in told if told.count(key) == 1 or key in ends][-5:] == ends
    assert executor.most == 5  # the parts and the two sessions that are not spread


def test_what_a_lost_part_leaves_is_the_sessions(tmp_path, toy, capfd):
    toy.lost.append([4, 5])
    statuses, told = outcome(tmp_path, Here(images_per_job=4), spread(tmp_path, 5, "a"))
    assert statuses == {"a": "done"} and toy.runs == [["a"]] * 3
    assert not Store(tmp_path / "store").failure(cell("a").key)
    (*_, said) = capfd.readouterr().err.splitlines()
    assert said.startswith("nystra_bench: the job n1 was taken away; its log is ")
    assert said.endswith("2.log; what it left is measured after it")


def test_parts_run_no_more_at_a_time_than_is_said(tmp_path, toy):
    executor = Here(images_per_job=1, parallel=2)
    assert outcome(tmp_path, executor, spread(tmp_path, 5, "a"))[0] == {"a": "done"}
    assert executor.most == 2 and len(toy.parts) == 5


def test_jobs_are_cancelled_where_the_run_is_interrupted(tmp_path, toy):
    executor = Here(starts=0)

    def interrupted(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", interrupted)
        executor.run([job(tmp_path, "a")], tmp_path, print)
    assert [call.cancelled for call in executor.calls] == [True]


def test_a_line_that_is_being_written_is_left_for_the_next_look(tmp_path):
    file = JobFile(tmp_path / "1.json")
    assert list(file.news()) == []
    whole = json.dumps({"event": "done", "key": "k"})
    (tmp_path / "1.events").write_text(f'{{"event": "start"}}\n{whole[:9]}')
    assert [event["event"] for event in file.news()] == ["start"] and not file.settled
    with (tmp_path / "1.events").open("a") as events:
        events.write(f"{whole[9:]}\n")
    assert [event["event"] for event in file.news()] == ["done"] and file.settled == {"k"}


def test_a_line_that_was_torn_when_its_writer_was_killed_costs_no_other(tmp_path):
    file = JobFile(tmp_path / "1.json")
    (tmp_path / "1.events").write_text('{"event": "do')
    file.tell({"event": "failed", "key": "k"})
    assert [event["event"] for event in file.news()] == ["failed"] and file.settled == {"k"}


HOLDING = """
import sys
from nystra_bench.sweep.locks import device_lock
with device_lock("cpu", quiet=sys.argv[1] == "quiet"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize(("holds", "wants"), [("quiet", True), ("shared", True), ("quiet", False)])
def test_a_job_waits_until_its_device_is_not_timed_by_another(tmp_path, toy, monkeypatch, holds, wants):
    monkeypatch.setenv("NYSTRA_BENCH_LOCKS", str(tmp_path / "locks"))
    monkeypatch.setattr(locks, "LOOK_AGAIN_S", 0.01)
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", HOLDING, holds]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=child_environment()) as other:
        assert other.stdout.readline() == b"held\n"
        file = JobFile(tmp_path / "1.json")
        file.write(job(tmp_path, "a", quiet=wants))
        waiting = threading.Thread(target=run_file, args=[str(file.path)])
        waiting.start()
        waiting.join(0.1)
        assert waiting.is_alive() and toy.runs == []
        other.stdin.close()
        waiting.join(20)
    assert toy.runs == [["a"]]


# ------------------------------------------------------------------ planning


def result(name, seconds, finished, measure="quality", session="s"):
    about = {"seconds": seconds, "finished": f"2026-11-26T00:00:{finished:02}+00:00", "session": session}
    return {"cell": cell(name, measure).content, **about}


def test_how_long_cells_take_is_told_by_those_like_them():
    durations = Durations([result("a", 4.0, 10), result("b", 6.0, 20)])
    assert durations.of(cell("c")) == 5.0
    other = Cell.of(cell("c").content | {"model": {"name": "another"}})
    assert durations.of(other) == 5.0
    assert durations.of(cell("c", "latency")) is None
    assert durations.total([cell("c"), cell("d"), cell("c", "latency")]) == (10.0, 1)


def test_cells_that_were_timed_together_share_their_time():
    together = [result(name, 30.0 + n / 10, 40 + n, "latency") for n, name in enumerate("ab")]
    assert Durations(together).of(cell("c", "latency")) == pytest.approx(15.05)
    one_by_one = [result("a", 10.0, 10, "latency"), result("b", 10.0, 20, "latency")]
    assert Durations(one_by_one).of(cell("c", "latency")) == 10.0


def test_a_plan_tells_jobs_resources_and_time(tmp_path):
    jobs = [job(tmp_path, *"abc"), job(tmp_path, "d", quiet=True)]
    lines = Here(parallel=2).plan(jobs, [result("a", 20.0, 30)])
    assert lines == [
        "job 1: 3 cells of toy window=8 cpu float32; 2 CPUs; about 1 min 00 s",
        "job 2: 1 cell of toy window=8 cpu float32; 2 CPUs, alone on its machine; about 20 s",
        "2 jobs, at most 2 at a time: about 1 min 00 s besides waiting for machines",
    ]
    lines = Here(parallel=2, images_per_job=30).plan([spread(tmp_path, 100, "a")], [result("a", 20.0, 30)])
    assert lines == [
        "job 1: 1 cell of toy window=8 cpu float32; 2 CPUs; about 20 s; after 4 jobs with up to 30 images each",
        "5 jobs, at most 2 at a time: about 10 s besides waiting for machines",
    ]
    assert Here().plan(jobs, [])[-1].endswith("no estimate; 4 cells are like none that is measured, and not in it")
    assert Here().plan([], []) == []


def test_a_cell_of_another_machine_is_refused(tmp_path):
    request = job(tmp_path).request | {"store": str(tmp_path / "store"), "dtype": "float32"}
    bench = Workbench(request, lambda event: None)
    for name, said in (("hardware", "another processor"), ("threads", 10_000), ("torch", "0.1")):
        planned = Cell.of(cell("a").content | {"settings": {name: said}})
        assert not bench.belongs(SimpleNamespace(cell=planned))
        assert f"planned for {name}={said}" in bench.store.failure(planned.key)["reason"]
    assert bench.belongs(SimpleNamespace(cell=Cell.of(cell("a").content | {"settings": {"torch": torch.__version__}})))


# ------------------------------------------------------------------ the command line


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["executor=slrum"], ["executor=slrum", "did you mean slurm?"]),
        (["executor=slurm", "executor.partiton=gpu"], ["executor.partiton=gpu", "did you mean executor.partition?"]),
        (["executor.parallel=2"], ["executor.parallel=2", "no chosen executor"]),
        (["executor=slurm", "executor.cpus=0"], ["executor.cpus=0", "from 1 on"]),
        (["executor=slurm", "executor.cpus=[1,2]"], ["executor.cpus=[1,2]", "accepted is one"]),
        (["executor=slurm", "executor.cluster=lsf"], ["executor.cluster=lsf", "slurm, local"]),
        (["executor=slurm", "executor.images_per_job=0"], ["executor.images_per_job=0", "from 1 on, and null"]),
        (["executor.images_per_job=9"], ["executor.images_per_job=9", "no chosen executor"]),
        (["executor=ray", "executor.retries=-1"], ["executor.retries=-1", "from 0 on"]),
        (["executor=ray", "executor.memory_gb=many"], ["memory_gb=many", "numbers"]),
    ],
)
def test_mistakes_are_told_in_a_sentence(bench, words, parts):
    said = bench(*words)
    assert said.code == 1
    assert all(part in said.sentence for part in parts)


@pytest.mark.parametrize(("name", "extra"), [("slurm", "nystra-bench[slurm]"), ("ray", "nystra-bench[ray]")])
def test_a_missing_extra_is_a_sentence_with_the_command(bench, monkeypatch, name, extra):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said = bench(f"executor={name}", "mode=plan")
    assert said.code == 1
    assert f"executor={name} cannot be used" in said.sentence and f"pip install '{extra}'" in said.sentence


OF_A_PLUGIN = """
from nystra_bench.sweep.executors.base import Executor

class Refusing(Executor):
    def __init__(self, said="no"):
        self.said = said

    def run(self, jobs, folder, on_event):
        for job in jobs:
            for cell in job.cells:
                job.store.fail(cell, "failed", self.said)
                on_event({"event": "failed", "key": cell.key, "status": "failed", "reason": self.said})
"""


def test_an_executor_of_ones_own_is_a_file_and_a_class(bench, tmp_path, looked_at_here):
    (tmp_path / "mine" / "executor").mkdir(parents=True)
    (tmp_path / "mine" / "refusing_executor.py").write_text(OF_A_PLUGIN)
    (tmp_path / "mine" / "executor" / "refusing.yaml").write_text("_target_: refusing_executor.Refusing\nsaid: no\n")
    words = [f"plugins=['{tmp_path / 'mine'}']", "executor=refusing", "executor.said=not today", "attention=exact"]
    said = bench(*words, "measure=quality", "figures=[]")
    assert said.code == 2
    assert set(bench.table().reason) == {"not today"}
