"""The README's figures are those of the reference runs, and its sentences are true of them."""

from __future__ import annotations

import pandas as pd
import pytest
from script_modules import script

readme = script("readme_tables")


def test_the_readme_holds_what_the_reference_runs_say():
    text = readme.README.read_text(encoding="utf-8")
    assert readme.filled(text) == text, "python scripts/readme_tables.py writes it"


def test_a_sentence_that_a_new_run_contradicts_is_not_written(tmp_path, monkeypatch):
    table = pd.read_csv(readme.REFERENCE / "denoise.csv")
    table.loc[table.attention == "nystra", "deviation_psnr"] = 60.0
    table.to_csv(tmp_path / "denoise.csv", index=False)
    monkeypatch.setattr(readme, "REFERENCE", tmp_path)
    with pytest.raises(SystemExit, match="no longer true.*farther than no attention"):
        readme.denoise_says()


def test_other_numbers_make_another_readme(tmp_path, monkeypatch):
    table = pd.read_csv(readme.REFERENCE / "denoise.csv")
    table["psnr"] += 0.01
    table.to_csv(tmp_path / "denoise.csv", index=False)
    before = readme.denoise()
    monkeypatch.setattr(readme, "REFERENCE", tmp_path)
    assert readme.denoise() != before


def test_a_part_without_its_marks_is_told():
    with pytest.raises(SystemExit, match=f"<!-- {next(iter(readme.PARTS))} -->"):
        readme.filled("# A page without marks")
