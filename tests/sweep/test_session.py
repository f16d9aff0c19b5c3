"""How a worker's end is put down to cells, with workers that only tell events."""

import io
import os
import signal
import stat
import sys
from contextlib import suppress
from types import SimpleNamespace

import pytest

from nystra_bench.sweep.cell import Cell
from nystra_bench.sweep.progress import Progress
from nystra_bench.sweep.session import Session, SessionRun
from nystra_bench.sweep.store import Store

WORKER = """#!{python}
import json, os, sys, time
request = json.load(open(sys.argv[-1]))
keys = [cell["cell"] for cell in request["cells"]]
with open({turns!r}, "a") as turns:
    turns.write("worker\\n")
turn = len(open({turns!r}).readlines())
names = {names!r}

def tell(event, name, **more):
    key = names[name]
    about = {{"keys": [key]}} if event == "start" else {{"key": key, "status": event}}
    os.write(1, (json.dumps({{"event": event, **about, **more}}) + "\\n").encode())

def measure():
    for name, key in names.items():
        if any(json.loads(cell)["attention"]["name"] == name for cell in keys):
            tell("start", name)
            tell("done", name)

{behaviour}
"""


def cell(name):
    content = {
        "measure": {"name": "quality", "version": "1", "params": {}},
        "model": {"name": "toy"},
        "window": 8,
        "position_bias": "native",
        "task": {"name": "denoise", "params": {}},
        "attention": {"name": name, "params": {}},
        "device": "cpu",
        "dtype": "float32",
    }
    return Cell.of(content)


CELLS = {name: cell(name) for name in "abc"}
NAMES = {c.key: name for name, c in CELLS.items()}


def session():
    config = SimpleNamespace(name="toy", config={})
    options = dict.fromkeys(("model", "task", "device", "attention", "measure"), config)
    combination = SimpleNamespace(**options, position_bias="native", dtype="float32", execution=())
    return Session([SimpleNamespace(cell=c, combination=combination, window=8, parts={}) for c in CELLS.values()])


@pytest.fixture
def outcome(tmp_path, monkeypatch):
    """Runs a session with workers of a behaviour; gives cell -> status, the failures' reasons, and how many started."""

    def run(behaviour, timeout_s=30.0):
        script, turns = tmp_path / "worker.py", tmp_path / "turns"
        keys = {name: c.key for name, c in CELLS.items()}
        script.write_text(WORKER.format(python=sys.executable, turns=str(turns), names=keys, behaviour=behaviour))
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(sys, "executable", str(script))
        told = []
        store = Store(tmp_path / "results" / "store")
        store.folder.mkdir(parents=True)
        SessionRun(store, timeout_s, tmp_path / "log", told.append).run(session().request({}))
        ended = {NAMES[e["key"]]: e["status"] for e in told if e["event"] in ("done", "failed")}
        reasons = {name: store.status(c.key)[1] for name, c in CELLS.items() if store.failure(c.key)}
        assert not list(store.folder.glob(".new-*"))
        return ended, reasons, len(turns.read_text().split())

    return run


DONE = dict.fromkeys("abc", "done")


def test_cells_that_are_done_are_nobodys_failure(outcome):
    assert outcome("measure()") == (DONE, {}, 1)


def test_an_end_without_an_error_is_put_down_to_the_cell_it_came_at(outcome):
    ended, reasons, workers = outcome(
        """
if turn == 1:
    tell("start", "a"); tell("done", "a"); tell("start", "b")
    sys.exit(0)
measure()
"""
    )
    assert ended == DONE | {"b": "crashed"}
    assert reasons == {"b": "the worker ended without measuring the cell"}
    assert workers == 2


def test_an_end_between_two_cells_is_put_down_to_none(outcome):
    behaviour = """
tell("start", "abc"[turn - 1]); tell("done", "abc"[turn - 1])
os.kill(os.getpid(), 9)
"""
    assert outcome(behaviour) == (DONE, {}, 3)


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "sys.exit(0)", "sys.exit(1)"])
def test_a_worker_that_dies_before_its_first_event_has_another_try(outcome, end):
    assert outcome(f"if turn == 1: {end}\nmeasure()") == (DONE, {}, 2)


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ("os.kill(os.getpid(), 9)", "the worker was ended by SIGKILL, as the system does when memory runs out"),
        ("sys.exit(0)", "the worker ended without measuring the cell"),
        ("sys.exit(7)", "the worker ended with exit code 7; its traceback is in {log}"),
    ],
)
def test_one_that_dies_before_its_first_event_twice_has_no_third(outcome, tmp_path, end, reason):
    ended, reasons, workers = outcome(end)
    assert ended == dict.fromkeys("abc", "crashed")
    assert reasons == dict.fromkeys("abc", reason.format(log=tmp_path / "log"))
    assert workers == 2


def test_a_try_is_given_after_each_cell_that_was_measured(outcome):
    """Every second worker dies at once: what counts is that the others get on."""
    ended, reasons, workers = outcome(
        """
if turn % 2: os.kill(os.getpid(), 9)
name = "abc"[turn // 2 - 1]
tell("start", name); tell("done", name)
os.kill(os.getpid(), 9)
"""
    )
    assert (ended, reasons, workers) == (DONE, {}, 6)


def test_silence_before_the_first_event_is_waited_for_once(outcome):
    ended, reasons, workers = outcome("time.sleep(60)", timeout_s=0.5)
    assert ended == dict.fromkeys("abc", "timeout")
    assert "timeout_s" in reasons["a"]
    assert workers == 1


@pytest.mark.parametrize("watched", [True, False])
def test_a_grandchild_that_holds_the_pipe_is_not_waited_for(outcome, tmp_path, monkeypatch, watched):
    """Waited for, the cell would be a timeout."""
    if not watched:
        monkeypatch.delattr(os, "pidfd_open", raising=False)
    try:
        ended, reasons, _ = outcome(
            f"""
if turn > 1:
    measure()
    sys.exit(0)
tell("start", "a"); tell("done", "a"); tell("start", "b")
if os.fork() == 0:
    open({str(tmp_path / "grandchild")!r}, "w").write(str(os.getpid()))
    time.sleep(120)
while not os.path.exists({str(tmp_path / "grandchild")!r}): time.sleep(0.01)
os._exit(5)
""",
            timeout_s=20.0,
        )
    finally:
        with suppress(FileNotFoundError, ProcessLookupError, ValueError):
            os.kill(int((tmp_path / "grandchild").read_text()), signal.SIGKILL)
    assert ended == DONE | {"b": "crashed"}
    assert "exit code 5" in reasons["b"]


def test_what_was_written_just_before_the_end_is_heard(outcome):
    behaviour = """
measure()
for _ in range(1000):
    tell("alive", "a", done=1, of=2)
os.kill(os.getpid(), 9)
"""
    assert outcome(behaviour) == (DONE, {}, 1)


def test_a_worker_that_closes_its_output_and_goes_on_is_timed_out(outcome):
    ended, reasons, _ = outcome('tell("start", "a")\nos.close(1)\ntime.sleep(60)', timeout_s=0.5)
    assert set(ended.values()) == {"timeout"}


def test_lines_that_are_no_events_are_left_out(outcome):
    behaviour = r"""
os.write(1, b"noise\n[1]\n\xff\n{}\n")
measure()
os.write(1, b'{"event": "torn')
"""
    assert outcome(behaviour) == (DONE, {}, 1)


def test_reasons_with_bytes_that_are_no_text_are_drawn(tmp_path):
    for encoding in ("utf-8", "ascii"):
        raw = io.BytesIO()
        tell = Progress({"a": "cell a"}, io.TextIOWrapper(raw, encoding=encoding, errors="strict"))
        tell({"event": "failed", "key": "a", "status": "failed", "reason": "no file caf\udce4"})
        tell.close()
        assert "[1/1] cell a failed (no file caf\\udce4)" in raw.getvalue().decode()
