"""Numbers that were measured once are measured again: a cell from its file, published tables from their sweeps."""

import json
import shlex
import shutil
import sys

import pandas as pd
import pytest

from nystra_bench import replay, verify
from nystra_bench.cli import main
from nystra_bench.replay import Recorded, differences
from nystra_bench.sweep import inspection
from nystra_bench.sweep.agreement import agree

SWEEP = """\
blocks:
  - model: swinir_denoise_w8
    task: {name: denoise, limit: 2, crop: 24}
    attention: [exact, {name: nystra, landmarks: [4, 8]}]
    measure: quality
    device: cpu
"""


@pytest.fixture(scope="module")
def patch():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspection, "look", lambda request: json.loads(json.dumps(inspection.answer(request))))
        yield patch


@pytest.fixture(scope="module")
def measured(tmp_path_factory, patch):
    """A published table in a folder of its own, with its command, and the results that it is of."""
    folder = tmp_path_factory.mktemp("measured")
    (folder / "mine" / "sweep").mkdir(parents=True)
    (folder / "mine" / "sweep" / "small.yaml").write_text(SWEEP)
    words = ["+sweep=small", f"plugins=['{folder / 'mine'}']", "metrics=[psnr,deviation_psnr]", "device.threads=1"]
    assert main([*words, f"results={folder / 'results'}", "figures=[]"]) == 0
    (folder / "published").mkdir()
    shutil.copy(folder / "results" / "small" / "table.csv", folder / "published" / "small.csv")
    (folder / "published" / "small.command").write_text(f"# as it was run\n{shlex.join(words)}\n")
    return folder


def cell_of(folder, attention="nystra"):
    """The file of a cell, by its attention."""
    found = (file for file in folder.glob("results/store/*/result.json"))
    return next(f for f in found if json.loads(f.read_text())["cell"]["attention"]["name"] == attention)


# ------------------------------------------------------------------ one cell


def test_a_cell_is_repeated_from_its_file_alone(measured, capsys):
    assert replay.main([str(cell_of(measured).parent), "--plugins", str(measured / "mine")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert {"code: the same", "weights: the same", "data: the same", "versions: the same"} <= {*said}
    assert said[-1].endswith("numbers: all agree")
    assert any(line.startswith("deviation_psnr: ") and line.endswith(": agrees") for line in said)


def test_what_differs_is_told_by_its_kind_and_the_numbers_that_do(measured):
    now = json.loads(cell_of(measured).read_text())
    before = json.loads(json.dumps(now))
    assert not any(differences(before, now).values())
    before["cell"]["attention"]["version"] = "0"
    before["cell"]["model"]["weights"] = "ab" * 32
    before["cell"]["task"]["data"] = "cd" * 32
    before["environment"]["packages"]["numpy"] = "1.0"
    before["environment"]["cpu"] = "another"
    before["value"]["parts"]["psnr"]["version"] = "0"
    told = differences(before, now)
    assert {kind: len(lines) for kind, lines in told.items()} == {
        **{"code": 2, "weights": 1, "data": 1, "versions": 1, "machine": 1, "settings": 0},
    }
    assert told["weights"][0].startswith("model.weights: ababababab… -> ")

    before["value"]["images"][0]["metrics"]["psnr"] += 0.1
    differing = [number for number in Recorded(before).compare(Recorded(now)) if not number.agrees]
    assert [number.name for number in differing] == ["psnr"]
    assert differing[0].difference == pytest.approx(-0.05)
    assert "DIFFERS, by -0.05" in str(differing[0])


@pytest.mark.parametrize(
    ("spoil", "part"),
    [
        (lambda file: file.unlink(), "is no file"),
        (lambda file: file.write_text("{"), "no JSON"),
        (lambda file: file.write_text(json.dumps(json.loads(file.read_text()) | {"key": "k"})), "another cell"),
        (lambda file: file.write_text(json.dumps(json.loads(file.read_text()) | {"recipe": None})), "which config"),
        (lambda file: file.write_text(json.dumps(json.loads(file.read_text()) | {"recipe": {}})), "whose device does"),
    ],
)
def test_what_is_no_result_is_told_in_a_sentence(measured, tmp_path, capsys, spoil, part):
    file = tmp_path / "result.json"
    shutil.copy(cell_of(measured), file)
    spoil(file)
    assert replay.main([str(file)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert part in line and "accepted" in line


def test_weights_that_are_gone_are_told_in_a_sentence(measured, tmp_path, capsys):
    content = json.loads(cell_of(measured).read_text())
    content["recipe"]["model"]["weights"] = "/nowhere.pth"
    (tmp_path / "result.json").write_text(json.dumps(content))
    assert replay.main([str(tmp_path), "--plugins", str(measured / "mine")]) == 1
    assert "model.weights=/nowhere.pth" in capsys.readouterr().err


EVIL = "raise SystemExit('the code of a stranger was run')"


def test_plug_ins_that_a_file_names_are_not_run_unless_the_user_says_so(measured, tmp_path, capsys, monkeypatch):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "of_a_stranger.py").write_text(EVIL)
    content = json.loads(cell_of(measured).read_text())
    content["recipe"]["sys_path"] = [str(tmp_path / "theirs")]
    content["recipe"]["attention"]["_target_"] = "of_a_stranger.Attention"
    (tmp_path / "result.json").write_text(json.dumps(content))
    before = [*sys.path]
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert replay.main([str(tmp_path)]) == 1
    assert sys.path == before
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"nystra_bench: the cell was measured with plug-ins of {tmp_path / 'theirs'}, whose code a repetition runs: "
        "accepted is --plugins=DIR with that folder, or your own copy of it, where you trust it"
    )
    # Where another folder is given, it is that one which is looked into.
    assert replay.main([str(tmp_path), "--plugins", str(measured / "mine")]) == 1
    assert "_target_=of_a_stranger.Attention cannot be imported (ModuleNotFoundError" in capsys.readouterr().err
    assert replay.main([str(tmp_path), "--plugins", str(tmp_path / "nowhere")]) == 1
    assert f"--plugins={tmp_path / 'nowhere'} is no folder" in capsys.readouterr().err


def test_plug_ins_that_a_command_file_names_are_not_run_unless_the_user_says_so(measured, tmp_path, capsys):
    assert verify.main([str(measured / "published"), "--results", str(tmp_path / "fresh")]) == 1
    said = capsys.readouterr()
    assert f"small: not checked: small.command names plug-ins of {measured / 'mine'}, whose code would run" in said.out
    assert not (tmp_path / "fresh").exists()


def test_when_numbers_agree():
    inf, nan = float("inf"), float("nan")
    assert agree(30.0, 30.009, "dB", 0) and not agree(30.0, 30.011, "dB", 1.0)
    assert agree(140.0, inf, "dB", 0) and not agree(99.0, inf, "dB", 0)
    assert agree(inf, inf, None, 0) and agree(nan, nan, None, 0) and not agree(nan, 1.0, None, 1)
    assert agree(10.0, 10.9, None, 0.1) and not agree(10.0, 11.3, None, 0.1)
    assert not agree(inf, 1.0, None, 0.1) and not agree(None, 1.0, None, 1) and agree("a", "a", None, 0)


# ------------------------------------------------------------------ published tables


def test_published_rows_are_measured_again_and_compared(measured, tmp_path, capsys):
    words = [str(measured / "published"), "--rows", "1", "--results", str(tmp_path / "fresh"), "device.threads=1"]
    assert verify.main([*words, f"plugins=['{measured / 'mine'}']"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "small: measuring 1 of 3 rows" in said
    assert said[-1] == "small: 4 of 4 numbers agree"
    assert len(list((tmp_path / "fresh").glob("store/*/result.json"))) == 1


def test_rows_that_differ_or_are_gone_are_told(measured, tmp_path, capsys):
    """What is measured already is not measured again: results= may be those of an earlier call."""
    rows = pd.read_csv(measured / "published" / "small.csv", dtype=str, keep_default_na=False)
    rows.loc[1, "psnr"] = str(float(rows.loc[1, "psnr"]) + 0.5)
    rows.loc[2, "parameters"] = "of=before"
    rows.to_csv(tmp_path / "small.csv", index=False)
    shutil.copy(measured / "published" / "small.command", tmp_path)
    words = [str(tmp_path), "--sweep", "small", "--results", str(measured / "results")]
    assert verify.main([*words, f"plugins=['{measured / 'mine'}']"]) == 2
    said = capsys.readouterr().out
    assert "measuring 2 of 3 rows; 1 are not in the sweep any more" in said
    assert "nystra(guard=5 init=global iterations=2 landmarks=4): psnr: " in said and "DIFFERS, by -0.5" in said
    assert "small: 7 of 8 numbers agree" in said


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["{published}", "--sweep", "smal"], "did you mean small?"),
        (["{published}", "--rows", "0"], "--rows=0"),
        (["{published}", "--rows", "few"], "--rows"),
        (["{published}/nowhere"], "holds no table"),
        (["{published}", "--colour"], "--help"),
    ],
)
def test_mistakes_in_what_is_to_be_verified(measured, capsys, words, part):
    assert verify.main([word.format(published=measured / "published") for word in words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert part in line


def test_the_projects_own_tables_are_found():
    names = {table.name for table in verify.published(verify.configs_folder().parent / "results" / "reference")}
    assert {"denoise", "dehaze", "baselines"} <= names
    assert not {"scaling", "spectrum", "baselines_ranking"} & names
