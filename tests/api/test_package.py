"""The library as a package: what importing it costs, which names it has, and that their examples hold."""

from __future__ import annotations

import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import nystra_bench

ROOT = Path(__file__).resolve().parents[2]
PUBLIC = {name: getattr(nystra_bench, name) for name in nystra_bench.__all__}


def test_importing_it_imports_nothing_large():
    asked = "import nystra_bench, sys; print([m for m in ('torch', 'pandas', 'matplotlib') if m in sys.modules])"
    told = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert told.strip() == "[]"


def test_every_name_is_there_and_listed():
    assert set(nystra_bench.__all__) <= set(dir(nystra_bench))
    assert all(callable(value) and value.__doc__ for value in PUBLIC.values())
    with pytest.raises(AttributeError, match="has no attribute compere"):
        nystra_bench.compere  # noqa: B018


def test_type_checkers_see_the_same_names():
    text = (ROOT / "nystra_bench" / "__init__.py").read_text()
    block = text.split("if TYPE_CHECKING:")[1].split("\n\n")[0]
    assert set(nystra_bench.__all__) == {word.strip(" ,)") for word in block.split() if word.strip(" ,)") in PUBLIC}
    assert (ROOT / "nystra_bench" / "py.typed").is_file()


@pytest.mark.parametrize("name", ["acceleration", "analysis", "comparison", "options"])
def test_the_examples_of_docstrings(name):
    found = doctest.testmod(importlib.import_module(f"nystra_bench.api.{name}"), extraglobs=PUBLIC)
    assert found.attempted and not found.failed


def test_the_examples_of_the_documentation():
    found = doctest.testfile(str(ROOT / "docs" / "API.md"), module_relative=False)
    assert found.attempted > 10 and not found.failed


def test_the_documentation_names_every_function():
    text = (ROOT / "docs" / "API.md").read_text(encoding="utf-8")
    assert [name for name in nystra_bench.__all__ if f"`{name}" not in text] == []
