"""Timing: what runs when, and what is made of the samples. No test depends on how fast the machine is."""

import pytest

from nystra_bench.instruments import timer
from nystra_bench.instruments.forward import add_twin
from nystra_bench.instruments.statistics import Ratio
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


def test_a_long_first_call_is_all_the_warm_up():
    script = Script("a", times=times(a=[6000.0, 5500.0]))
    entry = script.entries["a"]
    warm_up(entry, Timing(warmup_s=30), script.clock)
    assert script.calls() == ["a"] and entry.long
    assert (entry.first_ms, entry.call_ms, entry.repeats) == (6000.0, 6000.0, 1)


def test_a_long_first_call_may_be_the_first_sample():
    """Less what is made once in it. A short one is called for its samples, as is exact, whose first call is cold."""
    timing = Timing(rounds=2, warmup_s=0, min_sample_ms=0, again=False, count_first=True)
    made_up = times(exact=[9000.0, 5500.0, 5600.0, 5700.0, 5800.0], long=[6000.0, 5900.0], short=[9.0, 8.0, 7.0, 6.0])
    script = Script("exact", "long", "short", times=made_up)
    entries = script.entries
    for entry in entries.values():
        warm_up(entry, timing, script.clock)
    entries["long"].setup_ms = 100.0
    pair = add_twin(entries, ["exact"])
    assert expected_s(entries.values(), timing) == pytest.approx((4 * 9000 + 2 * 6000 + 2 * 8 - 6000) / 1e3)
    run_rounds(entries, timing, script.clock, pair, 0)
    assert entries["long"].samples_ms == [5900.0, 5900.0]
    twice = [*entries["exact"].samples_ms, *entries["exact_again"].samples_ms]
    assert sorted(twice) == [5500.0, 5600.0, 5700.0, 5800.0]
    assert entries["short"].samples_ms == [7.0, 6.0]


def test_further_rounds_can_be_done_without():
    ones, slow = [1.0] * 20, [1.2] * 20
    script = Script(*NAMES, times=times(exact=slow, exact_again=ones, a=ones, b=ones))
    run_rounds(script.entries, Timing(rounds=5, min_rounds=2, again=False), script.clock, PAIR, 0)
    assert len(script.entries["a"].samples_ms) == 5


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
    assert expected_s([entry, entry], Timing(min_rounds=1, budget_s=30, again=False)) == pytest.approx(38)
    assert expected_s([entry, entry], Timing(rounds=3, min_rounds=1, budget_s=30)) == pytest.approx(48)


# ------------------------------------------------------------------ stability


def entries(**samples):
    return {name: Entry(print, print, samples_ms=values) for name, values in samples.items()}


QUIET = Ratio(1.0, 0.99, 1.01, 0.96)
STEADY = [100.0 + n for n in range(9)]


def test_reasons_for_calling_a_timing_unstable():
    steady = entries(a=STEADY)
    assert instability("a", steady, QUIET) is None
    excluded = instability("a", steady, Ratio(1.05, 1.02, 1.08, 0.961))
    assert "1.020 to 1.080 (96.1 % interval), which excludes 1" in excluded
    assert "only known" in instability("a", steady, Ratio(1.0, 0.95, 1.3, 0.96))
    assert "the median is only known to within ±17 %" in instability("a", entries(a=[100.0, 150.0, 150.0] * 3), QUIET)
    assert instability("a", entries(a=[100.0, 130.0] * 35 + [115.0] * 30), QUIET) is None


def test_of_few_rounds_a_noise_floor_near_1_is_enough():
    """The range of three rounds excludes 1 in one of four sessions on a steady machine."""
    few = entries(a=[100.0, 101.0, 102.0])
    assert instability("a", few, Ratio(1.03, 1.01, 1.05, 0.75)) is None
    assert "only known" in instability("a", few, Ratio(1.14, 1.12, 1.16, 0.75))
    assert "excludes 1" in instability("a", entries(a=STEADY), Ratio(1.03, 1.01, 1.05, 0.96))


def test_a_ratio_that_is_shown_and_not_known_well_is_named():
    """Each series alone is steady to ±9 %, but their ratio is not; what did not run is passed over."""
    rising, falling = [92.0, 94, 96, 98, 100, 102, 104, 106, 108], [108.0, 106, 104, 102, 100, 98, 96, 94, 92]
    timed = entries(exact=rising, sdpa=falling, a=falling)
    assert instability("a", timed, QUIET) is None and instability("a", timed, QUIET, ["sdpa", "native"]) is None
    reason = instability("a", timed, QUIET, ["sdpa", "exact", "native"])
    assert reason == "the ratio to exact is only known to within ±12 %"
    assert instability("exact", timed, QUIET, ["exact"]) is None


def test_a_ratio_that_is_not_known_well_is_given_as_many_rounds_again():
    """Every series alone is steady to ±9 %."""
    rising = [92.0, 94, 96, 98, 100, 102, 104, 106, 108] * 2
    samples = {"exact": rising, "exact_again": rising, "sdpa": rising[::-1], "a": rising}

    def rounds(*references):
        script = Script(*samples, times=times(**samples))
        run_rounds(script.entries, Timing(rounds=9, min_rounds=9), script.clock, PAIR, 0, references)
        return len(script.entries["a"].samples_ms)

    assert (rounds(), rounds("exact"), rounds("native", "sdpa")) == (9, 18, 18)


def test_the_default_number_of_rounds_bears_one_disturbed_round():
    """And is the least that does: with fewer the interval is the range, and one round makes everything unstable."""
    least = Timing().min_rounds
    for rounds, known in ((least, True), (least - 1, False)):
        disturbed = entries(a=[100.0] * (rounds - 1) + [300.0], exact=[200.0] * rounds)
        assert (instability("a", disturbed, QUIET, ["exact"]) is None) == known
