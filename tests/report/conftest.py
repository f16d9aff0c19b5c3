"""Stores made by hand (``nystra_bench.conformance.synthetic``) in temporary folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from nystra_bench.conformance.synthetic import SyntheticStore


@pytest.fixture(scope="session")
def synthetic_store() -> type[SyntheticStore]:
    """The class, for fixtures that outlive a test."""
    return SyntheticStore


@pytest.fixture
def synthetic(tmp_path: Path) -> SyntheticStore:
    """An empty store in a temporary folder."""
    return SyntheticStore(tmp_path / "results")


@pytest.fixture
def filled(synthetic: SyntheticStore) -> SyntheticStore:
    """A store with the sweep ``demo`` in it."""
    synthetic.fill()
    synthetic.write()
    return synthetic
