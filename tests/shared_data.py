"""The test sets beside the repository, which some tests need and not every machine has."""

from pathlib import Path

import pytest

TESTSETS = Path(__file__).resolve().parents[2] / "shared" / "data" / "testsets"

needs_testsets = pytest.mark.skipif(not TESTSETS.is_dir(), reason="needs shared/data/testsets beside the repository")
