"""The command that fits exponents to what version 5 costs."""

import importlib
from pathlib import Path


def test_a_table_with_exponents(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2]))
    law = importlib.import_module("benchmarks.law_of_cost")
    few = dict(list(law.compared().items())[::3])
    monkeypatch.setattr(law, "compared", lambda: few)
    monkeypatch.setattr("sys.argv", ["law_of_cost.py", "--sides", "4", "6", "8"])
    law.main()
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert "N = 16: ms, MB" in head and len(rows) == len(few) == 2
    for row in rows:
        *_, time, memory, operations, _ = (cell.strip() for cell in row.split("|"))
        assert all("–" in cell for cell in (time, memory, operations))
    assert rows[0].startswith("| sdpa |") and "2.00 (2.00–2.00)" in rows[0]
