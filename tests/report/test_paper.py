"""The paper's tables: every published number once, beside what was measured, or why it was not."""

import re
import shutil
import subprocess
from collections import Counter

import pandas as pd
import pytest

from nystra_bench.configuration import Catalogue, configs_folder, instantiate
from nystra_bench.report.build import build_report
from nystra_bench.report.published import published, select, stands_for
from nystra_bench.report.reading import load
from nystra_bench.report.tables.paper import OfPaper, PaperTable, StandIns

CATALOGUE = Catalogue([configs_folder()])
TABLES = {name: instantiate(CATALOGUE.option("table", name)) for name in CATALOGUE.names("table")}
TABLES = {name: table for name, table in TABLES.items() if isinstance(table, OfPaper)}
PAPER = {name: table for name, table in TABLES.items() if isinstance(table, PaperTable)}

NYSTRA = {"guard": 5.0, "init": "global", "iterations": 6, "landmarks": 32}
MODEL = {"name": "random_uformer_b", "weights": "ab" * 32, "version": "1", "native_window": 8, "untrained": "seed 0"}
PAPERS = {"model": MODEL, "window": 64, "position_bias": "drop"}
SIDD = {"name": "sidd", "version": "1", "dataset": None, "data": None, "params": {}}
OFFICIAL = {"name": "uformer_b_sidd", "weights": None, "version": None, "native_window": None}
REMEDY = "model.weights=uformer-b-sidd is not on this machine: run python -m nystra_bench.fetch uformer-b-sidd"
COMPANIONS = {
    "exact": [400.0, 410.0, 390.0],
    "exact_again": [401.0, 408.0, 391.0],
    "sdpa": [200.0, 200.0, 200.0],
    "identity": [100.0, 100.0, 100.0],
    "native": [160.0, 160.0, 160.0],
}


def image_of(side: int) -> dict:
    name = {"name": "denoise", "version": "1", "dataset": "astronaut", "params": {"sigma": 25.0, "seed": 0}}
    return {"task": name | {"data": f"{side:064d}"}}


def timed(store, side: int, attention: str, params: dict, samples: list[float]) -> None:
    cell = store.cell("latency", attention, params, **PAPERS, **image_of(side))
    store.latency(cell, samples, COMPANIONS, (side, side))


@pytest.fixture
def data(synthetic):
    """Uformer-B timed at 512 with exact and nystra, planned at 256, and SIDD skipped."""
    timed(synthetic, 512, "exact", {}, COMPANIONS["exact"])
    timed(synthetic, 512, "nystra", NYSTRA, [80.0, 82.0, 78.0])
    timed(synthetic, 512, "nystra", NYSTRA | {"landmarks": 16}, [1.0, 1.0, 1.0])
    for attention, params in (("exact", {}), ("nystra", NYSTRA)):
        synthetic.cell("latency", attention, params, **PAPERS, **image_of(256))
        about = {"model": OFFICIAL, "window": 64, "position_bias": "drop", "task": SIDD}
        synthetic.skip(synthetic.cell("quality", attention, params, **about), REMEDY)
    return load(synthetic.write(), synthetic.sweep)


# --------------------------------------------------------------------------- the published numbers


def test_the_numbers_are_all_there():
    numbers = published()
    assert dict(Counter(numbers["table"])) == {"II": 16, "III": 36, "IV": 8, "V": 12, "VI": 11, "VII": 12}
    assert numbers["value"].notna().all() and set(numbers["method"]) > {"original", "pnp_nystra"}


def test_the_table_of_every_number_is_one_of_ours():
    assert {table.number for table in PAPER.values()} == set(published()["table"])


@pytest.mark.parametrize("name", PAPER)
def test_its_settings_hold_every_number_of_the_table_once(name):
    table = PAPER[name]
    held = pd.concat([select({"table": table.number, **s["published"]}) for s in table.settings])
    assert sorted(held.index) == sorted(select({"table": table.number}).index)
    assert all(("measured" in setting) != ("lacks" in setting) for setting in table.settings)


def test_what_the_papers_methods_are_here():
    assert stands_for("original", {"landmarks": 16}) == ("exact", {})
    assert stands_for("pnp_nystra", {"landmarks": 16}) == ("nystra", {"init": "global", "landmarks": 16})
    bracketed = stands_for("pnp_nystra[landmarks=8,iterations=6]", {"landmarks": 16})
    assert bracketed == ("nystra", {"init": "global", "landmarks": 8, "iterations": 6})


def test_a_setting_that_published_csv_does_not_hold_is_an_error():
    with pytest.raises(ValueError, match="holds nothing of"):
        select({"table": "II", "dataset": "Set5"})
    with pytest.raises(ValueError, match="no column"):
        select({"tabel": "II"})


# --------------------------------------------------------------------------- published beside measured


def of(frame: pd.DataFrame, **where) -> pd.Series:
    for column, value in where.items():
        frame = frame[frame[column] == value]
    assert len(frame) == 1
    return frame.iloc[0]


def test_published_and_measured_stand_in_one_row(data):
    frame = TABLES["paper_table2"].table(data)
    assert len(frame) == 16
    original = of(frame, resolution="512x512", device="cpu", method="original")
    assert (original["published"], original["measured"]) == (5760, 400)
    assert original["ratio"] == pytest.approx(400 / 5760) and original["status"] == "done"
    assert of(frame, resolution="512x512", device="cpu", method="pnp_nystra")["measured"] == 80


def test_what_was_not_measured_says_why(data):
    frame = TABLES["paper_table2"].table(data)
    assert of(frame, resolution="256x256", device="cpu", method="original")["remark"] == "not yet measured"
    assert "GPU" in of(frame, resolution="512x512", device="gpu", method="original")["remark"]
    sidd = of(frame, dataset="SIDD", method="pnp_nystra", metric="psnr")
    assert (sidd["status"], sidd["remark"]) == ("skipped", REMEDY) and pd.isna(sidd["measured"])
    assert of(frame, dataset="BSDS200", method="original", metric="ssim")["remark"].startswith("published.csv states")


def test_each_reason_is_written_once_below_the_table(data):
    table = TABLES["paper_table2"]
    grid, notes = table.readable(data), table.notes(data)
    assert len(grid.rows) == 16
    texts = [[cell.text for cell in row] for row in grid.rows]
    assert ["512x512", "cpu", "original", "latency", "5760 ms", "400 ms", "×0.07", "–"] in texts
    marks = {row[-1] for row in texts} - {"–"}
    assert all(sum(note.startswith(f"{mark}: ") for note in notes) == 1 for mark in marks)
    assert any("random_uformer_b are random" in note for note in notes)


def test_quality_is_compared_by_its_difference(synthetic):
    cells = {"model": OFFICIAL | {"weights": "cd" * 32}, "window": 64, "position_bias": "drop"}
    task = {"task": SIDD | {"data": "ef" * 32, "dataset": "sidd-validation"}}
    for name, params, psnr in (("exact", {}, 39.0), ("nystra", NYSTRA, 38.0)):
        cell = synthetic.cell("quality", name, params, **cells, **task)
        synthetic.quality(cell, [{"psnr_rgb": psnr, "ssim_rgb": 0.9}, {"psnr_rgb": psnr + 1, "ssim_rgb": 0.9}])
    data = load(synthetic.write(), synthetic.sweep)
    row = of(TABLES["paper_table2"].table(data), dataset="SIDD", method="pnp_nystra", metric="psnr")
    assert row["measured"] == 38.5 and row["difference"] == pytest.approx(38.5 - 37.73)
    assert row["remark"] == "the mean over 2 images"
    lost = of(TABLES["paper_table7"].table(data), method="pnp_nystra[landmarks=32,iterations=6]", metric="psnr_drop")
    assert lost["measured"] == pytest.approx(1) and lost["published"] == 1.16


def test_the_papers_speed_ups_stand_beside_ours(data):
    frame = TABLES["paper_timings"].table(data)
    row = of(frame, setting="random_uformer_b, 512x512", method="nystra (32 landmarks, 6 iterations)")
    assert row["paper_speedup"] == pytest.approx(5760 / 1580)
    assert row["speedup_vs_exact"] == pytest.approx(5.0) and row["speedup_ratio"] == pytest.approx(5 * 1580 / 5760)
    assert row["speedup_vs_native"] == pytest.approx(2.0)
    exact = of(frame, setting="random_uformer_b, 512x512", method="exact")
    assert exact["attention_share"] == pytest.approx(0.75) and exact["paper_latency_ms"] == 5760
    other = of(frame, setting="random_uformer_b, 512x512", method="nystra (16 landmarks, 6 iterations)")
    assert pd.isna(other["paper_speedup"])  # the paper's number is of 32 landmarks
    untimed = of(frame, setting="random_uformer_b, 256x256", method="nystra")
    assert untimed["paper_speedup"] == pytest.approx(5.25) and untimed["status"] == "missing: not yet measured"


def test_the_papers_speed_ups_are_those_that_it_claims():
    table = TABLES["paper_timings"]
    claimed = {"256x256": 5.25, "512x512": 3.65, "768x768": 1.87, "288x288": 2.22, "160x160": 3.00, "96x96": 3.17}
    found = {s["input"]: table._paper(s, "nystra", stands_for("pnp_nystra", s["nystra"])[1], "cpu")["paper_speedup"]
             for s in table.settings if "published" in s}  # fmt: skip
    assert found == pytest.approx(claimed, abs=0.01)


def test_a_table_of_other_models_holds_no_published_number(data, synthetic):
    for name, table in TABLES.items():
        if isinstance(table, StandIns):
            assert table.nothing(data) and not table.missed(data)
            assert not set(table.models) & {m for t in TABLES.values() if not isinstance(t, StandIns) for m in t.models
                                            if not m.startswith("dehazeformer")}, name  # fmt: skip
    about = PAPERS | {"model": {"name": "uformer_denoise", "weights": "01" * 32}}
    for name, params in (("exact", {}), ("nystra", NYSTRA), ("nystra", NYSTRA | {"landmarks": 8})):
        cell = synthetic.cell("quality", name, params, **about)
        synthetic.quality(cell, [{"psnr_rgb": 30.0 - len(params), "ssim_rgb": 0.9}])
    filled = load(synthetic.write(), synthetic.sweep)
    frame = TABLES["paper_table2_bundled"].table(filled)
    assert list(frame["psnr_lost"]) == [0, 4] and "published" not in frame
    assert list(TABLES["paper_table7_bundled"].table(filled)["landmarks"].dropna()) == [32, 8]
    assert TABLES["paper_table2"].table(filled)["measured"].eq(30.0).sum() == 0


def test_tables_of_another_sweep_are_left_out(filled):
    data = load(filled.results, "demo")
    for table in TABLES.values():
        assert table.nothing(data) and not table.missed(data)


# --------------------------------------------------------------------------- LaTeX


@pytest.fixture
def sources(data, synthetic) -> dict[str, str]:
    """The .tex files of all tables of the paper that the data fill."""
    chosen = {name: CATALOGUE.option("table", name) for name in TABLES}
    build_report(synthetic.results, synthetic.sweep, {"tables": chosen, "figures": {}}, "", CATALOGUE)
    return {file.stem: file.read_text() for file in (synthetic.results / synthetic.sweep).glob("*.tex")}


def test_the_latex_is_well_formed(sources):
    assert {"paper_table2", "paper_timings", "paper_table7"} <= set(sources)
    for name, text in sources.items():
        bare = re.sub(r"\\[{}&%$#_]", "", text)
        assert bare.count("{") == bare.count("}"), name
        assert Counter(re.findall(r"\\begin\{(\w+\*?)\}", text)) == Counter(re.findall(r"\\end\{(\w+\*?)\}", text))
        (layout,) = re.findall(r"\\begin\{tabular\}\{([lr]+)\}", bare)
        body = bare.partition(r"\toprule")[2].partition(r"\bottomrule")[0]
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert len(rows) >= 2 and {line.count("&") + 1 for line in rows} == {len(layout)}, name
        assert text.index(r"\toprule") < text.index(r"\midrule") < text.index(r"\bottomrule")
        assert not re.search(r"(?<!\\)[%#]", bare.partition("\n")[2].replace("{!}{%", "")), name
        assert all(ord(letter) < 0x180 for letter in text), name


def test_the_latex_compiles(sources, tmp_path):
    compiler = next(filter(shutil.which, ("pdflatex", "tectonic")), None)
    if compiler is None:
        pytest.skip("neither pdflatex nor tectonic is on this machine")
    body = "\n".join(sources.values())
    packages = "\\usepackage[utf8]{inputenc}\n\\usepackage{booktabs,graphicx}"
    document = f"\\documentclass{{article}}\n{packages}\n\\begin{{document}}\n{body}\n\\end{{document}}\n"
    (tmp_path / "tables.tex").write_text(document)
    options = ["-interaction=nonstopmode", "-halt-on-error"] if compiler == "pdflatex" else []
    run = subprocess.run([compiler, *options, "tables.tex"], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-2000:]
    assert (tmp_path / "tables.pdf").stat().st_size > 1000
