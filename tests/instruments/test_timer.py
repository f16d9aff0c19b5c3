"""Timing: what runs when, and what is made of the samples. No test depends on how fast the machine is."""

import numpy as np
import pytest

from nystra_bench.instruments import timer
from nystra_bench.instruments.statistics import Ratio, interquartile_range, paired_ratio
from nystra_bench.instruments.timer import Entry, Timing, expected_s, instability, run_rounds, warm_up


class Script:
    """Entries that write down when they are prepared and called, and a clock that reads made-up times."""

    def __init__(self, *names, times=None):
        self.log = []
        self.times = times or {}
        self.entries = {name: self._entry(name) for name in names}

    def _entry(self, name):
        return Entry(lambda: self.log.append(("prepare", name)), lambda: self.log.append(("call", name)))

    def clock(self, call, repeats=1):
        for _ in range(repeats):
            call()
        return float(next(self.times.get(self.log[-1][1], iter([1.0]))))

    def calls(self):
        return [name for what, name in self.log if what == "call"]


@pytest.fixture(autouse=True)
def still(monkeypatch):
    """A wall clock that stands still unless a test moves it; collecting pytest's own garbage takes long."""
    monkeypatch.setattr(timer.gc, "collect", lambda: 0)
    monkeypatch.setattr(timer.time, "perf_counter", lambda: 0.0)


NAMES = ("exact", "exact_again", "a", "b")
PAIR = ("exact", "exact_again")


def run(seed=0, rounds=5, names=NAMES, **options):
    script = Script(*names, **options)
    noise = run_rounds(script.entries, Timing(rounds=rounds, min_rounds=2), script.clock, PAIR, seed)
    return script, noise


def test_every_entry_runs_once_a_round_right_after_it_was_prepared():
    script, _ = run()
    rounds = [script.calls()[i : i + 4] for i in range(0, 20, 4)]
    assert all(sorted(each) == sorted(NAMES) for each in rounds)
    assert {len(entry.samples_ms) for entry in script.entries.values()} == {5}
    assert script.log == [(what, name) for each in rounds for name in each for what in ("prepare", "call")]


def test_the_order_is_random_but_seeded():
    orders = [tuple(run(seed=seed, rounds=8)[0].calls()) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert len({orders[0][i : i + 4] for i in range(0, 32, 4)}) > 1
    first = [run(seed=seed, rounds=3)[0].calls()[0] for seed in range(60)]
    assert {first.count(name) for name in NAMES} <= set(range(4, 30))


def test_the_budget_ends_the_rounds_but_not_before_the_least_number(monkeypatch):
    ticks = iter(range(0, 10_000, 40))
    monkeypatch.setattr(timer.time, "perf_counter", lambda: float(next(ticks)))
    script = Script(*NAMES)
    run_rounds(script.entries, Timing(rounds=9, min_rounds=3, budget_s=60), script.clock, PAIR, 0)
    assert len(script.entries["a"].samples_ms) == 3
    ticks = iter(range(0, 10_000, 10))
    script = Script(*NAMES)
    run_rounds(script.entries, Timing(rounds=9, min_rounds=3, budget_s=60), script.clock, PAIR, 0)
    assert len(script.entries["a"].samples_ms) == 6


def times(**samples):
    return {name: iter(values) for name, values in samples.items()}


def test_a_noise_floor_that_excludes_1_is_given_as_many_rounds_again():
    """And is judged by all rounds, not by the first number of them that pleases."""
    ones, slow = [1.0] * 20, [1.2] * 5 + [0.9] * 15
    others = {"a": ones, "b": ones}
    script, noise = run(rounds=5, times=times(exact=slow, exact_again=ones, **others))
    assert len(script.entries["exact"].samples_ms) == 10
    assert noise.contains(1.0)
    script, noise = run(rounds=5, times=times(exact=[1.2] * 20, exact_again=ones, **others))
    assert len(script.entries["exact"].samples_ms) == 10
    assert not noise.contains(1.0)
    script, noise = run(rounds=5, times=times(exact=ones, exact_again=ones, **others))
    assert len(script.entries["exact"].samples_ms) == 5
    assert (noise.low, noise.median, noise.high) == (1, 1, 1)


def test_warming_up_records_the_first_call_apart_and_sets_the_repeats():
    script = Script("a", times=times(a=[80.0, 12.5]))
    entry = script.entries["a"]
    warm_up(entry, Timing(warmup_s=0, min_sample_ms=100), script.clock)
    assert script.log == [("prepare", "a"), ("call", "a"), ("call", "a")]
    assert (entry.first_ms, entry.call_ms, entry.repeats, entry.samples_ms) == (80.0, 12.5, 8, [])
    slow = Script("a", times=times(a=[900.0, 500.0]))
    warm_up(slow.entries["a"], Timing(warmup_s=0, min_sample_ms=100), slow.clock)
    assert slow.entries["a"].repeats == 1


def test_a_sample_is_the_mean_of_its_repeats(monkeypatch):
    ticks = iter([0.0, 0.3])
    monkeypatch.setattr(timer.time, "perf_counter", lambda: next(ticks))
    calls = []
    assert timer.Clock("cpu")(lambda: calls.append(1), repeats=3) == pytest.approx(100.0)
    assert len(calls) == 3


def test_garbage_is_not_collected_while_samples_are_taken():
    enabled = []
    script = Script(*NAMES)
    script.entries["a"].call = lambda: (enabled.append(timer.gc.isenabled()), script.log.append(("call", "a")))
    run_rounds(script.entries, Timing(rounds=3, min_rounds=1), script.clock, PAIR, 0)
    assert enabled == [False] * 3
    assert timer.gc.isenabled()


def test_the_silence_that_is_announced_covers_budget_and_least_rounds():
    entry = Entry(lambda: None, lambda: None, call_ms=2000.0, repeats=2)
    assert expected_s([entry, entry], Timing(min_rounds=7, budget_s=1)) == pytest.approx(112)
    assert expected_s([entry, entry], Timing(min_rounds=1, budget_s=30)) == pytest.approx(76)


# ------------------------------------------------------------------ statistics


def test_a_paired_ratio_by_hand():
    ratio = paired_ratio([10, 40, 90], [10, 20, 30])
    assert ratio.median == 2
    assert (ratio.low, ratio.high) == (1, 3)
    # With three rounds, 7 of 27 resamples have the median 1, as many 3: both are within the outer 2.5 %.
    alike = paired_ratio([3, 6, 9, 12], [2, 4, 6, 8])
    assert (alike.median, alike.low, alike.high) == (1.5, 1.5, 1.5)


def test_pairing_takes_off_the_drift_that_rounds_share():
    drift = np.linspace(1, 5, 15)
    ratio = paired_ratio(2 * drift, drift)
    assert (ratio.low, ratio.high) == pytest.approx((2, 2))


def test_the_interval_covers_the_true_ratio_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(120):
        drift = rng.uniform(1, 2, 15)
        fast, slow = drift * rng.lognormal(0, 0.05, 15), 1.3 * drift * rng.lognormal(0, 0.05, 15)
        covered += paired_ratio(slow, fast, seed=trial).contains(1.3)
    assert covered >= 0.88 * 120


def test_samples_that_are_no_pairs_are_refused():
    for a, b in (([1.0], [1.0, 2.0]), ([], [])):
        with pytest.raises(ValueError, match="paired samples"):
            paired_ratio(a, b)


def test_the_interquartile_range_by_hand():
    assert interquartile_range([1, 2, 3, 4, 5]) == 2


def test_reasons_for_calling_a_timing_unstable():
    quiet = Ratio(1.0, 0.99, 1.01)
    assert instability([100.0, 101.0, 102.0], quiet) is None
    assert "excludes 1" in instability([100.0, 101.0, 102.0], Ratio(1.05, 1.02, 1.08))
    assert "only known" in instability([100.0, 101.0, 102.0], Ratio(1.0, 0.95, 1.3))
    assert "the median" in instability([100.0, 100.0, 150.0, 150.0], quiet)
    assert instability([100.0, 130.0] * 40 + [115.0] * 20, quiet) is None
