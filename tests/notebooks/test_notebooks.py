"""The notebooks run from their first cell to their last, and come out sensible; what is committed is what they give."""

from __future__ import annotations

import asyncio
import base64
import io
import re
from pathlib import Path
from queue import Empty

import nbformat
import pytest
from jupyter_client.channels import AsyncZMQSocketChannel
from nbclient.exceptions import CellExecutionError
from PIL import Image
from script_modules import script

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NAMES = sorted(file.stem for file in FOLDER.glob("*.ipynb"))
LARGEST = 500_000
"""Bytes of a notebook."""

SENSIBLE = {
    "quickstart": """
        assert list(table.status.replace("unstable", "done").unique()) == ["done"]
        assert table.deviation_psnr["exact"] == float("inf") and table.deviation_psnr["sdpa"] > 90
        assert table.deviation_psnr["nystra_plus"] > table.deviation_psnr["identity"] + 6
        assert 0 < table.psnr["exact"] - table.psnr["nystra_plus"] < 1
        assert enlarged.deviation_psnr["nystra_plus"] > enlarged.deviation_psnr["nystra"]
        assert (enlarged.speedup_vs_native > 0).all() and (curves.median_ms.dropna() > 0).all()
        assert set(curves.tokens) == {64, 256, 1024, 4096}
    """,
    "attention_maps": """
        assert len(found) == len(pixels) * len(layers) * 4 * (1 + len(methods))
        assert variation.map_error.min() >= 0
        assert variation[variation.attention.isin(["uniform", "identity", "kv_merging"])].map_error.max() <= 1 + 1e-4
        assert mean["nystra_plus"] < mean["uniform"] and mean["nystra_plus"] < mean["identity"]
    """,
    "singular_values": """
        assert below and (values[:, 0] >= 1 - 1e-4).all() and (np.diff(values) <= 0).all()
        assert exact.energy_20.between(0, 1).all() and (0 <= first).all() and (first <= 1).all()
        assert images.deviation_psnr["nystra_plus 32"] > images.deviation_psnr["nystra_plus 8"]
    """,
    "add_a_method": """
        assert check.deviation_psnr.iloc[0] > 100
        assert table.deviation_psnr["strided 2"] > table.deviation_psnr["strided 4"]
        assert table.deviation_psnr["biased 2"] > table.deviation_psnr["strided 2"]
    """,
}
"""What holds of a notebook's variables at its end; timings are not compared."""

SMALLER = {
    "quickstart": {"crop=96": "crop=64", "rounds=6, min_rounds=6": "rounds=3, min_rounds=3"},
    "add_a_method": {"crop=96": "crop=64", "rounds=6, min_rounds=6": "rounds=3, min_rounds=3"},
    "singular_values": {"limit=1, crop=96": "limit=1, crop=64"},
    "attention_maps": {"row in (16, 48, 80) for column in (16, 48, 80)": "row in (16, 80) for column in (16, 80)"},
}
"""What is put in place of a notebook's own settings here, where it is run to see that it runs and makes sense."""


@pytest.fixture(scope="module")
def run_notebooks():
    return script("run_notebooks")


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def smaller(notebook, changes):
    """The notebook with other settings; each has to be there."""
    for before, after in changes.items():
        assert any(before in cell.source for cell in notebook.cells), f"{before} is in no cell"
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.source = cell.source.replace(before, after)
    return notebook


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_and_comes_out_sensible(run_notebooks, name, tmp_path):
    notebook = smaller(read(name), SMALLER[name])
    committed = [output.output_type for output in outputs(notebook)]
    checks = "\n".join(line.strip() for line in SENSIBLE[name].strip().splitlines())
    notebook.cells.append(nbformat.v4.new_code_cell(f"{checks}\nprint('sensible')"))
    run_notebooks.execute(notebook, tmp_path)
    assert notebook.cells[-1].outputs[0].text == "sensible\n"
    found = outputs(notebook)
    assert [o.text for o in found if o.output_type == "stream" and o.name == "stderr"] == []
    assert [output.output_type for output in found[:-1]] == committed


def test_a_reply_that_nobody_was_woken_for_is_found(run_notebooks, monkeypatch):
    """And a channel on which nothing comes is given up when its time is over."""
    asked = []

    async def woken_too_late(channel, timeout):
        asked.append(timeout)
        if len(asked) == 1 or timeout < 1:
            raise Empty
        return {"content": "reply"}

    monkeypatch.setattr(AsyncZMQSocketChannel, "get_msg", woken_too_late)
    channel = object.__new__(run_notebooks.Channel)
    assert asyncio.run(channel.get_msg(600)) == {"content": "reply"} and asked == [1, 1]
    with pytest.raises(Empty):
        asyncio.run(channel.get_msg(0))


def test_the_conformance_suite_passes_the_method_that_is_added():
    (shown,) = [o.text for o in outputs(read("add_a_method")) if "attention/strided:" in o.get("text", "")]
    assert re.search(r"attention/strided: \d+ passed", shown) and "failed" not in shown
    plan = "".join(o.get("text", "") for o in outputs(read("add_a_method")))
    assert plan.count("strided(stride=2)") and plan.count("strided(stride=4)")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_committed_is_small_whole_and_of_no_place(name):
    notebook = read(name)
    file = FOLDER / f"{name}.ipynb"
    assert file.stat().st_size < LARGEST
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for output in outputs(notebook) if output.output_type == "error"]
    text = file.read_text(encoding="utf-8")
    assert not re.search(r"/(work|tmp|home|root|Users)/", text)
    assert sum("image/png" in output.get("data", {}) for output in outputs(notebook)) >= 2


@pytest.mark.parametrize("name", NAMES)
def test_it_uses_the_public_library_alone(name):
    code = "\n".join(cell.source for cell in read(name).cells if cell.cell_type == "code")
    imported = set(re.findall(r"^(?:from|import) (nystra_bench[\w.]*)", code, re.MULTILINE))
    assert imported <= {"nystra_bench", "nystra_bench.attention.base"}


def test_a_notebook_without_weights_says_so_in_a_sentence(run_notebooks, tmp_path):
    notebook = read("quickstart")
    gone = "import nystra_bench.models.checkpoints as c, pathlib; c.BUNDLED = pathlib.Path('nowhere')"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(gone))
    with pytest.raises(CellExecutionError) as raised:
        run_notebooks.execute(notebook, tmp_path)
    (error,) = [output for output in outputs(notebook) if output.output_type == "error"]
    assert error.ename == "UserError" and len(error.traceback) == 1
    assert re.search(r"model\.weights=swinir_denoise_w8 .*accepted are", error.traceback[0])
    assert "UserError" in str(raised.value)


def test_pictures_become_smaller_and_stay_the_same_size(run_notebooks):
    picture = Image.radial_gradient("L").convert("RGB")
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=0)
    made = run_notebooks.smaller(base64.b64encode(file.getvalue()).decode())
    again = Image.open(io.BytesIO(base64.b64decode(made)))
    assert again.size == picture.size and len(made) < file.tell() / 2
