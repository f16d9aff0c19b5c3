"""A run that is killed leaves nothing behind that the same command does not carry on from."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from nystra_bench.sweep.inspection import child_environment

WORDS = ["attention=[exact,nystra,slow]", "measure=[quality]", "figures=[]", "tables=[]"]


def quality(bench):
    return {r["key"]: r["value"]["images"] for r in bench.stored()}


def children(process):
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def gone(pid, within_s=20):
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            if "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]:
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


def kill_after_the_first_cell(bench):
    command = [sys.executable, "-m", "nystra_bench", *bench.words(*WORDS)]
    process = subprocess.Popen(command, env=child_environment(), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        line = next(line for line in process.stderr if b" done" in line)
        (worker,) = children(process)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(60)
        process.stderr.close()
    return line.decode(), worker


def test_a_killed_run_goes_on_to_the_numbers_of_an_undisturbed_one(bench, tmp_path, looked_at_here):
    line, worker = kill_after_the_first_cell(bench)
    assert line.startswith("[1/7] quality")
    assert gone(worker), "the worker outlived the run that started it"
    assert list(bench.results.glob("store/.new-*/session.json")), "what the run keeps for the worker is elsewhere"
    early = quality(bench)
    assert 1 <= len(early) < 7

    again = bench(*WORDS)
    assert again.code == 0
    assert f"{7 - len(early)} to measure" in again.out
    resumed = quality(bench)
    assert early.items() <= resumed.items()
    assert len(resumed) == 7
    assert not list(bench.results.glob("store/.new-*"))

    undisturbed = type(bench)(tmp_path / "undisturbed", bench.plugins, bench.capfd)
    assert undisturbed(*WORDS).code == 0
    assert quality(undisturbed) == resumed
