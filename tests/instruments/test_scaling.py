"""Attentions alone against the number of tokens: what is called at which size, and where curves end.

The clock reads made-up times and the memory made-up peaks, so that nothing depends on the machine.
"""

import pytest
import torch

from nystra_bench.attention.base import Attention
from nystra_bench.attention.exact import ExactAttention
from nystra_bench.attention.nystra import NystraAttention
from nystra_bench.attention.nystra_plus import NystraPlusAttention
from nystra_bench.errors import UserError
from nystra_bench.instruments import memory, scaling, timer
from nystra_bench.instruments.scaling import time_attention
from nystra_bench.instruments.timer import Timing

QUICK = Timing(rounds=4, min_rounds=1, budget_s=100.0, warmup_s=0.0, min_sample_ms=0.0)


class Spy(Attention):
    """Passes v through, and writes down what it was called with; its made-up time and memory grow as its operations."""

    log: list = []

    def __init__(self, power=1, ms=1e-3, mb=1e-6, fails_at=None, most=None, declares=True):
        super().__init__()
        self.power, self.ms, self.mb, self.declares = power, ms, mb, declares
        self.fails_at, self.most = fails_at, most
        self.seen: list[int] = []

    def forward(self, q, k, v, window):
        self.seen.append(window.tokens)
        Spy.log.append((self, q, k, v, window))
        if self.fails_at and window.tokens >= self.fails_at:
            raise ArithmeticError("no luck\nwith details")
        return v

    def refuses(self, height, width):
        return None if not self.most or height * width >= self.most else f"needs {self.most} tokens"

    def flops(self, windows, heads, tokens, dim, dim_v):
        if not self.declares:
            raise NotImplementedError
        return windows * tokens**self.power

    @property
    def work(self):
        return len(Spy.log[-1][1]) * self.seen[-1] ** self.power


@pytest.fixture(autouse=True)
def made_up(monkeypatch):
    monkeypatch.setattr(Spy, "log", [])
    monkeypatch.setattr(timer.gc, "collect", lambda: 0)  # pytest's own garbage takes long

    class Clock:
        def __init__(self, device):
            pass

        def __call__(self, call, repeats=1):
            for _ in range(repeats):
                call()
            spy = Spy.log[-1][0]
            return spy.ms * spy.work

    def peak(call, device):
        call()
        call()
        spy = Spy.log[-1][0]
        return spy.mb * spy.work, "made up"

    monkeypatch.setattr(scaling, "Clock", Clock)
    monkeypatch.setattr(memory, "peak_memory", peak)
    monkeypatch.setattr(memory, "free_memory", lambda device: 16e9)


def run(sizes=(64, 256, 1024), mode="window", budget_s=1e9, **attentions):
    records = time_attention(attentions, sizes, 2, 4, mode, timing=QUICK, budget_s=budget_s)
    return {name: [r for r in records if r["attention"] == name] for name in attentions}


def tokens(records):
    return [r["tokens"] for r in records if r["samples_ms"]]


def test_each_size_has_its_samples_median_peak_and_noise():
    found = run(a=Spy(), b=Spy(power=2))
    for name, power in (("a", 1), ("b", 2)):
        assert tokens(found[name]) == [64, 256, 1024]
        for record in found[name]:
            work = record["tokens"] ** power
            assert record["samples_ms"] == pytest.approx([1e-3 * work] * 4)
            assert record["median_ms"] == record["first_ms"] == pytest.approx(1e-3 * work)
            assert record["peak_mb"] == pytest.approx(1e-6 * work)
            assert record["side"] ** 2 == record["tokens"] and record["windows"] == 1
            assert record["noise"] == [1.0, 1.0] and record["unstable"] is None
            assert record["finite"] and record["kind"] is record["reason"] is None


def test_all_get_the_same_inputs_and_neither_bias_nor_mask():
    first, second = Spy(), Spy()
    run(sizes=[64], a=first, b=second)
    of = {spy: next(entry for entry in reversed(Spy.log) if entry[0] is spy) for spy in (first, second)}
    for mine, other in zip(of[first][1:4], of[second][1:4], strict=True):
        assert torch.equal(mine, other) and mine.std() > 0
    window = of[first][4]
    assert not window.has_bias and not window.has_regions and (window.height, window.width) == (8, 8)


def test_a_call_that_would_take_too_long_is_not_made():
    """Predicted from the size before, in proportion to the operations: a linear method goes on."""
    square, line = Spy(power=2), Spy(power=1)
    found = run(sizes=(64, 256, 1024, 4096), budget_s=1.1, square=square, line=line)
    assert tokens(found["square"]) == [64, 256, 1024] and max(square.seen) == 1024
    assert tokens(found["line"]) == [64, 256, 1024, 4096]
    last = found["square"][-1]
    assert (last["tokens"], last["kind"], last["median_ms"]) == (4096, "time", None)
    assert last["reason"] == "a call would take about 17 s, more than 1.1 s"


def test_a_curve_that_has_ended_says_nothing_more():
    found = run(sizes=(64, 256, 1024, 4096), budget_s=0.01, square=Spy(power=2))
    assert [r["tokens"] for r in found["square"]] == [64, 256]


def test_one_large_size_alone_is_predicted_from_a_small_window():
    square = Spy(power=2)
    found = run(sizes=65_536, budget_s=2.0, square=square)
    assert found["square"][0]["kind"] == "time" and max(square.seen) <= 1024


def test_what_declares_no_operations_is_taken_to_be_quadratic():
    silent = Spy(power=1, declares=False)
    found = run(sizes=(1024, 4096), budget_s=0.01, silent=silent)
    assert tokens(found["silent"]) == [1024]
    assert found["silent"][-1]["reason"].startswith("a call would take about 0.016 s")


def test_a_call_that_would_not_fit_the_memory_is_not_made():
    hungry = Spy(power=2, mb=1e-3)  # 1.05 GB at 1024 tokens, 17 GB at 4096
    found = run(sizes=(1024, 4096, 16384), hungry=hungry)
    assert tokens(found["hungry"]) == [1024] and max(hungry.seen) == 1024
    last = found["hungry"][-1]
    assert last["kind"] == "memory"
    assert last["reason"] == "a call would need about 17 GB of memory, and 16 GB are free"


def test_a_refusal_leaves_out_its_size_alone():
    found = run(late=Spy(most=256))
    assert tokens(found["late"]) == [256, 1024]
    assert (found["late"][0]["kind"], found["late"][0]["reason"]) == ("refused", "needs 256 tokens")


def test_one_that_fails_ends_its_curve_and_not_the_others():
    found = run(bad=Spy(fails_at=256), good=Spy())
    assert tokens(found["bad"]) == [64] and tokens(found["good"]) == [64, 256, 1024]
    assert (found["bad"][-1]["kind"], found["bad"][-1]["reason"]) == ("failed", "ArithmeticError: no luck")
    found = run(bad=Spy(fails_at=1), good=Spy())
    assert [r["kind"] for r in found["bad"]] == ["failed"] and tokens(found["good"]) == [64, 256, 1024]


def test_memory_that_runs_out_in_a_call_is_told_as_such(monkeypatch):
    class Greedy(Spy):
        def forward(self, q, k, v, window):
            if window.tokens > 64:
                raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")
            return super().forward(q, k, v, window)

    assert run(greedy=Greedy())["greedy"][-1]["kind"] == "memory"


def test_a_map_is_cut_into_windows_of_each_size():
    spy = Spy(ms=1e-6)
    found = run(sizes=(4096, 16384), mode="image", a=spy)["a"]
    assert [(r["windows"], r["tokens"]) for r in found] == [(16, 4096), (4, 16384)]
    assert {len(q) for _, q, *_ in Spy.log} == {4, 16}  # and 4 of the trial on a map of 64 x 64


def test_an_output_that_is_not_finite_is_told():
    class Breaking(Spy):
        def forward(self, q, k, v, window):
            return super().forward(q, k, v, window) / 0

    assert [r["finite"] for r in run(sizes=[64, 256], bad=Breaking())["bad"]] == [False, False]


def test_real_methods_run_and_what_they_keep_is_told(monkeypatch):
    monkeypatch.undo()
    methods = {"exact": ExactAttention(), "nystra": NystraAttention(4), "plus": NystraPlusAttention(4)}
    records = time_attention(methods, [64, 144], 2, 6, timing=QUICK)
    assert [(r["attention"], r["tokens"]) for r in records] == [(name, n) for name in methods for n in (64, 144)]
    assert all(len(r["samples_ms"]) == 4 and min(r["samples_ms"]) > 0 and r["finite"] for r in records)
    assert [r["setup_ms"] is not None for r in records] == [False] * 4 + [True] * 2


def test_mistakes():
    with pytest.raises(UserError, match="sizes=65 tokens fill no square window"):
        run(sizes=65, a=Spy())
    with pytest.raises(ValueError, match="calibrated first"):
        run(a=NystraPlusAttention(target_deviation=45.0))
