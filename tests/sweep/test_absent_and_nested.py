"""Sweeps in folders of their own, their settings, and what they have that this machine lacks."""

import json

import pytest
import yaml

from nystra_bench.errors import Absent
from nystra_bench.fetch import catalogue, data_folder
from nystra_bench.tasks.pairs import FolderPairs
from nystra_bench.tasks.super_resolution import SuperResolution

pytestmark = pytest.mark.usefixtures("here")

SMALL = {"architecture": "nystra_bench.models.swinir.SwinIR", "shape": {"dim": 8, "depths": [2], "heads": [2]}}
UNTRAINED = {"_target_": "nystra_bench.models.untrained.load_untrained", "weights": "random", "seed": 0, **SMALL}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of fetched files."""
    monkeypatch.setenv("NYSTRA_BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def sweep(bench, cache, tmp_path, images, tiny_weights):
    """Writes a sweep ``nested/one`` beside the tiny one's options, and runs it."""
    folder = tmp_path / "own"
    (folder / "sweep" / "nested").mkdir(parents=True)
    (folder / "model").mkdir()
    (folder / "model" / "dice.yaml").write_text(yaml.safe_dump(UNTRAINED))
    own = {"task": {"name": "denoise", "images": str(images), "crop": 24, "limit": 1}, "attention": ["exact", "nystra"]}
    model = {"name": "swinir", "weights": str(tiny_weights)}

    def run(*words, settings=None, takes=None, blocks=()):
        made = [{"model": model, "measure": "quality", **own, **block} for block in blocks or [{}]]
        content = {"settings": settings or {}, "takes": takes, "blocks": made}
        (folder / "sweep" / "nested" / "one.yaml").write_text(yaml.safe_dump(content))
        return bench(f"plugins=['{folder}']", "metrics=[psnr]", *words, sweep="+sweep=nested/one")

    return run


def cells(bench):
    return json.loads((bench.results / "nested" / "one" / "cells.json").read_text())["cells"]


def test_a_sweep_in_a_folder_has_its_results_in_one_and_measures_once(sweep, bench):
    outcome = sweep("figures=[]")
    assert outcome.code == 0, outcome.err
    assert "nested/one: 2 cells: 2 missing; 2 to measure" in outcome.out
    assert (bench.results / "nested" / "one" / "report.html").is_file()
    assert bench.table("nested/one")["status"].eq("done").all()
    assert "nested/one: 2 cells: 2 done; 0 to measure" in sweep("figures=[]").out
    assert sweep("mode=report", "figures=[]", "name=mine/too").code == 0
    assert (bench.results / "mine" / "too" / "table.csv").is_file()


def test_a_misspelt_nested_name_is_told(bench):
    assert "did you mean paper/table2?" in bench(sweep="+sweep=paper/tabel2").sentence


def test_the_settings_of_a_sweep_hold_until_the_command_line_says_otherwise(sweep, bench):
    settings = {"timing": {"again": False, "budget_s": 7}, "tables": [], "figures": []}
    latency = [{"measure": "latency"}]
    assert sweep("mode=report", settings=settings, blocks=latency).code == 0
    first = cells(bench)[0]["cell"]["settings"]["timing"]
    assert first["again"] is False and first["budget_s"] == 5  # which the tests' own words give
    assert not list((bench.results / "nested" / "one").glob("*.csv"))
    assert sweep("mode=report", "timing.again=true", "tables=[main]", settings=settings, blocks=latency).code == 0
    assert "again" not in cells(bench)[0]["cell"]["settings"]["timing"]  # as in cells of before there was a choice
    assert (bench.results / "nested" / "one" / "table.csv").is_file()


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"timing": {"ronds": 3}}, ["timing.ronds", "did you mean timing.rounds?"]),
        ([1], ["sweep.settings=[1]", "mapping"]),
    ],
)
def test_settings_that_do_not_exist(sweep, settings, parts):
    outcome = sweep("mode=plan", settings=settings)
    assert outcome.code == 1 and all(part in outcome.sentence for part in parts)


def test_how_long_it_takes_is_told_before(sweep):
    assert sweep("mode=plan", takes="an hour").out.splitlines()[-1].endswith("2 to measure; all of it takes an hour")


# --------------------------------------------------------------------------- what is absent


def test_absent_weights_and_data_are_skipped_rows_with_their_remedies(sweep, bench):
    absent = {"model": "swinir_m_x2", "task": {"name": "set5", "limit": 1}}
    other = {"model": "uformer_b_sidd", "task": {"name": "sidd", "root": "sidd-validation"}, "window_size": 64,
             "position_bias": "drop"}  # fmt: skip
    outcome = sweep("figures=[]", blocks=[{}, absent, other])
    assert outcome.code == 0, outcome.err
    table = bench.table("nested/one").set_index("model")
    assert table.loc["tiny", "status"].eq("done").all()
    for model, remedies in {
        "swinir_m_x2": ["run python -m nystra_bench.fetch swinir-m-x2", "run python -m nystra_bench.fetch set5"],
        "uformer_b_sidd": ["https://github.com/ZhendongWang6/Uformer", "nystra_bench.fetch sidd-validation --from"],
    }.items():
        assert table.loc[model, "status"].eq("skipped").all()
        assert all(remedy in reason for reason in table.loc[model, "reason"] for remedy in remedies)
    assert table.loc["uformer_b_sidd", "window"].eq(64).all()


def test_a_model_that_the_user_names_and_that_is_absent_is_a_mistake(sweep):
    sentence = sweep("mode=plan", "model=swinir_m_denoise25").sentence
    assert sentence.startswith("model=swinir_m_denoise25 does not fit: ")
    assert "run python -m nystra_bench.fetch swinir-m-denoise25" in sentence


def test_a_fetched_data_set_is_found_by_its_name(cache):
    with pytest.raises(Absent, match="task.root=set5/HR is not on this machine: run .* set5"):
        data_folder("task.root", "set5/HR")
    (cache / "data" / "set5" / "LR").mkdir(parents=True)
    with pytest.raises(Absent, match="holds no folder HR"):
        data_folder("task.root", "set5/HR")
    (cache / "data" / "set5" / "HR").mkdir()
    assert data_folder("task.root", "set5/HR") == cache / "data" / "set5" / "HR"
    assert data_folder("task.root", str(cache)) == cache
    assert str(data_folder("task.root", "nowhere/set5")) == "nowhere/set5"
    assert catalogue.find("uformer-b-sidd").remedy.endswith("python -m nystra_bench.fetch uformer-b-sidd --from PATH")


def test_tasks_on_absent_data_can_be_made_and_say_so(cache):
    for task in (SuperResolution(2, images="set5/HR"), FolderPairs("reside-sots/outdoor", "hazy", "gt")):
        assert "is not on this machine" in task.available()
    assert SuperResolution(2, images="astronaut", limit=1).available() is None


# --------------------------------------------------------------------------- random weights


def test_random_weights_are_timed_and_nothing_else(sweep, bench):
    outcome = sweep("figures=[]", blocks=[{"model": "dice", "measure": ["quality", "latency"], "attention": "exact"}])
    assert outcome.code == 0, outcome.err
    (row,) = bench.table("nested/one").to_dict("records")
    assert row["status"] in ("skipped", "unstable") and "so measure=quality would say nothing" in row["reason"]
    assert row["latency_ms"] > 0 and row["psnr"] != row["psnr"]
    assert "The weights of dice are random" in (bench.results / "nested" / "one" / "report.html").read_text()
    assert {c["cell"]["model"]["untrained"] for c in cells(bench)} == {
        '{"architecture":"nystra_bench.models.swinir.SwinIR","seed":0,"shape":{"depths":[2],"dim":8,"heads":[2]},'
        '"weights":"random"}'
    }


def test_the_seed_is_in_the_key(sweep, bench):
    blocks = [{"model": {"name": "dice", "seed": [0, 1]}, "measure": "latency", "attention": "exact"}]
    assert sweep("mode=report", "tables=[]", "figures=[]", blocks=blocks).code == 0
    assert len({c["cell"]["model"]["weights"] for c in cells(bench)}) == len(cells(bench)) == 2
