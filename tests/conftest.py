"""What all tests share: they disturb no other run on the machine and no folder of the user's, and the longest begin."""

import os
from pathlib import Path

import pytest

from nystra_bench.fetch import cache_folder

OWN_CACHE = Path(__file__).resolve().parents[1] / ".pytest_cache" / "nystra_bench"
"""Kernels are built here, once for all processes, and kept for later runs (``make clean`` removes it)."""

LONGEST = (
    *("tests/notebooks", "tests/test_conformance_command.py", "tests/sweep", "conformance/test_measure.py"),
    *("tests/test_wheel.py", "tests/test_replay_and_verify.py", "tests/kernels", "conformance/test_model.py"),
)
"""Tests that take long, or share what takes long to make."""


def pytest_configure() -> None:
    """Take the place of the user's cache; what was fetched into that one is found all the same."""
    if "NYSTRA_BENCH_CACHE" in os.environ:  # of the user's choice, or set by the process that started this one
        return
    OWN_CACHE.mkdir(parents=True, exist_ok=True)
    for fetched in ("weights", "data"):
        link, there = OWN_CACHE / fetched, cache_folder() / fetched
        if there.is_dir() and not link.is_symlink():
            link.symlink_to(there)
    os.environ["NYSTRA_BENCH_CACHE"] = str(OWN_CACHE)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that at the end all processes have something left to do, and none waits for another."""
    items.sort(key=lambda item: next((n for n, part in enumerate(LONGEST) if part in item.nodeid), len(LONGEST)))


@pytest.fixture(scope="session", autouse=True)
def locks_of_its_own(tmp_path_factory):
    """The folder of the devices' locks."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("locks")
        patch.setenv("NYSTRA_BENCH_LOCKS", str(folder))
        yield folder
