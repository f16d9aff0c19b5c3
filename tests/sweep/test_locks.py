"""The lock of a device: one run at a time is timed on it, whatever results folders they have."""

import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

import pytest

from nystra_bench.errors import UserError
from nystra_bench.sweep import locks
from nystra_bench.sweep.inspection import child_environment
from nystra_bench.sweep.locks import device_lock, results_lock

HOLDING = """
import sys, time
from nystra_bench.sweep.locks import device_lock
with device_lock(sys.argv[1], quiet=sys.argv[2] == "quiet"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("NYSTRA_BENCH_LOCKS", str(tmp_path / "locks"))
    return tmp_path / "locks"


@contextmanager
def another(how):
    """Another process that holds the CPU, ``quiet`` or ``shared``."""
    command = [sys.executable, "-c", HOLDING, "cpu", how]
    process = subprocess.Popen(command, env=child_environment(), stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture
def holder(folder):
    with another("quiet") as process:
        yield process


def refusal(manager):
    with pytest.raises(UserError) as caught, manager:
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_second_process_is_told_the_device_and_who_has_it_until_that_one_is_killed(holder):
    assert refusal(device_lock("cpu", True)) == (
        "device=cpu is in use by another run, and timings need it to themselves "
        f"(process {holder.pid}): accepted is to wait for its end"
    )
    with device_lock("cuda", True):
        pass
    assert str(holder.pid) in refusal(device_lock("cpu", True))  # asking changes nothing
    holder.kill()
    holder.wait()
    with device_lock("cpu", True):
        assert f"process {os.getpid()}" in refusal(device_lock("cpu", True))


def test_the_lock_is_free_after_an_error(folder):
    with pytest.raises(ArithmeticError), device_lock("cpu", True):
        raise ArithmeticError
    with device_lock("cpu", True):
        pass


def test_a_holder_that_does_not_tell_its_id(folder):
    with device_lock("cpu", True):
        (folder / "nystra_bench-cpu-0.lock.holder").unlink()
        assert "a process that does not tell its id" in refusal(device_lock("cpu", True))


def test_a_holder_on_another_machine_is_named_with_it(folder):
    with device_lock("cpu", True):
        (folder / "nystra_bench-cpu-0.lock.holder").write_text("123 node7")
        assert "(process 123 on node7)" in refusal(device_lock("cpu", True))


def test_all_users_may_lock(folder):
    before = os.umask(0o077)
    try:
        with device_lock("cpu", True):
            pass
    finally:
        os.umask(before)
    assert (folder / "nystra_bench-cpu-0.lock").stat().st_mode & 0o777 == 0o666


def test_the_usual_place_is_one_for_all_users_and_jobs(monkeypatch, tmp_path):
    monkeypatch.delenv("NYSTRA_BENCH_LOCKS", raising=False)
    before = locks._locks_folder()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # as TMPDIR does
    assert locks._locks_folder() == before
    assert before.stat().st_mode & 0o777 == 0o777


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda file: device_lock("cpu", True), "NYSTRA_BENCH_LOCKS="),
        (lambda file: results_lock(file / "store"), "results="),
    ],
)
def test_a_place_that_cannot_be_used(tmp_path, monkeypatch, make, name):
    file = tmp_path / "file"
    file.write_text("kept")
    monkeypatch.setenv("NYSTRA_BENCH_LOCKS", str(file))
    sentence = refusal(make(file))
    assert f"{name}{file} cannot be used" in sentence
    assert "accepted is a folder" in sentence
    assert file.read_text() == "kept"


def test_a_device_that_is_being_timed_is_left_alone(bench, looked_at_here, holder):
    outcome = bench("measure=latency")
    assert outcome.code == 1
    assert "device=cpu" in outcome.sentence
    assert str(holder.pid) in outcome.sentence
    assert not bench.stored() and not bench.stored("failure")


def test_a_run_that_does_not_time_waits_for_the_end_of_one_that_does_and_says_so(bench, here, holder, monkeypatch):
    looks = []

    def sleep(seconds):
        looks.append(seconds)
        if len(looks) == 3:
            assert not bench.stored()
            holder.kill()
            holder.wait()

    # Not the module's own: a thread that an earlier test left behind may sleep, too.
    monkeypatch.setattr(locks, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    monkeypatch.setattr(locks, "TELL_S", 0.0)
    words = ["measure=quality", "metrics=[psnr]", "attention=exact", "position_bias=native", "figures=[]"]
    outcome = bench(*words)
    assert outcome.code == 0 and len(bench.stored()) == 1
    said = "nystra_bench: device=cpu is in use by another run, and it is being timed "
    said += f"(process {holder.pid}): waiting for its end"
    assert outcome.err.splitlines()[:3] == [said, f"{said} for 0 s now", f"{said} for 0 s now"]


def test_runs_that_do_not_time_share_the_device_and_hold_off_one_that_does(bench, looked_at_here, folder):
    with another("shared") as other:
        assert str(other.pid) in refusal(device_lock("cpu", True))
        assert bench("measure=quality", "attention=exact", "position_bias=native", "figures=[]").code == 0
        assert len(bench.stored()) == 1
        assert "need it to themselves" in bench("measure=latency", "attention=exact", "name=other").sentence
    with device_lock("cpu", True):
        pass


def test_places_are_taken_one_by_one(folder):
    with ExitStack() as stack:
        for _ in range(locks.PLACES):
            stack.enter_context(device_lock("cpu", False))
        refusal(device_lock("cpu", False))
    with device_lock("cpu", False):
        pass
