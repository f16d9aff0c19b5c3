"""What people are told while a sweep runs."""

import io

import pytest

from nystra_bench.sweep import progress
from nystra_bench.sweep.progress import Progress, duration


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that the test sets."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


NAMES = {key: f"cell {key}" for key in "abcd"}


def test_lengths_of_time():
    assert [duration(s) for s in (0.4, 59.4, 60, 200, 3600, 7500)] == [
        "0 s",
        "59 s",
        "1 min 00 s",
        "3 min 20 s",
        "1 h 00 min",
        "2 h 05 min",
    ]


def test_plain_lines_with_reasons_and_the_remaining_time(clock):
    stream = io.StringIO()
    tell = Progress(NAMES, stream)
    tell({"event": "start", "keys": ["a", "b"], "silent_s": 0})
    tell({"event": "start", "keys": ["a", "b"], "silent_s": 30.0})
    clock[0] = 40
    tell({"event": "done", "key": "a", "status": "done"})
    tell({"event": "done", "key": "b", "status": "unstable", "reason": "spread"})
    tell({"event": "start", "keys": ["c"]})
    clock[0] = 60
    tell({"event": "failed", "key": "c", "status": "oom", "reason": "too large"})
    clock[0] = 70
    tell({"event": "done", "key": "d", "status": "done", "reason": None})
    tell.close()
    assert stream.getvalue().splitlines() == [
        "[0/4] timing 2 cells together, silently, for about 30 s",
        "[1/4] cell a done, about 40 s left",
        "[2/4] cell b unstable (spread), about 40 s left",
        "[3/4] cell c oom (too large), about 20 s left",
        "[4/4] cell d done",
        "4 cells in 1 min 10 s",
    ]


@pytest.mark.parametrize("seconds, said", [(15, ", 75% of it in passes of models"), (0, ""), (30, "")])
def test_how_much_of_the_time_models_took(clock, seconds, said):
    """Nothing where none is known, or where several workers at a time were in passes for longer than all took."""
    stream = io.StringIO()
    tell = Progress({"a": "cell a", "b": "cell b"}, stream)
    clock[0] = 40
    tell({"event": "done", "key": "a", "status": "done", "passes_s": seconds})
    tell({"event": "failed", "key": "b", "status": "failed", "reason": "no luck", "passes_s": seconds})
    tell.close()
    assert stream.getvalue().splitlines()[-1] == f"2 cells in 40 s{said}"


def test_one_redrawn_line_on_a_terminal(clock):
    stream = Terminal()
    tell = Progress(NAMES, stream)
    tell({"event": "start", "keys": ["a"]})
    tell({"event": "done", "key": "a", "status": "done"})
    tell({"event": "failed", "key": "b", "status": "failed", "reason": "no luck"})
    tell.close()
    written = stream.getvalue()
    assert written.count("\n") == 2  # the failure, which stays, and the end
    assert "0/4 cells  cell a" in written
    assert "[2/4] cell b failed (no luck)\n" in written


def test_how_far_a_long_cell_is_is_drawn_and_counts_no_cell(clock):
    for stream, drawn in ((Terminal(), "0/4 cells  3/68 cell a"), (io.StringIO(), "")):
        tell = Progress(NAMES, stream)
        tell({"event": "alive", "key": "a", "done": 3, "of": 68})
        assert tell.done == 0
        assert stream.getvalue().replace("\r\x1b[K", "") == drawn


def test_the_time_that_is_left_of_a_long_cell_is_told_by_the_images_that_this_process_measured(clock):
    stream = Terminal()
    tell = Progress(NAMES, stream)
    tell({"event": "start", "keys": ["a"]})
    clock[0] = 30
    tell({"event": "alive", "key": "a", "done": 503, "of": 1000, "kept": 500})
    assert stream.getvalue().endswith("0/4 cells  503/1000 (about 1 h 22 min left) cell a")
    tell({"event": "alive", "key": "a", "done": 1000, "of": 1000, "kept": 500})
    assert stream.getvalue().endswith("0/4 cells  1000/1000 cell a")


def test_parts_of_a_cell_that_are_measured_at_a_time_are_told_apart(clock):
    stream = Terminal()
    tell = Progress(NAMES, stream)
    for now, images in ((0, [0, 20]), (10, [20, 30])):
        clock[0] = now
        tell({"event": "start", "keys": ["a"], "images": images})
    clock[0] = 20
    tell({"event": "alive", "key": "a", "done": 10, "of": 20, "images": [0, 20]})
    assert stream.getvalue().endswith("10/20 (about 20 s left) images 1 to 20 of cell a")
    tell({"event": "alive", "key": "a", "done": 1, "of": 10, "images": [20, 30]})
    assert stream.getvalue().endswith("1/10 (about 1 min 30 s left) images 21 to 30 of cell a")


def test_where_lines_stay_a_long_cell_has_one_a_minute(clock):
    stream = io.StringIO()
    tell = Progress(NAMES, stream)
    tell({"event": "start", "keys": ["a"]})
    for done in range(1, 16):
        clock[0] = 10.0 * done
        tell({"event": "alive", "key": "a", "done": done, "of": 20})
    assert stream.getvalue().splitlines() == [
        "[0/4] 6/20 (about 2 min 20 s left) cell a",
        "[0/4] 12/20 (about 1 min 20 s left) cell a",
    ]


def test_what_is_left_is_told_by_the_pace_of_each_kind(clock):
    stream = io.StringIO()
    kinds = {"a": "latency", "b": "latency", "c": "quality", "d": "quality"}
    tell = Progress(NAMES, stream, kinds)
    for now, key in ((100, "a"), (200, "b"), (203, "c"), (206, "d")):
        tell({"event": "start", "keys": [key]})
        clock[0] = now
        tell({"event": "done", "key": key, "status": "done"})
    assert [line.partition("done")[2] for line in stream.getvalue().splitlines()] == [
        ", about 1 min 40 s and 2 cells of other kinds left",
        ", 2 cells of other kinds left",
        ", about 3 s left",
        "",
    ]
