"""What every measurement keeps to: it says what it needs, runs on a real model, and its numbers are those it names."""

from __future__ import annotations

import json

import pytest
import yaml

from nystra_bench.cli import main
from nystra_bench.measure.base import Circumstances, check_columns, measurement
from nystra_bench.report.reading import load
from nystra_bench.sweep.execution import EXECUTION
from nystra_bench.words import IDENTITY, LAST, OUTCOME

KNOWN = Circumstances(
    hardware="a processor",
    threads=1,
    torch="2.6",
    timing={"rounds": 3},
    references={role: {"name": role, "version": "1", "params": {}} for role in ("exact", "sdpa", "identity")},
    metrics={"psnr": {"version": "1", "params": {"against": "truth"}, "against": "truth"}},
    source="ab" * 32,
)
QUICK = ["timing.rounds=3", "timing.min_rounds=1", "timing.budget_s=5", "timing.warmup_s=0", "timing.min_sample_ms=0"]
SHORT = {"budget_s": 0.1, "call_s": 0.1}
"""Parameters that a measurement may have, in seconds: the form of numbers is looked at here, not their precision."""


@pytest.fixture
def made(subject):
    return measurement(subject.name, subject.config)


@pytest.fixture(scope="module")
def results(tested, tmp_path_factory):
    """A run of all measurements of the folder, on a bundled model and one small image."""
    folder = tmp_path_factory.mktemp("measured")
    sound = [subject for subject in tested.subjects("measure") if subject.fault is None]
    block = {
        "model": "swinir_denoise_w8",
        "task": {"name": "denoise", "limit": 1, "crop": 32},
        "attention": ["exact", {"name": "nystra", "landmarks": 4}],
        "measure": [{"name": of.name, **{k: v for k, v in SHORT.items() if k in of.config}} for of in sound],
        "device": "cpu",
    }
    (folder / "sweep").mkdir()
    (folder / "sweep" / "conformance.yaml").write_text(yaml.safe_dump({"blocks": [block]}))
    plugins = ",".join(f"'{path}'" for path in (folder, *tested.plugins))
    words = ["+sweep=conformance", f"plugins=[{plugins}]", f"results={folder / 'results'}", "device.threads=1", *QUICK]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NYSTRA_BENCH_LOCKS", str(folder / "locks"))
        main([*words, "figures=[]", "tables=[]"])
    return folder / "results"


def of_subject(subject, results) -> list[dict]:
    found = [json.loads(file.read_text()) for file in results.glob("store/*/result.json")]
    return [result for result in found if result["cell"]["measure"]["name"] == subject.name]


def test_it_says_what_it_needs_and_what_it_gives(subject, made):
    assert type(made).__doc__ and isinstance(made.version, str) and isinstance(made.place, int)
    check_columns({subject.name: made}, dict.fromkeys([*IDENTITY, *EXECUTION, *OUTCOME, *LAST], "every table"))
    assert all(column.header and column.meaning.endswith(".") for column in made.columns)


def test_what_decides_its_numbers_is_plain_and_the_same_each_time(made):
    for said in (made.settings, made.parts):
        first = json.dumps(said(KNOWN), sort_keys=True)
        assert first == json.dumps(said(KNOWN), sort_keys=True)


def test_planning_and_reading_need_neither_torch_nor_pandas(subject, tested):
    code = (
        "import json, sys; from nystra_bench.measure.base import measurement; "
        f"measurement({subject.name!r}, json.loads({json.dumps(json.dumps(subject.config))})); "
        "assert not {'torch', 'pandas', 'matplotlib'} & set(sys.modules)"
    )
    run = tested.python("-c", code)
    assert run.returncode == 0, run.stderr


def test_it_measures_a_real_model(subject, results, made):
    """Cells of the model, or of the attentions alone, as it needs."""
    measured = of_subject(subject, results)
    told = [json.loads(file.read_text()) for file in results.glob("store/*/failure.json")]
    reasons = [f["traceback"] or f["reason"] for f in told if f["cell"]["measure"]["name"] == subject.name]
    assert measured and not reasons, "\n".join(reasons)
    for result in measured:
        axes = {"model": "model", "task": "task", "attention": "attention"}
        assert {axis for axis in axes if axis in result["cell"]} == {*axes} & {*made.needs}


def test_its_numbers_are_those_that_it_names(subject, results, made):
    for result in of_subject(subject, results):
        value, cell = result["value"], result["cell"]
        scalars, described = made.scalars(value, cell), made.describe(value)
        known = {*made.names, *described, *(f"input_{name}" for name in described)}
        assert {*scalars} <= known
        assert all(isinstance(about, dict) for about in described.values())
        rows = made.rows(value, cell)
        assert all({*made.row_columns} <= {*row} for row in rows)
        assert isinstance(made.details(value, cell), dict)


def test_the_report_has_them(subject, results, tested, made):
    data = load(results, "conformance", tested.catalogue)
    assert subject.name in set(data.cells["measure"])
    for result in of_subject(subject, results):
        assert {*made.scalars(result["value"], result["cell"])} <= {*data.frame.columns}
