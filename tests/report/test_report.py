"""The report on a synthetic store: numbers against those computed by hand, escaping, and that nothing is lost."""

from __future__ import annotations

import html
import json
import logging
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hydra.utils import instantiate
from matplotlib.figure import Figure

from nystra_bench.conformance.synthetic import CASES
from nystra_bench.errors import UserError
from nystra_bench.report import columns, plotting, reading
from nystra_bench.report.build import build_report
from nystra_bench.report.markup import latex_escape, markdown_escape
from nystra_bench.report.reading import load
from nystra_bench.report.wording import group_label

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"


USUAL = ("bound", "landmarks", "panel", "pareto")
"""Figures of quality, latency and spectral errors."""

OWN_CASES = {"layer_errors": "by_layer", "propagation": "by_layer", "scaling": "without_models"}
"""Figures of what ``SyntheticStore.fill`` does not hold, with the case that does."""


def options(kind: str) -> dict[str, dict]:
    return {path.stem: yaml.safe_load(path.read_text()) for path in sorted((CONFIGS / kind).glob("*.yaml"))}


def plugins() -> dict:
    return {"tables": options("table"), "figures": options("figure")}


def row_of(frame: pd.DataFrame, attention: str, **values) -> pd.Series:
    """The one row of an attention with these values."""
    chosen = frame[frame["attention"] == attention]
    for name, value in values.items():
        chosen = chosen[chosen[name] == value]
    assert len(chosen) == 1
    return chosen.iloc[0]


@pytest.fixture
def data(filled):
    return load(filled.results, "demo")


@pytest.fixture(scope="module")
def report(tmp_path_factory, synthetic_store):
    """The folder of a whole report, drawn once."""
    store = synthetic_store(tmp_path_factory.mktemp("report") / "results")
    store.fill()
    store.write()
    page = build_report(store.results, "demo", plugins(), "mode: run  # <b>&\n").page
    assert page == store.results / "demo" / "report.html"
    return page.parent


# ---------------------------------------------------------------- numbers


def test_the_columns_are_those_of_the_schema_in_its_order(report, data):
    table = re.search(r"## `table.csv`.*", (ROOT / "docs" / "SCHEMA.md").read_text(), re.S).group()
    documented = [name for line in table.splitlines() if line.startswith("| `")
                  for name in re.findall(r"`([^`]+)`", line.split("|")[1])]  # fmt: skip
    written = list(pd.read_csv(report / "table.csv").columns)
    # The intervals are documented once for the three ratios.
    expected = [name for name in documented if "…" not in name]
    assert [name for name in written if name in expected] == expected
    assert written[: len(data.names)] == data.names
    assert {f"speedup_vs_{r}_{end}" for r in ("exact", "sdpa", "native") for end in ("low", "high")} < set(written)
    assert written[len(data.names) :] == ["lpips2", "measure_parameters", "task_parameters"]


def test_quality_is_the_mean_over_the_images(data):
    row = row_of(data.frame, "nystra", landmarks=16)
    assert (row["psnr"], row["deviation_psnr"], row["input_psnr"], row["images"]) == (28.0, 32.0, 20.0, 2)
    assert row["ssim"] == pytest.approx(0.85) and row["lpips2"] == pytest.approx(0.2)
    per_image = data.images[(data.images["row"] == row.name) & (data.images["metric"] == "psnr")]
    assert list(per_image["value"]) == [27.0, 29.0] and list(per_image["image"]) == ["image0", "image1"]


def test_infinity_survives_the_store_and_the_csv(report, data):
    assert row_of(data.frame, "exact")["deviation_psnr"] == float("inf")
    assert row_of(pd.read_csv(report / "table.csv"), "exact")["deviation_psnr"] == float("inf")


def test_latencies_are_medians_and_speedups_paired_ratios(data):
    row = row_of(data.frame, "nystra", landmarks=16)
    assert (row["latency_ms"], row["latency_iqr_ms"], row["first_ms"], row["floor_ms"]) == (80.0, 1.0, 160.0, 60.0)
    assert row["setup_ms"] == 5.0
    # 400/80, 410/82, 390/78, 400/80 are 5, and 405/81 too.
    assert [row[f"speedup_vs_exact{end}"] for end in ("", "_low", "_high")] == [5.0, 5.0, 5.0]
    assert row["speedup_vs_sdpa"] == np.median([150 / 80, 152 / 82, 149 / 78, 150 / 80, 151 / 81])
    assert row["speedup_vs_native"] == np.median([90 / 80, 91 / 82, 90 / 78, 89 / 80, 90 / 81])
    assert row["noise_low"] <= 1 <= row["noise_high"]
    assert (row["peak_memory_mb"], row["gflops"], row["attention_gflops"]) == (512.0, 12.5, 3.1)


def test_the_native_model_is_the_exact_attention_where_the_session_is_native(synthetic):
    companions = {name: samples for name, samples in synthetic.companions.items() if name != "native"}
    for bias in ("native", "drop"):
        cell = synthetic.cell("latency", "exact", position_bias=bias)
        synthetic.latency(cell, synthetic.companions["exact"], companions)
    frame = load(synthetic.write(), "demo").frame
    assert row_of(frame, "exact", bias="native")["speedup_vs_native"] == 1.0
    assert np.isnan(row_of(frame, "exact", bias="drop")["speedup_vs_native"])


def test_a_companion_of_other_rounds_gives_no_ratio(synthetic):
    cell = synthetic.cell("latency", "nystra", synthetic.nystra)
    synthetic.latency(cell, [1.0, 2.0], {"exact": [1.0], "sdpa": [2.0, 4.0]})
    row = load(synthetic.write(), "demo").frame.iloc[0]
    assert np.isnan(row["speedup_vs_exact"]) and row["speedup_vs_sdpa"] == 2.0 and np.isnan(row["noise_low"])


# ---------------------------------------------------------------- rows and statuses


def test_every_configuration_is_a_row_however_it_ended(data):
    statuses = dict(zip(data.frame["attention"] + data.frame["parameters"], data.frame["status"], strict=True))
    assert len(statuses) == 9
    assert statuses["refuser"] == "skipped" and statuses["broken"] == "failed"
    assert statuses["half"] == "missing" and statuses["identity"] == "unstable" and statuses["exact"] == "done"
    reasons = data.frame.set_index("attention")["reason"]
    assert reasons["half"] == "latency: not yet measured" and reasons["identity"] == "latency: spread 12 %"
    assert reasons["refuser"] == "refuses <windows> | of 32"
    assert pd.isna(reasons["exact"])


@pytest.mark.parametrize(
    ("statuses", "worst"),
    [(("done", "unstable"), "unstable"), (("missing", "unstable"), "missing"), (("failed", "missing"), "failed"),
     (("skipped", "done"), "skipped"), (("crashed", "oom"), "crashed")],
)  # fmt: skip
def test_the_worst_status_is_the_rows(synthetic, statuses, worst):
    for measure, status in zip(("latency", "memory"), statuses, strict=True):
        cell = synthetic.cell(measure, "exact")
        if status == "skipped":
            synthetic.skip(cell, "no")
        elif status in ("done", "unstable"):
            value = {"samples_ms": [1.0]} if measure == "latency" else {"peak_mb": 1.0}
            synthetic._save(cell, value, status=status, reason=None)
        elif status != "missing":
            synthetic.store.fail(cell, status, "why")
    frame = load(synthetic.write(), "demo").frame
    assert list(frame["status"]) == [worst]


def test_a_parameter_without_a_column_makes_another_row(data):
    both = data.frame[(data.frame["attention"] == "nystra") & (data.frame["landmarks"] == 8)]
    assert [text.split()[1] for text in both["parameters"]] == ["init=global", "init=matrix"]
    assert list(data.details.loc[both.index, "settings"]) == ["init=global", "init=matrix"]


def test_models_and_data_of_one_name_are_told_apart(synthetic):
    for digest in ("11" * 32, "22" * 32):
        model = {"name": "mine", "weights": digest, "version": "1", "native_window": 8}
        synthetic.memory(synthetic.cell("memory", "exact", model=model))
    assert list(load(synthetic.write(), "demo").frame["model"]) == ["mine@11111111", "mine@22222222"]


def test_the_same_measurement_on_other_hardware_is_another_row(synthetic):
    for hardware, peak in (("a", 1.0), ("b", 2.0)):
        synthetic.memory(synthetic.cell("memory", "exact", settings={"hardware": hardware}), peak)
    frame = load(synthetic.write(), "demo").frame
    assert list(frame["peak_memory_mb"]) == [1.0, 2.0] and list(frame["hardware"]) == ["a", "b"]


def test_costs_of_several_machines_stand_beside_the_quality_that_is_the_same_on_all(synthetic):
    synthetic.quality(synthetic.cell("quality", "exact"), [{"psnr": 30.0}])
    for hardware in "ab":
        synthetic.memory(synthetic.cell("memory", "exact", settings={"hardware": hardware}), 1.0)
    data = load(synthetic.write(), "demo")
    assert list(data.frame["hardware"]) == ["a", "b"] and data.frame["psnr"].notna().all()
    assert data.frame["psnr"].nunique() == 1
    assert "hardware=b" in group_label(data.frame.iloc[1])
    assert list(data.names).index("hardware") == list(data.names).index("dtype") + 1


def test_one_machine_needs_no_column(synthetic):
    synthetic.quality(synthetic.cell("quality", "identity"), [{"psnr": 30.0}])
    for name in ("exact", "nystra"):
        synthetic.memory(synthetic.cell("memory", name, settings={"hardware": "a"}), 1.0)
    frame = load(synthetic.write(), "demo").frame
    assert "hardware" not in frame and list(frame["attention"]) == ["identity", "exact", "nystra"]


def test_what_this_machine_skips_and_another_has_measured_is_shown(synthetic):
    cell = synthetic.cell("memory", "exact")
    synthetic.memory(cell, 3.0)
    results = synthetic.write()
    plan = json.loads((results / "demo" / "cells.json").read_text())
    plan["cells"][0] |= {"status": "skipped", "reason": "PyTorch finds no CUDA GPU on this machine"}
    (results / "demo" / "cells.json").write_text(json.dumps(plan))
    (row,) = load(results, "demo").frame.to_dict("records")
    assert (row["peak_memory_mb"], row["status"]) == (3.0, "done")


def test_a_sweep_that_was_never_planned_is_a_mistake_of_the_user(tmp_path):
    with pytest.raises(UserError, match="name=nothing.*cells.json"):
        load(tmp_path, "nothing")


def test_panels_give_input_clean_and_outputs(data):
    (panel,) = data.panels()
    assert panel.image == "image0" and len(panel.outputs) == 6
    assert panel.clean().shape == (48, 64, 3) == panel.output(next(iter(panel.outputs))).shape
    assert panel.input().dtype == np.float32 and not np.array_equal(panel.input(), panel.clean())


# ---------------------------------------------------------------- files


def test_a_long_form_that_is_put_together_in_pieces_is_the_same(synthetic, monkeypatch):
    for n in range(4):
        synthetic.quality(synthetic.cell("quality", "nystra", {"landmarks": n}), [{"psnr": 30.0 + n, "ssim": 0.5}] * 2)
    results = synthetic.write()
    whole = load(results, "demo").images
    monkeypatch.setattr(reading, "PIECE", 3)
    pd.testing.assert_frame_equal(load(results, "demo").images, whole)
    assert len(whole) == 4 * 2 * 4


def test_of_very_many_rows_people_are_shown_the_first_and_the_csv_has_all(data, report, monkeypatch, tmp_path):
    monkeypatch.setattr(columns, "MOST_ROWS", 2)
    grid = columns.readable_table(data, data.frame, ["attention", "psnr", "status"])
    assert [row[0].text for row in grid.rows] == list(data.frame["attention"].head(2))
    assert grid.shared.startswith(f"The first 2 of {len(data.frame)} rows; the CSV file has all.")
    assert len(pd.read_csv(report / "table.csv")) == len(data.frame) > 2


def test_all_files_are_there(report):
    files = {path.name for path in report.iterdir()}
    assert files >= {"table.csv", "table.md", "table.tex", "report.html", "config.yaml", "environment.json", "figures"}
    assert not [name for name in files if name.startswith(".")], "temporary files are left"
    assert json.loads((report / "environment.json").read_text()) == [{"cpu": "toy & co"}]
    for name in set(options("figure")) - set(OWN_CASES):
        for ending in ("png", "svg"):
            assert list((report / "figures").glob(f"{name}*.{ending}")), f"{name} has no {ending}"


class _Links(HTMLParser):
    """Everything that a page would fetch."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attributes):
        self.found += [value for name, value in attributes if name in ("src", "href", "srcset", "data") and value]


def test_the_page_needs_nothing_else_and_is_small(report):
    page = (report / "report.html").read_text()
    links = _Links()
    links.feed(page)
    assert links.found and all(link.startswith("data:image/") for link in links.found)
    assert not re.search(r"@import|url\(|https?://", page)
    assert len(page) < 8e6


def test_the_page_escapes_what_users_give(report):
    page = (report / "report.html").read_text()
    escaped = ["a&lt;b&gt;&amp;|_%", "&lt;windows&gt;", "&lt;b&gt;luck", "&lt;weights&gt;", "# &lt;b&gt;&amp;"]
    for text in escaped:
        assert text in page and html.unescape(text) not in page


def test_the_page_says_what_is_not_done_and_how_it_was_measured(report):
    page = (report / "report.html").read_text()
    for text in ("not yet measured", "spread 12 %", "RuntimeError: no", "exact attention against itself gives",
                 "sign test", "Three originals", "rounded to 8 bits", "toy &amp; co"):  # fmt: skip
        assert text in page, text


def test_markdown_has_units_equal_cells_and_the_noise_floor(report):
    text = (report / "table.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert "deviation PSNR (dB)" in rows[0] and len(rows) == 2 + 9
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
    assert "Noise floor (A/A)" in text and "a&lt;b&gt;&amp;\\|_%" in text


def test_latex_has_balanced_cells_and_booktabs(report):
    text = (report / "table.tex").read_text()
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")].splitlines()[1:]
    layout = re.search(r"\\begin\{tabular\}\{(\w+)\}", text).group(1)
    assert len(body) == 9
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {len(layout) - 1}
    assert r"a\textless{}b\textgreater{}\&\textbar{}\_\%" in text and "Noise floor" in text
    assert not re.search(r"(?<!\\)[_%#]", "\n".join(body)) and "∞" not in text


def test_escaping():
    assert latex_escape(r"\a{b}_c^~") == r"\textbackslash{}a\{b\}\_c\textasciicircum{}\textasciitilde{}"
    assert markdown_escape("a|b\n`<i>`") == "a\\|b \\`&lt;i&gt;\\`"


def test_the_same_data_gives_the_same_files(filled, tmp_path):
    chosen = {"tables": options("table"), "figures": {"landmarks": options("figure")["landmarks"]}}
    pages = []
    for _ in range(2):
        folder = build_report(filled.results, "demo", chosen, "").page.parent
        pages.append({p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()})
    assert pages[0] == pages[1]


def test_a_broken_plugin_loses_nothing_else(filled, caplog):
    chosen = plugins()
    chosen["figures"] = {"landmarks": chosen["figures"]["landmarks"], "bad<i>": {"_target_": "nowhere.Missing"}}
    chosen["tables"]["worse"] = options("table")["main"] | {"title": "Worse", "columns": 3}
    with caplog.at_level(logging.ERROR, "nystra_bench"):
        page = build_report(filled.results, "demo", chosen, "").page.read_text()
    assert "Figure bad&lt;i&gt; failed" in page and "Table worse failed" in page and "MainTable" in page
    assert "nowhere" in page and "Deviation against landmarks" in page and 'id="grid-1"' in page
    assert "Traceback" in caplog.text
    assert (filled.results / "demo" / "table.csv").is_file()


def test_a_name_is_never_read_as_a_formula(synthetic):
    synthetic.quality(synthetic.cell("quality", r"$\frac{$", synthetic.nystra), [{"deviation_psnr": 30.0}])
    synthetic.latency(synthetic.cell("latency", r"$\frac{$", synthetic.nystra), [10.0], {})
    page = build_report(synthetic.write(), "demo", plugins(), "").page.read_text()
    assert "failed." not in page and "figures/pareto" in page


def test_a_figure_that_is_gone_does_not_stay_in_the_folder(filled):
    folder = filled.results / "demo" / "figures"
    chosen = {"figures": {"landmarks": options("figure")["landmarks"]}}
    build_report(filled.results, "demo", chosen, "")
    stale, foreign = folder / "landmarks-old.png", folder / "landmarks_of_mine.png"
    stale.touch()
    foreign.touch()
    build_report(filled.results, "demo", chosen, "")
    assert not stale.exists() and foreign.exists() and len(list(folder.glob("landmarks-*.png"))) == 1


def test_an_unmeasured_sweep_has_a_report(synthetic):
    synthetic.cell("quality", "exact")
    page = build_report(synthetic.write(), "demo", plugins(), "").page.read_text()
    assert "not yet measured" in page and "is not drawn" in page and "failed." not in page


# ---------------------------------------------------------------- plug-ins


@pytest.mark.parametrize("name", options("figure"))
def test_every_figure_draws(synthetic, name):
    CASES[OWN_CASES.get(name, "full")](synthetic)
    figure, data = instantiate(options("figure")[name]), load(synthetic.write(), "demo")
    with plotting.style():
        drawn = figure.draw(data)
    assert drawn and all(isinstance(suffix, str) and isinstance(f, Figure) for suffix, f in drawn)
    assert figure.title and figure.caption(data)


@pytest.mark.parametrize("name", options("figure"))
@pytest.mark.parametrize("left", ["nothing", "only infinities", "one row"])
def test_every_figure_bears_little_data(synthetic, name, left):
    if left == "one row":
        quality = synthetic.cell("quality", "nystra", synthetic.nystra)
        synthetic.quality(quality, [{"psnr": 30.0, "deviation_psnr": 30.0}])
        synthetic.latency(synthetic.cell("latency", "nystra", synthetic.nystra), [10.0], {})
    elif left == "only infinities":
        image = np.zeros((8, 8, 3))
        for attention in ("exact", "other"):
            infinite = [{"psnr": float("inf"), "deviation_psnr": float("inf")}]
            synthetic.quality(synthetic.cell("quality", attention, synthetic.nystra), infinite, image)
            synthetic.latency(synthetic.cell("latency", attention, synthetic.nystra), [10.0, 10.0], {})
    figure = instantiate(options("figure")[name])
    loaded = load(synthetic.write(), "demo")
    drawn = figure.draw(loaded)
    for _, shown in drawn:
        shown.draw_without_rendering()
    assert drawn or figure.nothing(loaded)
    if name in USUAL:
        assert bool(drawn) == (left != "nothing" and (left, name) != ("one row", "panel") and name != "bound")


def test_infinite_deviations_are_drawn_on_a_labelled_line(data):
    figure = instantiate(options("figure")["pareto"])
    ((_, drawn),) = figure.draw(data)
    axes = drawn.axes[0]
    labels = [tick.get_text() for tick in axes.get_yticklabels()]
    level = axes.get_yticks()[-1]
    assert "identical" in labels[-1] and level > 32
    marks = {tuple(line.get_xydata()[0]) for line in axes.lines if len(line.get_xydata()) == 1}
    assert (400.0, level) in marks, "exact attention is not on the line"


def test_single_points_have_the_letter_of_the_legend_and_lines_their_landmarks(synthetic):
    methods = [("nystra", synthetic.nystra | {"landmarks": m}) for m in (8, 16)]
    methods += [(name, {}) for name in ("one", "two", "exact")]
    for place, (name, params) in enumerate(methods):
        synthetic.quality(synthetic.cell("quality", name, params), [{"psnr": 30.0, "deviation_psnr": 30.0 + place}])
        synthetic.latency(synthetic.cell("latency", name, params), [10.0 + place], {})
    with plotting.style():
        ((_, drawn),) = instantiate(options("figure")["pareto"]).draw(load(synthetic.write(), "demo"))
    texts = [text.get_text() for text in drawn.axes[0].texts]
    assert sorted(texts) == ["16", "8", "A", "B", "exact"]
    legend = [text.get_text() for text in drawn.legends[0].get_texts()]
    assert {"A  one", "B  two", "nystra, 2 iterations"} <= set(legend)


def test_failures_far_below_do_not_push_the_others_together(synthetic):
    for place, deviation in enumerate((40.0, 20.0, -180.0, float("-inf"))):
        params = {"landmarks": place + 1}
        synthetic.quality(synthetic.cell("quality", "one", params), [{"psnr": 30.0, "deviation_psnr": deviation}])
        synthetic.latency(synthetic.cell("latency", "one", params), [10.0 + place], {})
    with plotting.style():
        ((_, drawn),) = instantiate(options("figure")["pareto"]).draw(load(synthetic.write(), "demo"))
    axes = drawn.axes[0]
    assert axes.get_ylim()[0] > -20 and "0 or below" in [text.get_text() for text in axes.texts]
    assert {(12.0, 0.0), (13.0, 0.0)} <= {tuple(line.get_xydata()[0]) for line in axes.lines}


@pytest.mark.parametrize("name", options("table"))
def test_every_table_has_a_csv_and_a_readable_form(data, name):
    table = instantiate(options("table")[name], _convert_="all")
    if reason := table.nothing(data):
        pytest.skip(reason)
    grid = table.readable(data)
    assert len(table.table(data)) and len(grid.rows) and all(len(row) == len(grid.columns) for row in grid.rows)
    headers = [column.name for column in grid.columns]
    if "speedup_vs_exact" in headers:
        assert "deviation_psnr" in headers, "a speed-up stands without the deviation"


def test_the_pareto_front_holds_what_nothing_beats():
    points = [(3.0, 5.0), (1.0, 1.0), (2.0, 4.0), (2.5, 3.0), (2.0, 2.0)]
    assert plotting.pareto_front(points) == [(1.0, 1.0), (2.0, 4.0), (3.0, 5.0)]


def test_colours_are_a_methods_own_and_grey_is_the_references(data):
    first = plotting.looks(data)
    assert len({(look.colour, look.marker) for look in first.values()}) == len(first)
    assert {first[name].colour for name in ("exact", "sdpa", "identity")} == {plotting.GREY}
    assert plotting.GREY not in {first[name].colour for name in ("nystra", "broken", "half")}


def test_labels_keep_clear_of_each_other():
    figure = plotting.new_figure(4, 3)
    axes = figure.subplots()
    points = [(0.5, 0.5), (0.52, 0.5), (0.5, 0.53)]
    axes.set(xlim=(0, 1), ylim=(0, 1))
    plotting.settle(figure)
    plotting.place_labels(axes, [plotting.Label(x, y, "label", "black") for x, y in points], points)
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 3
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_the_report_imports_no_torch():
    code = "import sys, nystra_bench.report.build; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# ---------------------------------------------------------------- in a browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
FLAGS += ["--virtual-time-budget=2000"]

PROBE = """<script>
const table = document.querySelector("table.grid"), heads = [...table.tHead.rows[0].cells];
const index = heads.findIndex((head) => head.textContent.startsWith("deviation PSNR"));
const column = () => [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => row.cells[index].textContent);
const seen = {};
for (const step of ["first", "second"]) {
  heads[index].querySelector("button").click();
  seen[step] = [heads[index].getAttribute("aria-sort"), column()];
}
const input = document.querySelector("input[type=search]");
input.value = "nystra matrix";
input.dispatchEvent(new Event("input"));
seen.filtered = [document.querySelector(".count").textContent, column()];
const out = document.createElement("output");
out.textContent = JSON.stringify(seen);
document.body.append(out);
</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_sorting_and_filtering_work_in_a_browser(report, tmp_path):
    page = tmp_path / "probe.html"
    page.write_text((report / "report.html").read_text().replace("</body>", PROBE))
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    found = re.search(r"<output>(.*?)</output>", dom)
    assert found, f"the probe did not run: {dom[-300:]}"
    seen = json.loads(found.group(1))
    rising = ["24.00", "27.00", "28.00", "30.00", "30.50", "32.00", "∞"]
    assert seen["first"] == ["ascending", [*rising, "–", "–"]]
    assert seen["second"] == ["descending", [*reversed(rising), "–", "–"]]
    assert seen["filtered"] == ["1 of 9 rows", ["30.50"]]
