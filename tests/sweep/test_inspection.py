"""The inspection's own process: it ends with its parent, and waits for no file for ever."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nystra_bench.errors import UserError
from nystra_bench.sweep import inspection
from nystra_bench.sweep.inspection import child_environment, look

NOTHING = {"tasks": {}, "models": {}, "attentions": {}, "references": {}, "metrics": {}, "devices": {}}
NOTHING |= {"sys_path": [], "uses": [], "tiling": None}

WAITING = """\
from pathlib import Path

from nystra_bench.tasks.denoise import GaussianDenoise


class Waiting(GaussianDenoise):
    def available(self):
        Path(self.images).with_name("started").touch()
        open(Path(self.images) / "pipe")  # nobody writes to it
"""


@pytest.fixture
def waiting(tmp_path):
    """A request with a task that opens a pipe that nobody writes to."""
    (tmp_path / "waiting_task.py").write_text(WAITING)
    folder = tmp_path / "images"
    folder.mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "a.png").touch()
    config = {"_target_": "waiting_task.Waiting", "sigma": 25, "images": str(folder)}
    return NOTHING | {"sys_path": [str(tmp_path)], "tasks": {"waiting": config}}


def test_it_answers():
    assert look(NOTHING)["tasks"] == {}


def test_a_file_that_does_not_answer_is_given_up_and_its_option_named(waiting, monkeypatch):
    started = time.monotonic()
    with pytest.raises(UserError, match=r"task.images=.*images does not answer for 8 s: accepted are files"):
        look(waiting, patience_s=8)
    assert time.monotonic() - started < 100


def test_its_own_mistakes_are_told_with_their_traceback(tmp_path):
    with pytest.raises(RuntimeError, match="(?s)exit code 1.*KeyError"):
        look({"sys_path": []})


def is_alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs Linux's /proc")
def test_it_ends_when_its_parent_is_killed(waiting, tmp_path):
    code = f"from nystra_bench.sweep.inspection import look\nlook({waiting!r})"
    parent = subprocess.Popen([sys.executable, "-c", code], env=child_environment())
    try:
        wait_for(lambda: (tmp_path / "started").exists())
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    assert len(children) == 1
    wait_for(lambda: not is_alive(int(children[0])))


def wait_for(happened, seconds=100):
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.05)


def test_work_is_a_sign_of_life_and_waiting_is_none(monkeypatch):
    monkeypatch.setattr(inspection, "LIFE_S", 0.2)
    told = []
    inspection._show_life(told.append)
    time.sleep(1)
    waited = len(told)
    until = time.process_time() + 1
    while time.process_time() < until:
        pass
    assert waited <= 1 and len(told) > waited
