"""``python -m nystra_bench.conformance DIR``, as the author of a plug-in runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from nystra_bench.conformance.command import main

ROOT = Path(__file__).resolve().parents[1]

FILE = re.compile(r"^```\w+\n# (\S+\.(?:py|yaml))\n(.*?)^```$", re.M | re.S)
"""A block of the documentation that begins with the name of a file."""

GOOD = dict(FILE.findall((ROOT / "docs" / "ADDING.md").read_text())) | {
    "my_model.py": '''
import torch

from nystra_bench.models.checkpoints import resolve
from nystra_bench.models.swinir import SwinIR, SwinIRSpec


def load(weights):
    """A SwinIR as small as can be."""
    model = SwinIR(SwinIRSpec(dim=8, depths=(2,), heads=(2,), window=8, mlp_ratio=1.0))
    model.load_state_dict(torch.load(resolve(weights), weights_only=True))
    return model.eval()
''',
    "model/tiny.yaml": "_target_: my_model.load\nweights: {folder}/tiny.pth\n",
    "model/absent.yaml": "_target_: my_model.load\nweights: {folder}/absent.pth\n",
    "sweep/mine.yaml": "blocks:\n  - {model: tiny, task: {name: darken, least: [0.3, 1]}, attention: my_attention}\n",
}
"""The documented plug-ins, and those that it has no example of."""

BAD = GOOD | {
    "bad_attention.py": '''
from my_attention import MeanAttention


class Share(MeanAttention):
    """A share of the mean of all values."""

    def __init__(self, share: float = 1.0):
        super().__init__()


class WrongShape(MeanAttention):
    """Gives v with its last axes exchanged."""

    def forward(self, q, k, v, window):
        return super().forward(q, k, v, window).transpose(-1, -2)


class Picky(MeanAttention):
    def __init__(self):
        raise RuntimeError("not today")
''',
    "bad_metric.py": '''
import torch
from my_metric import MeanError


class PrefersNoise(MeanError):
    """Says that more is better, and takes its time to be imported."""

    higher_is_better = True
''',
    "bad_model.py": '''
from my_model import load


def load_liar(weights):
    """Tells other windows than it has."""
    model = load(weights)
    model.windows = lambda size, height, width: [size + 1]
    return model
''',
    "model/liar.yaml": "_target_: bad_model.load_liar\nweights: {folder}/tiny.pth\n",
    "bad_task.py": '''
import numpy as np
from my_task import Darken


class NotDeterministic(Darken):
    """Draws from a generator that everybody shares."""

    def degrade(self, clean, rng, depth=None):
        return clean * np.float32(np.random.uniform(self.least, 1))


class Limited(Darken):
    """Gives other samples where there are fewer."""

    def degrade(self, clean, rng, depth=None):
        return clean / np.float32(1 + len(self.pictures))
''',
    "bad_report.py": '''
from my_figure import Histogram
from my_table import Deviations


class Unequal(Deviations):
    """Hides a row from people."""

    def readable(self, data):
        shown = super().readable(data)
        return type(shown)(shown.columns, shown.rows[1:], shown.shared)


class Unready(Histogram):
    """Takes for granted that something was measured."""

    def draw(self, data):
        assert data.frame["deviation_psnr"].notna().any(), "nothing was measured"
        return super().draw(data)
''',
    "broken.py": "def f(:\n    pass\n",
    "attention/wrong_shape.yaml": "_target_: bad_attention.WrongShape\n",
    "attention/misspelt.yaml": "_target_: bad_attention.Share\nshare: 1.0\nshares: 2.0\n",
    "attention/syntax.yaml": "_target_: broken.Attention\n",
    "attention/nowhere.yaml": "_target_: my_attention.Missing\n",
    "attention/picky.yaml": "_target_: bad_attention.Picky\n",
    "attention/targetless.yaml": "share: 1.0\n",
    "attention/unreadable.yaml": "_target_: [\n",
    "metric/prefers_noise.yaml": "_target_: bad_metric.PrefersNoise\nagainst: truth\n",
    "task/not_deterministic.yaml": GOOD["task/darken.yaml"].replace("my_task.Darken", "bad_task.NotDeterministic"),
    "task/limited.yaml": GOOD["task/darken.yaml"].replace("my_task.Darken", "bad_task.Limited"),
    "table/unequal.yaml": GOOD["table/deviations.yaml"].replace("my_table.Deviations", "bad_report.Unequal"),
    "figure/unready.yaml": GOOD["figure/histogram.yaml"].replace("my_figure.Histogram", "bad_report.Unready"),
    "sweep/unknown.yaml": "blocks:\n  - {model: tiny, task: darken, attention: [my_atention]}\n",
}


def write(folder: Path, files: dict[str, str]) -> Path:
    import torch

    from nystra_bench.models.swinir import SwinIR, SwinIRSpec

    torch.manual_seed(0)
    model = SwinIR(SwinIRSpec(dim=8, depths=(2,), heads=(2,), window=8, mlp_ratio=1.0))
    folder.mkdir()
    torch.save(model.state_dict(), folder / "tiny.pth")
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(content.replace("{folder}", str(folder)))
    return folder


@dataclass
class Outcome:
    """What the command said."""

    code: int
    out: str
    err: str

    @property
    def options(self) -> dict[str, list[str]]:
        """The last lines: of each option the counts, the tests that failed, and why tests were skipped."""
        lines = self.out.partition("= options =")[2].splitlines()
        found: dict[str, list[str]] = {}
        for line in lines:
            name = re.match(r"(\w+/\w+): ", line)
            if name:
                said = found.setdefault(name[1], [])
                said.append(line.removeprefix(name[0]))
            elif line.startswith("    "):
                said.append(line.strip())
        return found


def run(folder: Path) -> Outcome:
    command = [sys.executable, "-m", "nystra_bench.conformance", folder.name]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder.parent, env=environment, capture_output=True, text=True)
    return Outcome(done.returncode, done.stdout, done.stderr)


def options_of(files: dict[str, str]) -> set[str]:
    return {name.removesuffix(".yaml") for name in files if name.endswith(".yaml")}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Outcome:
    """Good and bad options in one folder."""
    return run(write(tmp_path_factory.mktemp("mixed") / "mine", BAD))


def test_the_documentation_has_an_example_of_each_kind():
    kinds = {"attention", "executor", "figure", "measure", "metric", "table", "task"}
    assert {name.partition("/")[0] for name in GOOD if name.endswith(".yaml")} == kinds | {"model", "sweep"}


def test_a_good_plugin_of_each_kind_passes(mixed):
    assert set(mixed.options) == options_of(BAD), "the folder's own options, and no others"
    for option in options_of(GOOD):
        counts = mixed.options[option][0]
        assert "passed" in counts and "failed" not in counts, mixed.out


def test_all_good_is_0_and_something_bad_is_2(mixed, tmp_path):
    light = {name: content for name, content in GOOD.items() if re.search("metric|model.py|absent", name)}
    good = run(write(tmp_path / "my plug-ins", light))
    assert good.code == 0, good.out + good.err
    assert set(good.options) == {"metric/mean_error", "model/absent"}
    assert "Traceback" not in good.out + good.err
    assert mixed.code == 2


def test_what_was_not_tested_is_told_with_its_reason(mixed):
    _, *reasons = mixed.options["model/absent"]
    assert len(reasons) == 1
    assert re.match(r"skipped: model/absent: model.weights=\S*/absent.pth is no file", reasons[0])
    assert "skipped: its result depends on the order of the tokens" in mixed.options["attention/my_attention"]


def test_nothing_is_written_beside_the_tests(mixed):
    assert not list((ROOT / "nystra_bench").rglob(".pytest_cache"))


@pytest.mark.parametrize(
    ("option", "test"),
    [
        ("attention/wrong_shape", "test_output_has_the_shape_and_dtype_of_v"),
        ("metric/prefers_noise", "test_equal_images_are_best_and_noise_is_worse"),
        ("metric/prefers_noise", "test_making_it_imports_nothing_large"),
        ("model/liar", "test_the_windows_that_it_tells_are_those_that_are_attended_in"),
        ("task/not_deterministic", "test_samples_are_the_same_whenever_they_are_made"),
        ("task/not_deterministic", "test_samples_are_the_same_in_another_process"),
        ("task/limited", "test_samples_do_not_depend_on_the_limit"),
        ("table/unequal", "test_csv_and_readable_form_agree_and_can_be_written"),
        ("figure/unready", "test_it_draws_or_says_why_there_is_nothing"),
        ("sweep/unknown", "test_it_expands_to_combinations_that_can_be_asked_about"),
    ],
)
def test_a_bad_plugin_fails_in_the_test_of_what_is_bad(mixed, option, test):
    counts, *said = mixed.options[option]
    assert "failed" in counts and f"failed: {test}" in said
    name = option.rpartition("/")[2]
    assert re.search(rf"^_+ {test}\[(\S+-)?{name}(-\S+)?\] _+$", mixed.out, re.M), "the traceback has its name"


def test_the_messages_are_those_of_the_plugins(mixed):
    assert "AssertionError: nothing was measured" in mixed.out
    assert "attention=my_atention is unknown (did you mean my_attention?)" in mixed.out


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("attention/misspelt", r"the entry of attention/misspelt.yaml=shares is unknown \(did you mean share\?\)"),
        ("attention/syntax", r"\S.*SyntaxError.*\(broken.py, line 1\).*"),
        ("attention/nowhere", "_target_=my_attention.Missing cannot be imported"),
        ("attention/picky", r"RuntimeError: not today \(bad_attention.py, line \d+\)"),
        ("attention/targetless", "attention/targetless.yaml names no _target_: accepted is package.module.Name"),
        ("attention/unreadable", r"\S*/attention/unreadable.yaml cannot be read \("),
    ],
)
def test_what_cannot_be_made_is_told_once_with_its_name(mixed, option, said):
    counts, *lines = mixed.options[option]
    assert counts.startswith("1 failed, ")
    assert lines == ["failed: test_it_can_be_made_of_its_entries", f"skipped: {option} cannot be made"]
    assert len(re.findall(f"^{option} cannot be made: {said}", mixed.out, re.M)) == 1, mixed.out


@pytest.fixture
def sentence(capsys):
    """The one line that the command ends with where nothing can be tested."""

    def told(*arguments: str) -> str:
        assert main(list(arguments)) == 1
        out, err = capsys.readouterr()
        (line,) = err.splitlines()
        assert not out
        return line.removeprefix("nystra_bench: ")

    return told


def test_a_folder_has_to_be_given(sentence):
    for words in ((), ("-k", "mean")):
        assert sentence(*words).startswith("no folder is given: accepted is python -m nystra_bench.conformance DIR")


def test_a_folder_has_to_be_there(sentence, tmp_path):
    assert sentence(f"{tmp_path}/none").startswith(f"DIR={tmp_path}/none is no folder: accepted is a folder with")


def test_a_folder_has_to_hold_options(sentence, tmp_path):
    (tmp_path / "attentions").mkdir()
    (tmp_path / "attentions" / "mean.yaml").touch()
    said = sentence(str(tmp_path))
    assert said.startswith(f"DIR={tmp_path} holds no option: accepted is a folder with NAME.yaml files in attention,")


def test_without_pytest_the_sentence_says_how_to_get_it(sentence, tmp_path, monkeypatch):
    (tmp_path / "attention").mkdir()
    (tmp_path / "attention" / "mean.yaml").touch()
    monkeypatch.setitem(sys.modules, "pytest", None)
    assert sentence(str(tmp_path)) == "the conformance tests need pytest: pip install pytest"


def test_help_says_how_it_is_used(capsys):
    assert main(["--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: python -m nystra_bench.conformance DIR")
