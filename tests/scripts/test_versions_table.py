"""Tables of docs/RESEARCH.md, made of reference runs: a later run's rows take the place of an earlier one's."""

import pandas as pd
import pytest
from script_modules import script

KEYS = "bias_rank=8 landmarks=32 exact_keys=64"


@pytest.fixture(scope="module")
def versions_table():
    return script("versions_table")


def row(attention: str, deviation: float, speed: float, **changes) -> dict:
    plain = {"model": "swin", "window": "32", "bias": "interpolate", "parameters": None, "kernel": None, "psnr": 30.0}
    costs = {"attention_gflops": 10.0, "peak_memory_mb": 100.0}
    return plain | costs | {"attention": attention, "deviation_psnr": deviation, "speedup_vs_sdpa": speed} | changes


def printed(versions_table, monkeypatch, capsys, tmp_path, *runs: list[dict]) -> list[list[str]]:
    files = [tmp_path / f"{n}.csv" for n in range(len(runs))]
    for file, rows in zip(files, runs, strict=True):
        pd.DataFrame(rows).to_csv(file, index=False)
    monkeypatch.setattr("sys.argv", ["versions_table", *map(str, files)])
    versions_table.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_a_row_is_held_against_sdpa(versions_table, monkeypatch, capsys, tmp_path):
    ours = row("v5", 50.0, 2.0, parameters=KEYS, psnr=29.9, attention_gflops=4.0, peak_memory_mb=50.0)
    found = printed(versions_table, monkeypatch, capsys, tmp_path, [row("sdpa", float("inf"), 1.0), ours])
    assert found[0] == ["", "swin", "operations", "memory"]
    assert found[2:] == [["`v5` 32/64", "50.0, 0.10, 2.00", "0.4", "0.5"]]


def test_a_later_run_takes_the_place_of_an_earlier_one(versions_table, monkeypatch, capsys, tmp_path):
    sdpa = row("sdpa", float("inf"), 1.0)
    earlier = [sdpa, row("v5", 50.0, 2.0), row("avggt", 40.0, 3.0)]
    later = [sdpa | {"psnr": 31.0}, row("v5", 60.0, 2.5, psnr=31.5)]
    found = printed(versions_table, monkeypatch, capsys, tmp_path, earlier, later)
    assert [line[:2] for line in found[2:]] == [["`v5`", "60.0, −0.50, 2.50"], ["`avggt`", "40.0, 0.00, 3.00"]]


def test_what_ran_exactly_says_so_and_models_as_released_have_a_table(versions_table, monkeypatch, capsys, tmp_path):
    rows = [row("sdpa", float("inf"), 1.0), row("v5", 140.0, 1.0, kernel="exact")]
    rows += [r | {"model": "dat", "window": "8×32", "bias": "native"} for r in rows]
    found = printed(versions_table, monkeypatch, capsys, tmp_path, rows)
    assert [line for line in found if line[0] == "`v5`"] == 2 * [["`v5`", "exact", "1", "1"]]
    assert [line[1] for line in found if not line[0]] == ["swin", "dat"]
