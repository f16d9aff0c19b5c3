"""The store: a result is there whole or not at all, and stays."""

import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from nystra_bench.errors import UserError
from nystra_bench.sweep import files, writers
from nystra_bench.sweep.cell import Cell
from nystra_bench.sweep.inspection import child_environment
from nystra_bench.sweep.store import Store, write_atomically
from nystra_bench.sweep.writers import Writer, host

ABOUT = {"status": "done", "reason": None, "seconds": 1.0, "session": "s", "environment": {}}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results" / "store")


@pytest.fixture
def cell():
    return Cell.of({"measure": {"name": "quality"}, "attention": {"name": "exact"}})


def names(store):
    return sorted(path.name for path in store.folder.iterdir())


def test_a_result_comes_back_and_nothing_else_is_left(store, cell):
    store.save(cell, {"psnr": float("inf")}, attach=lambda folder: (folder / "output.npz").write_bytes(b"x"), **ABOUT)
    assert store.result(cell.key)["value"] == {"psnr": "inf"}
    assert store.status(cell.key) == ("done", None)
    assert names(store) == [cell.key]
    assert sorted(path.name for path in (store.folder / cell.key).iterdir()) == ["output.npz", "result.json"]


def test_a_result_that_is_done_is_never_written_over(store, cell):
    store.save(cell, {"n": 1}, **ABOUT)
    before = (store.folder / cell.key / "result.json").read_bytes()
    store.save(cell, {"n": 2}, **ABOUT)
    assert (store.folder / cell.key / "result.json").read_bytes() == before
    assert names(store) == [cell.key]


def test_an_unstable_result_gives_way_to_a_new_measurement(store, cell):
    store.save(cell, {"n": 1}, **ABOUT | {"status": "unstable", "reason": "spread"})
    assert store.status(cell.key) == ("unstable", "spread")
    store.save(cell, {"n": 2}, **ABOUT)
    assert store.result(cell.key)["value"] == {"n": 2}
    assert names(store) == [cell.key]


def test_success_removes_the_failure_before_it(store, cell):
    store.fail(cell, "oom", "too large", "Traceback")
    assert store.status(cell.key) == ("oom", "too large")
    assert store.failure(cell.key)["traceback"] == "Traceback"
    store.save(cell, {}, **ABOUT)
    assert store.status(cell.key) == ("done", None)
    assert store.failure(cell.key) is None


def test_a_failed_attempt_leaves_a_result_alone(store, cell):
    store.save(cell, {"n": 1}, **ABOUT | {"status": "unstable", "reason": "spread"})
    store.fail(cell, "crashed", "worse")
    assert store.status(cell.key) == ("unstable", "spread")


def test_a_save_that_breaks_off_leaves_no_result(store, cell):
    def attach(folder):
        (folder / "output.npz").write_bytes(b"x")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        store.save(cell, {}, attach=attach, **ABOUT)
    assert store.status(cell.key) == ("missing", None)
    assert names(store) == []


def test_a_damaged_result_counts_as_missing_and_is_replaced(store, cell):
    store.save(cell, {"n": 1}, **ABOUT)
    (store.folder / cell.key / "result.json").write_text('{"status": "do')
    assert store.status(cell.key) == ("missing", None)
    store.save(cell, {"n": 2}, **ABOUT)
    assert store.result(cell.key)["value"] == {"n": 2}


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "new" / "file.json"
    write_atomically(file, "old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("killed")))
    with pytest.raises(OSError, match="killed"):
        write_atomically(file, "new")
    assert file.read_text() == "old"
    assert list(file.parent.iterdir()) == [file]


def test_files_are_readable_as_the_users_umask_says(tmp_path, store, cell):
    before = os.umask(0o022)
    try:
        write_atomically(tmp_path / "table.csv", "a")
        store.save(cell, {}, **ABOUT)
    finally:
        os.umask(before)
    assert (tmp_path / "table.csv").stat().st_mode & 0o777 == 0o644
    assert (store.folder / cell.key).stat().st_mode & 0o777 == 0o755
    assert (store.folder / cell.key / "result.json").stat().st_mode & 0o777 == 0o644


KILLED = """
import os, sys
from pathlib import Path
from nystra_bench.sweep.cell import Cell
from nystra_bench.sweep.inspection import child_environment
from nystra_bench.sweep.store import Store
store = Store(Path(sys.argv[1]))
store.fail(Cell.of({"n": 2}), "failed", "reason")
os.replace = lambda *_: os.kill(os.getpid(), 9)
try:
    store.save(Cell.of({"n": 1}), {}, attach=lambda folder: (folder / "output.npz").write_bytes(b"x"), status="done")
finally:
    store.fail(Cell.of({"n": 2}), "failed", "again")
"""


def unused_process():
    """The id of a process that has ended."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    return ended.pid


def named(by, number=0):
    return f".new-{by}-{number:032x}"


def of_process(pid):
    """The writer that a process of this machine is."""
    return Writer(host(), writers._state(pid)[1], pid)


def test_what_a_living_process_writes_is_left_alone(store):
    child = subprocess.Popen(["sleep", "60"])
    try:
        by = of_process(child.pid)
        own = [store.folder / named(by), store.folder / "key" / named(by, 1)]
        for path in own:
            path.mkdir(parents=True)
        foreign = store.folder.parent / "pictures" / ".new-york.png"
        foreign.parent.mkdir()
        foreign.touch()
        with store.lock():
            assert all(path.is_dir() for path in own)
        child.kill()  # a zombie for now: it has ended, though its id is still taken
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        with store.lock():
            assert not any(path.exists() for path in own)
        assert foreign.exists()
    finally:
        child.kill()
        child.wait()


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="the system does not tell when a process was started")
def test_a_process_that_has_taken_over_the_id_of_a_writer_is_not_taken_for_it(store):
    with subprocess.Popen(["sleep", "60"]) as child:
        by = of_process(child.pid)
        left, at_work = (store.folder / named(w) for w in (replace(by, started=by.started - 1), by))
        for path in (left, at_work):
            path.mkdir(parents=True)
        with store.lock():
            assert (left.exists(), at_work.exists()) == (False, True)
        child.kill()


@pytest.mark.parametrize("process", ["living", "ended"])
def test_what_another_machine_writes_is_judged_by_its_age_alone(store, process):
    """Its process ids mean nothing here."""
    pid = os.getppid() if process == "living" else unused_process()
    folder, file = (store.folder / named(Writer("0123456789ab", 7, pid), n) for n in (0, 1))
    folder.mkdir(parents=True)
    (folder / "session.json").touch()
    before_hosts = store.folder / f".new-{pid}-{'0' * 32}"  # as earlier versions named it
    paths = [folder, folder / "session.json", file, before_hosts]
    for path in paths[2:]:
        path.touch()
    with store.lock():
        assert all(path.exists() for path in paths)
    long_ago = time.time() - files.ABANDONED_S - 60
    for path in paths:
        os.utime(path, (long_ago, long_ago))
    os.utime(folder / "session.json")  # something is written into the folder
    with store.lock():
        assert [path.exists() for path in paths] == [True, True, False, False]
    os.utime(folder / "session.json", (long_ago, long_ago))
    with store.lock():
        assert not folder.exists()


def test_a_folder_for_the_moment_is_gone_after_it(store):
    with store.scratch() as folder:
        assert folder.is_dir()
        assert folder.parent == store.folder
        (folder / "file").touch()
    assert names(store) == []


def test_what_a_killed_run_left_is_removed_by_the_next(store):
    command = [sys.executable, "-c", KILLED, str(store.folder)]
    killed = subprocess.run(command, env=child_environment(), timeout=60, check=False)
    assert killed.returncode == -9
    (store.folder / "images" / "digest").mkdir(parents=True)
    by = Writer(host(), 7, unused_process())
    (store.folder / "images" / "digest" / named(by)).touch()
    (store.folder / Cell.of({"n": 2}).key / named(by)).touch()
    plan = store.folder.parent / "sweep" / named(by)
    plan.parent.mkdir()
    plan.touch()
    assert len(list(store.folder.rglob(".new-*"))) >= 3
    with store.lock():
        assert list(store.folder.parent.rglob(".new-*")) == []
    assert store.status(Cell.of({"n": 1}).key) == ("missing", None)
    assert store.status(Cell.of({"n": 2}).key) == ("failed", "reason")


def test_a_second_run_is_refused_in_one_sentence_until_the_first_ends(store):
    with store.lock(), pytest.raises(UserError) as caught, Store(store.folder).lock():
        pass
    assert f"results={store.folder.parent}" in str(caught.value)
    assert str(os.getpid()) in str(caught.value)
    assert "\n" not in str(caught.value)
    with Store(store.folder).lock():
        pass


WRITING = """
import random, sys
from pathlib import Path
from nystra_bench.sweep.cell import Cell
from nystra_bench.sweep.store import Store
store, own = Store(Path(sys.argv[1])), random.Random(int(sys.argv[2]))
for turn in range(60):
    cell = Cell.of({"n": own.randrange(3)})
    act = own.randrange(4)
    if act == 0:
        store.fail(cell, "failed", "reason")
    elif act == 1:
        store.journal(cell).append({"id": turn})
    else:
        text = str(own.random()) * 2000
        attach = lambda folder: (folder / "output.npz").write_text(text)
        store.save(cell, {"text": text}, attach=attach, status="unstable", reason="spread")
"""


class Strict(Store):
    def _warn(self, path, damage):
        raise AssertionError(f"{path}: {damage}")


def test_many_processes_write_the_same_cells_and_whoever_reads_sees_whole_ones(store):
    """As machines do that share a folder; the lock of the run that planned them is not theirs."""
    store.folder.mkdir(parents=True)
    commands = [[sys.executable, "-c", WRITING, str(store.folder), str(seed)] for seed in range(3)]
    running = [subprocess.Popen(command, env=child_environment(), stderr=subprocess.PIPE) for command in commands]
    seen = set()
    while any(process.poll() is None for process in running):
        for n in range(3):
            status = Strict(store.folder).status(Cell.of({"n": n}).key)[0]
            seen.add(status)
            assert status in ("missing", "failed", "unstable")
    for process in running:
        said = process.communicate()[1].decode()
        assert process.returncode == 0, said
    assert "unstable" in seen
    with store.lock():
        assert not list(store.folder.rglob(".new-*"))
    for n in range(3):
        assert len(store.result(Cell.of({"n": n}).key)["value"]["text"]) > 30_000
