"""The ranking and the standings against what is worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hydra.utils import instantiate

from nystra_bench.report.build import build_report
from nystra_bench.report.reading import load
from nystra_bench.report.tables.contests import _compared, _order
from nystra_bench.report.tables.ranking import Ranking, Standings

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
INF, NAN = float("inf"), float("nan")


def options(name: str) -> dict:
    return yaml.safe_load((CONFIGS / "table" / f"{name}.yaml").read_text())


def table(name: str) -> Ranking | Standings:
    return instantiate(options(name))


def add(store, deviations: dict[str, list[float]], **changes) -> None:
    """A setting: the deviation of each method on each image; ``:`` parts a name from its landmarks."""
    for method, values in deviations.items():
        name, _, landmarks = method.partition(":")
        cell = store.cell("quality", name, {"landmarks": int(landmarks)} if landmarks else {}, **changes)
        store.quality(cell, [{"psnr": 30 + min(v, 90) / 100, "deviation_psnr": v} for v in values])
        latency = store.cell("latency", name, cell.content["attention"]["params"], **changes)
        store.latency(latency, [100.0, 101.0, 99.0, 100.0, 100.0], store.companions)


REFERENCES = {"exact": [INF, INF, INF], "sdpa": [146.0, 145.0, 147.0], "identity": [33.0, 35.0, 31.0]}
SETTING = REFERENCES | {
    "far": [20.0, 22.0, 24.0],  # farther than no attention on every image
    "near": [45.0, 46.0, 44.0],
    "like_near": [44.0, 47.0, 43.5],  # better on one image, worse on two: a tie
    "middle": [36.0, 36.5, 33.0],
}


@pytest.fixture
def frame(synthetic) -> pd.DataFrame:
    add(synthetic, SETTING)
    return table("ranking").table(load(synthetic.write(), "demo")).set_index("attention")


def test_ranks_follow_the_mean_ties_leave_some_open_and_references_have_none(frame):
    assert list(frame.index) == ["near", "like_near", "middle", "far", "exact", "sdpa", "identity"]
    ranks = frame[["rank", "rank_low", "rank_high"]][:4].to_numpy(int)
    assert ranks.tolist() == [[1, 1, 2], [2, 1, 2], [3, 3, 3], [4, 4, 4]]
    assert frame["rank"][4:].isna().all() and frame["wins"][4:].isna().all()
    counts = frame.loc[["near", "like_near", "middle", "far"], ["wins", "ties", "losses"]].to_numpy(int)
    assert counts.tolist() == [[2, 1, 0], [2, 1, 0], [1, 0, 2], [0, 0, 3]]


def test_differences_are_paired_and_of_three_images_the_interval_is_the_range(frame):
    row = frame.loc["middle"]
    assert (row["behind"], row["behind_low"], row["behind_high"]) == (9.5, 9.0, 11.0)  # 9, 9.5 and 11
    assert (row["above_identity_low"], row["above_identity_high"]) == (1.5, 3.0)
    assert np.isnan(frame.loc["near", "behind"]) and np.isnan(frame.loc["identity", "above_identity"])
    assert frame.loc["far", "above_identity_high"] == -7.0
    assert frame.loc["near", "psnr_loss"] == pytest.approx(0.45)


def test_pairing_shows_what_means_alone_would_hide(synthetic):
    """A difference of 0.1 dB on every image is a win, however much the images differ."""
    images = np.linspace(20, 60, 12)
    wild = images + np.where(np.arange(12) % 2, 4, -4)
    add(synthetic, {"a": list(images + 0.1), "b": list(images), "c": list(wild)})
    frame = table("ranking").table(load(synthetic.write(), "demo")).set_index("attention")
    counts = frame.loc[["a", "b", "c"], ["wins", "ties", "losses"]].to_numpy(int)
    assert counts.tolist() == [[1, 1, 0], [0, 1, 1], [0, 2, 0]]
    assert frame.loc["b", "behind_low"] == pytest.approx(0.1) == frame.loc["b", "behind_high"]


def test_above_the_ceiling_all_tie_and_what_is_not_finite_is_last(synthetic):
    add(synthetic, {"equal": [INF, INF], "rounding": [120.0, 130.0], "close": [80.0, 80.0], "broken": [50.0, NAN]})
    add(synthetic, {"identity": [10.0, 10.0]})
    frame = table("ranking").table(load(synthetic.write(), "demo")).set_index("attention")
    assert frame["rank"].dropna().to_dict() == {"equal": 1, "rounding": 1, "close": 3, "broken": 4}
    assert frame.loc["broken", "behind"] == INF and frame.loc["broken", "above_identity"] == -INF


def test_no_method_stands_above_one_that_wins_against_it(synthetic):
    """On nine images the interval leaves out the extremes: one image that fails costs the mean, not the median."""
    images = np.linspace(30, 46, 9)
    failed = [-200.0, *(images[1:] + 1.0)]
    add(synthetic, {"fails_once": failed, "steady": list(images), "far": list(images - 9)})
    data = load(synthetic.write(), "demo")
    frame = table("ranking").table(data).set_index("attention")
    means = data.frame.set_index("attention")["deviation_psnr"]
    assert list(frame.index) == ["fails_once", "steady", "far"]
    assert means["steady"] > means["far"] > means["fails_once"]
    assert frame.loc["fails_once", ["rank", "rank_low", "rank_high", "wins"]].tolist() == [1, 1, 1, 2]
    assert frame.loc["steady", ["behind", "behind_low", "behind_high"]].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("images", [1, 2, 5, 6, 9, 12])
def test_ranks_and_point_estimates_lie_within_what_is_said_of_them(synthetic, images):
    """Whatever the deviations: heavy tails, equal outputs and broken ones."""
    rng = np.random.default_rng(images)
    values = 40 + 5 * rng.standard_t(1, (12, images)) + np.linspace(0, 6, 12)[:, None]
    values[3], values[5, 0], values[7, -1] = values[4], INF, NAN
    add(synthetic, {f"m{n}": list(row) for n, row in enumerate(values)} | {"identity": list(values[0] - 1)})
    frame = table("ranking").table(load(synthetic.write(), "demo"))[:12]
    assert ((frame["rank_low"] <= frame["rank"]) & (frame["rank"] <= frame["rank_high"])).all()
    assert frame["rank"].is_monotonic_increasing and frame["rank"].iloc[0] == 1
    assert frame.loc[frame["attention"].isin(["m3", "m4"]), "rank"].nunique() == 1
    for name in ("behind", "above_identity"):
        known = frame.dropna(subset=name)
        assert len(known) >= 11
        assert ((known[f"{name}_low"] <= known[name]) & (known[name] <= known[f"{name}_high"])).all()


def test_a_win_by_chance_is_no_more_frequent_than_the_level_says():
    """Of two methods that are equally close one wins in at most 5 of 100 settings."""
    rng = np.random.default_rng(0)
    for images in (6, 9, 20):
        pairs = rng.standard_t(1, (1000, 2, images))
        wins = sum(bool((_compared(pair)[1] > 0).any()) for pair in pairs)
        assert 0 < wins <= 65


def test_wins_in_a_circle_have_an_order_all_the_same():
    beats = np.zeros((4, 4), bool)
    beats[[0, 1, 2], [1, 2, 0]] = True  # a circle, and a fourth that loses to one of it
    beats[2, 3] = True
    assert _order(beats) == [0, 1, 2, 3]
    chain = np.zeros((3, 3), bool)
    chain[[2, 1], [1, 0]] = True
    assert _order(chain) == [2, 1, 0]


def test_with_one_image_all_tie(synthetic):
    add(synthetic, {"a": [30.0], "b": [40.0], "c": [50.0]})
    data = load(synthetic.write(), "demo")
    frame = table("ranking").table(data)
    assert list(frame["attention"]) == ["c", "b", "a"] and list(frame["rank"]) == [1, 2, 3]
    assert set(frame["ties"]) == {2} and set(frame["rank_low"]) == {1} and set(frame["rank_high"]) == {3}
    assert "With one image" in table("ranking").readable(data).shared


def test_few_images_are_said_and_many_are_not(synthetic):
    add(synthetic, {name: list(np.arange(6.0) + n) for n, name in enumerate("abc")})
    assert "instead of" not in table("ranking").readable(load(synthetic.write(), "demo")).shared
    add(synthetic, {"a": [1.0, 2.0], "b": [1.0, 2.0], "c": [1.0, 2.0]}, window=16)
    shared = table("standings").readable(load(synthetic.write(), "demo")).shared
    assert "over 2 images is the range of their differences, with a level of 50 % instead of 95 %" in shared


def test_settings_of_one_method_are_no_ranking(synthetic):
    add(synthetic, REFERENCES | {"a:8": [1.0, 2.0], "a:16": [2.0, 3.0], "b": [1.0, 1.0]})
    data = load(synthetic.write(), "demo")
    assert "3 approximating methods" in table("ranking").nothing(data) and table("standings").nothing(data)
    page = build_report(synthetic.results, "demo", {"tables": {"ranking": options("ranking")}}, "").page.read_text()
    assert "table-ranking" not in page and not (synthetic.results / "demo" / "ranking.csv").exists()


def test_the_standings_sum_over_the_settings(synthetic):
    add(synthetic, SETTING)
    add(synthetic, {"near": [1.0, 1.0], "middle": [2.0, 2.0], "far:8": [3.0, 3.0], "identity": [1.0, 1.0]}, window=16)
    data = load(synthetic.write(), "demo")
    frame = table("standings").table(data).set_index("method")
    near = frame.loc["near", ["settings", "unbeaten", "wins", "ties", "losses"]]
    assert list(near) == [2, 1, 2, 1, 2] and frame.loc["near", "balance"] == 0
    assert list(frame.loc["near", ["identity_wins", "identity_ties", "identity_losses"]]) == [1, 1, 0]
    assert list(frame.loc["far", ["identity_wins", "identity_ties", "identity_losses"]]) == [0, 0, 1]
    assert frame.loc["far (8 landmarks)", "unbeaten"] == 1 and frame["wins"].sum() == frame["losses"].sum()
    assert frame["ties"].sum() % 2 == 0 and frame["balance"].is_monotonic_decreasing
    assert "2 settings" in table("standings").notes(data)[0]


def test_what_has_no_deviation_is_named_not_dropped(synthetic):
    add(synthetic, SETTING)
    synthetic.skip(synthetic.cell("quality", "refuser"), "refuses windows of 32")
    notes = table("ranking").notes(load(synthetic.write(), "demo"))
    assert notes[1:] == ["Not ranked: refuser: refuses windows of 32."] and "above 90 dB" in notes[0]


def test_readable_forms(synthetic):
    add(synthetic, SETTING)
    chosen = {"tables": {name: options(name) for name in ("ranking", "standings")}}
    folder = build_report(synthetic.write(), "demo", chosen, "").page.parent
    ranking, standings = ((folder / f"{name}.md").read_text() for name in ("ranking", "standings"))
    assert "| 1 (1–2) | near | folded | ignored | 45.00 | – | 12.00 (11.00 to 13.00) | 2–1–0 | 0.45 |" in ranking
    assert "| 2 (1–2) | like_near | folded | ignored | 44.83 | ≈0 (−1.00 to 1.00) |" in ranking
    assert "| – | exact | folded | ignored | ∞ | – | – | – | 0.00 |" in ranking
    assert "| near | 1 | 1 | 2–1–0 | 0.67 | 1–0–0 |" in standings
    assert "won--tied--lost" in (folder / "ranking.tex").read_text()
    assert "farther from the original than nothing" in (folder / "report.html").read_text()
