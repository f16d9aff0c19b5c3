"""Prints the tables of version 5 and its rivals in docs/RESEARCH.md, from the table.csv of ``+sweep=versions``.

    python scripts/versions_table.py                           # of results/reference/versions.csv and versions_5.5.csv
    python scripts/versions_table.py runs/versions/table.csv   # of a run of one's own

A cell says how far the output is from sdpa's (dB), what the PSNR against the clean image loses (dB), and how many times
as fast as with sdpa the whole model is. The last two columns set the operations of the attention and the peak memory
against sdpa's, from the model with least to the one with most. A later run's rows take the place of an earlier one's;
each is held against the sdpa of its own run.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
RUNS = [ROOT / "results" / "reference" / name for name in ("versions.csv", "versions_5.5.csv")]
SETTING = ["model", "window"]
NATIVE = "native"
"""The position bias of models in their own windows, which have a table for themselves."""


def main() -> None:
    runs = [against_sdpa(pd.read_csv(file)) for file in sys.argv[1:] or RUNS]
    table = pd.concat(runs, ignore_index=True)
    order = {name: place for place, name in reversed([*enumerate(table["method"])])}
    table = table.drop_duplicates([*SETTING, "method"], keep="last")
    table = table.sort_values("method", key=lambda names: names.map(order), kind="stable")
    native = table["bias"] == NATIVE
    for window, rows in (*table[~native].groupby("window"), ("their own", table[native])):
        if len(rows):
            print(f"Windows: {window}\n\n{markdown(rows)}\n")


def against_sdpa(table: pd.DataFrame) -> pd.DataFrame:
    """The replacements, with what they lose and need beside sdpa in the same model and window."""
    sdpa = table[table["attention"] == "sdpa"].set_index(SETTING)
    rows = table[table["attention"] != "sdpa"].join(sdpa.add_suffix("_sdpa"), on=SETTING)
    rows["method"] = [method(row) for _, row in rows.iterrows()]
    rows["lost"] = rows["psnr_sdpa"] - rows["psnr"]
    rows["operations"] = rows["attention_gflops"] / rows["attention_gflops_sdpa"]
    rows["memory"] = rows["peak_memory_mb"] / rows["peak_memory_mb_sdpa"]
    return rows


def method(row: pd.Series) -> str:
    """An attention with the parameters that its rows in the sweep differ in."""
    given = dict(pair.split("=", 1) for pair in str(row["parameters"]).split() if "=" in pair)
    told = [given[name] for name in ("landmarks", "exact_keys") if given.get(name, "None") != "None"]
    return f"`{row['attention']}` {'/'.join(told)}".strip()


def markdown(rows: pd.DataFrame) -> str:
    several = rows.groupby("model")["window"].transform("nunique") > 1
    rows = rows.assign(place=rows["model"] + (", " + rows["window"].astype(str)).where(several, ""))
    places = list(dict.fromkeys(rows["place"]))
    lines = [f"| {' | '.join(['', *places, 'operations', 'memory'])} |", "|---" * (len(places) + 3) + "|"]
    for name, of in rows.groupby("method", sort=False):
        cells = {row["place"]: cell(row) for _, row in of.iterrows()}
        told = [cells.get(place, "") for place in places]
        lines.append(f"| {' | '.join([name, *told, span(of['operations']), span(of['memory'])])} |")
    return "\n".join(lines)


def cell(row: pd.Series) -> str:
    if row["kernel"] == "exact":
        return "exact"
    numbers = f"{row['deviation_psnr']:.1f}", f"{row['lost']:.2f}", f"{row['speedup_vs_sdpa']:.2f}"
    return ", ".join(numbers).replace("-", "−")


def span(values: pd.Series) -> str:
    """``0.4 to 0.5``, or one number where both round to the same; of what was measured."""
    if values.isna().all():
        return ""
    low, high = f"{values.min():.2g}", f"{values.max():.2g}"
    return low if low == high else f"{low} to {high}"


if __name__ == "__main__":
    main()
