"""What the project says of itself in several places is the same everywhere."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import nystra_bench

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_version_has_one_source():
    assert PROJECT["project"]["dynamic"] == ["version"] and "version" not in PROJECT["project"]
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "nystra_bench/__init__.py"
    assert "version" not in yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest and newest[1] == nystra_bench.__version__
    assert importlib.metadata.version("nystra-bench") == nystra_bench.__version__


def test_the_citation_has_what_the_format_asks_for():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["license"] == PROJECT["project"]["license"]
    assert citation["references"][0]["identifiers"][0]["value"] == "arXiv:2506.08520"


def test_a_commit_runs_what_make_lint_runs():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    (hook,) = repository["hooks"]
    assert hook["entry"] == "make lint"
    recipe = subprocess.run(["make", "--dry-run", "lint"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "ruff check" in recipe and "mypy" in recipe


def test_new_code_is_type_checked_too():
    settings = PROJECT["tool"]["mypy"]
    assert {"nystra_bench", "baselines"} <= set(settings["files"])
    assert settings["check_untyped_defs"] and not {"exclude", "overrides"} & set(settings)
    checked = [file for folder in settings["files"] for file in (ROOT / folder).rglob("*.py")]
    silenced = [file for file in checked if "type: ignore" in file.read_text()]
    assert silenced == []
    assert (ROOT / "nystra_bench" / "py.typed").is_file()


def test_the_lock_has_the_versions_of_the_tools():
    locked = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line)
    assert {"mypy", "ruff", "pytest", "hatchling"} <= set(locked)


@pytest.mark.parametrize("name", ["baselines", "configs"])
def test_a_folder_of_the_users_own_that_is_called_like_ours(tmp_path, name):
    """In a checkout: the folder that a command is started in comes first on Python's path."""
    (tmp_path / name).mkdir()
    for file in ("__init__.py", "performer.py", "common.py"):
        (tmp_path / name / file).write_text("raise RuntimeError('the wrong one')\n")
    code = (
        "from nystra_bench.configuration import Catalogue, configs_folder, instantiate\n"
        "for name in ('performer', 'improved_clustered_attention'):\n"
        "    print(type(instantiate(Catalogue([configs_folder()]).option('attention', name))).__module__)"
    )
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = ["nystra_bench.baselines.performer", "nystra_bench.baselines.improved_clustered_attention"]
    assert done.stdout.split() == expected
