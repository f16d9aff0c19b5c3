"""The test sets beside the repository, which some tests need and not every machine has."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"
TESTSETS = SHARED / "data" / "testsets"

needs_testsets = pytest.mark.skipif(not TESTSETS.is_dir(), reason="needs shared/data/testsets beside the repository")
needs_cases = pytest.mark.skipif(not (SHARED / "cases").is_dir(), reason="needs shared/cases beside the repository")
