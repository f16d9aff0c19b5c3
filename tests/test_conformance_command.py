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

GOOD = {
    "my_attention.py": '''
from nystra_bench.attention.base import Attention


class MeanAttention(Attention):
    """Every token gets a share of the mean of all values."""

    def __init__(self, share: float = 1.0):
        super().__init__()
        self.share = share

    def forward(self, q, k, v, window):
        return (self.share * v.mean(-2, keepdim=True)).expand_as(v)

    def matrix(self, q, k, window):
        n = q.shape[-2]
        return q.new_full((*q.shape[:2], n, n), self.share / n)

    def flops(self, windows, heads, tokens, dim, dim_v):
        return 0
''',
    "attention/mean.yaml": "_target_: my_attention.MeanAttention\nshare: 1.0\n",
    "my_metric.py": '''
from nystra_bench.metrics.base import Metric


class MeanError(Metric):
    """Mean absolute difference, in 8-bit steps."""

    unit, higher_is_better = "levels", False

    def compare(self, output, target):
        return 255 * abs(output - target).mean()
''',
    "metric/mean_error.yaml": "_target_: my_metric.MeanError\nagainst: truth\nconvention: null\n",
    "my_task.py": '''
import numpy as np

from nystra_bench.tasks.base import SyntheticTask


class Darken(SyntheticTask):
    """Photographs that are too dark, each by a factor of its own."""

    seeded_as = "darken"

    def __init__(self, least=0.3, images="bundled", limit=None, crop=None, seed=0):
        super().__init__(images, limit, crop, seed)
        self.least = least

    def degrade(self, clean, rng, depth=None):
        return clean * np.float32(rng.uniform(self.least, 1))

    def identity(self):
        return {"least": self.least, **super().identity()}
''',
    "task/darken.yaml": "_target_: my_task.Darken\nleast: 0.3\nimages: bundled\nlimit: null\ncrop: null\nseed: 0\n",
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
    "my_report.py": '''
from matplotlib.figure import Figure as Drawing

from nystra_bench.report.base import Figure, Table


class Deviations(Table):
    def table(self, data):
        return data.frame[["attention", "deviation_psnr", "status"]]


class Histogram(Figure):
    def caption(self, data):
        return "How many configurations have which deviation."

    def draw(self, data):
        values = data.frame["deviation_psnr"].replace([float("inf"), float("-inf")], float("nan")).dropna()
        if values.empty:
            return []
        drawing = Drawing()
        drawing.subplots().hist(values)
        return [("", drawing)]
''',
    "table/deviations.yaml": "_target_: my_report.Deviations\ntitle: Mine\ncolumns: [attention, deviation_psnr]\n",
    "figure/histogram.yaml": "_target_: my_report.Histogram\ntitle: Mine\n",
    "sweep/darken.yaml": "blocks:\n  - {model: tiny, task: darken, attention: [{name: mean, share: [0.5, 1]}]}\n",
}

BAD = GOOD | {
    "bad_attention.py": '''
from my_attention import MeanAttention


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
from my_report import Deviations, Histogram


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
    "attention/wrong_shape.yaml": "_target_: bad_attention.WrongShape\nshare: 1.0\n",
    "attention/misspelt.yaml": "_target_: my_attention.MeanAttention\nshare: 1.0\nshares: 2.0\n",
    "attention/syntax.yaml": "_target_: broken.Attention\n",
    "attention/nowhere.yaml": "_target_: my_attention.Missing\n",
    "attention/picky.yaml": "_target_: bad_attention.Picky\n",
    "attention/unreadable.yaml": "_target_: [\n",
    "metric/prefers_noise.yaml": "_target_: bad_metric.PrefersNoise\nagainst: truth\n",
    "task/not_deterministic.yaml": GOOD["task/darken.yaml"].replace("my_task.Darken", "bad_task.NotDeterministic"),
    "task/limited.yaml": GOOD["task/darken.yaml"].replace("my_task.Darken", "bad_task.Limited"),
    "table/unequal.yaml": GOOD["table/deviations.yaml"].replace("my_report.Deviations", "bad_report.Unequal"),
    "figure/unready.yaml": GOOD["figure/histogram.yaml"].replace("my_report.Histogram", "bad_report.Unready"),
    "sweep/unknown.yaml": "blocks:\n  - {model: tiny, task: darken, attention: [meann]}\n",
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
    assert "skipped: its result depends on the order of the tokens" in mixed.options["attention/mean"]


def test_nothing_is_written_beside_the_tests(mixed):
    assert not list((ROOT / "nystra_bench").rglob(".pytest_cache"))


@pytest.mark.parametrize(
    ("option", "test"),
    [
        ("attention/wrong_shape", "test_output_has_the_shape_and_dtype_of_v"),
        ("metric/prefers_noise", "test_equal_images_are_best_and_noise_is_worse"),
        ("metric/prefers_noise", "test_making_it_imports_nothing_large"),
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
    assert "attention=meann is unknown (did you mean mean?)" in mixed.out


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("attention/misspelt", r"the entry of attention/misspelt.yaml=shares is unknown \(did you mean share\?\)"),
        ("attention/syntax", r"File \"\S*/broken.py\", line 1"),
        ("attention/nowhere", "_target_=my_attention.Missing cannot be imported"),
        ("attention/picky", r"RuntimeError: not today \(bad_attention.py, line \d+\)"),
        ("attention/unreadable", r"\S*/attention/unreadable.yaml cannot be read: "),
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
