"""Whatever goes wrong: the run ends or goes on, nothing that was done is lost, and the numbers are the same in the end.

The faults are entries of ``kinds.FAULTS`` and ``toys.METHODS``. ``python scripts/inject_faults.py`` injects them more
often than is done here, and writes docs/FAULTS.md.
"""

import re
from pathlib import Path
from random import Random

import pytest
from faults.arena import Arena, Ground
from faults.kinds import FAULTS, survive
from faults.methods import run_misbehaving
from faults.toys import METHODS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "FAULTS.md"


@pytest.fixture(scope="session")
def ground(tmp_path_factory):
    return Ground(tmp_path_factory.mktemp("ground of faults"))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.kind)
def test_a_sweep_survives(fault, ground, tmp_path):
    if reason := fault.absent():
        pytest.skip(reason)
    with Arena(tmp_path, ground) as arena:
        survived = survive(fault, arena, Random(fault.kind))
    assert survived, survived


def test_methods_that_misbehave_are_rows_with_their_reasons_and_can_be_measured_once_they_are_mended(ground, tmp_path):
    with Arena(tmp_path, ground) as arena:
        found = run_misbehaving(arena)
    assert found.pop("others") is None
    assert found == {method.name: None for method in METHODS}


def test_the_page_has_all_kinds_and_all_of_them_were_survived():
    rows = re.findall(r"^\| (.+?) \| (\d+) \| (\d+) \| (\d+) \| (.+?) \|$", PAGE.read_text(encoding="utf-8"), re.M)
    kinds = [f"a method that {method.kind}" for method in METHODS] + [fault.kind for fault in FAULTS]
    assert [row[0] for row in rows] == kinds, "python scripts/inject_faults.py writes it"
    for kind, times, survived, lost, equal in rows:
        assert int(times) == int(survived) and (lost, equal) == ("0", "all"), kind
