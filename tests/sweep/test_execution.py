"""How a model is run: axes whose defaults are in no key, obeyed by the worker, shown where a row is not at them."""

import json
import os
from functools import partial

import numpy as np
import pytest
import torch

from nystra_bench.errors import UserError
from nystra_bench.instruments import compiled
from nystra_bench.sweep.cell import Cell
from nystra_bench.sweep.execution import EXECUTION, obeyed, on_machine, refusal, setting, settings
from nystra_bench.sweep.worker import Worker

ONE_MODEL = ["position_bias=native", "attention.landmarks=4", "figures=[]"]

ATTENTION = '''\
from nystra_bench.attention.base import Attention


class Looking(Attention):
    """What it does depends on the numbers."""

    def forward(self, q, k, v, window):
        return v if v.sum().item() > 0 else 2 * v
'''


@pytest.fixture
def looking(tmp_path):
    """A folder with an attention that is no one graph."""
    folder = tmp_path / "mine"
    (folder / "attention").mkdir(parents=True)
    (folder / "looking_attention.py").write_text(ATTENTION)
    (folder / "attention" / "looking.yaml").write_text("_target_: looking_attention.Looking\n")
    return folder


def planned(bench, *words):
    """The planned cells by measurement and, in words, how the model is run."""
    assert bench("mode=report", "attention=exact", *ONE_MODEL[::2], "tables=[]", *words).code == 0
    cells = json.loads((bench.results / "tiny" / "cells.json").read_text())["cells"]
    return {(c["cell"]["measure"]["name"], json.dumps(c["cell"].get("execution", {}))): c for c in cells}


# --------------------------------------------------------------------------- axes


def test_only_what_is_not_at_its_default_is_told():
    assert setting({"runtime": "eager", "threads": None, "batch": 1, "memory_format": "contiguous"}) == ()
    assert setting({"batch": 4, "runtime": "compiled"}) == (("runtime", "compiled"), ("batch", 4))
    assert obeyed((("runtime", "compiled"), ("batch", 4)), ("batch", "threads")) == (("batch", 4),)


def test_settings_are_the_product_of_the_axes():
    given = {"runtime": ["eager", "compiled"], "batch": [1, 2]}
    found = settings(lambda name, default: given.get(name, [default]))
    assert found == [(), (("batch", 2),), (("runtime", "compiled"),), (("runtime", "compiled"), ("batch", 2))]


def test_the_machines_own_threads_are_the_default():
    machine = {"threads": 2, "cores": 4}
    assert on_machine((("threads", 2), ("batch", 3)), machine) == (("batch", 3),)
    assert on_machine((("threads", 1),), machine) == (("threads", 1),)
    assert on_machine((("threads", 9),), {"refusal": "no such device"}) == (("threads", 9),)
    with pytest.raises(UserError, match=r"^threads=5 .* up to the cores of the machine.*\(4\)$"):
        on_machine((("threads", 5),), machine)


def test_what_a_device_lacks_is_refused_with_what_it_has():
    assert refusal((("runtime", "graphs"),), {"kind": "cuda"}) is None
    assert refusal((("runtime", "compiled"), ("batch", 2)), {"kind": "cpu"}) is None
    assert refusal((("runtime", "graphs"),), {"refusal": "no such device"}) is None
    assert refusal((("runtime", "graphs"),), {"kind": "cpu"}) == (
        "runtime=graphs is there on device=cuda alone, not on cpu: accepted there are eager, compiled"
    )


@pytest.mark.usefixtures("looked_at_here")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_graphs_are_skipped_on_a_cpu_where_a_block_has_them_and_an_error_where_the_user_gives_them(bench, tmp_path):
    (tmp_path / "sweep").mkdir()
    tiny = (bench.plugins / "sweep" / "tiny.yaml").read_text()
    both = tiny.replace("attention: [exact]", "attention: [exact]\n    runtime: [eager, graphs]")
    (tmp_path / "sweep" / "both.yaml").write_text(both)
    words = ["mode=plan", "measure=latency", f"hydra.searchpath=['file://{tmp_path}']"]
    lines = [line for line in bench(*words, sweep="+sweep=both").out.splitlines() if "runtime=graphs" in line]
    assert lines and all("skipped" in line and "device=cuda alone" in line for line in lines)
    ended = bench("mode=plan", "runtime=graphs", "attention=exact", "position_bias=native")
    assert ended.code == 1
    assert ended.sentence.startswith("runtime=graphs does not fit: runtime=graphs is there on device=cuda alone")


@pytest.mark.parametrize("name", EXECUTION)
def test_the_default_of_an_axis_is_accepted_and_a_bool_is_not(name):
    EXECUTION[name].check(EXECUTION[name].default)
    with pytest.raises(UserError, match=rf"^{name}=true .*accepted are"):
        EXECUTION[name].check(True)


# --------------------------------------------------------------------------- keys


@pytest.mark.usefixtures("looked_at_here")
def test_defaults_are_in_no_key(bench):
    usual = planned(bench)
    named = planned(bench, "runtime=eager", "threads=1", "batch=1", "memory_format=contiguous")  # device.threads=1
    assert {c["key"] for c in named.values()} == {c["key"] for c in usual.values()}
    assert {how for _, how in usual} == {"{}"} and all("execution" not in c["cell"] for c in usual.values())
    assert planned(bench, "threads=null").keys() == usual.keys()


@pytest.mark.usefixtures("looked_at_here")
def test_what_is_not_at_its_default_is_in_the_keys_of_what_it_decides(bench):
    usual = {name: c["key"] for (name, _), c in planned(bench).items()}
    for word, decided in (
        ("batch=2", {"latency", "memory"}),
        ("memory_format=channels_last", {"latency", "memory", "quality"}),
        ("runtime=compiled", {"latency", "memory", "quality"}),
    ):
        name, value = word.split("=")
        found = planned(bench, word)
        told = {name: int(value) if value.isdecimal() else value}
        assert {measure for measure, how in found if json.loads(how) == told} == decided
        assert {measure for (measure, how), c in found.items() if c["key"] == usual[measure]} == {*usual} - decided


@pytest.mark.usefixtures("looked_at_here")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="the machine has one core")
def test_threads_decide_costs(bench):
    found = planned(bench, "threads=[1,2]")
    told = {(name, how): c["cell"]["settings"].get("threads") for (name, how), c in found.items()}
    assert told == {
        ("quality", "{}"): None,
        **{(name, how): n for name in ("latency", "memory") for n, how in ((1, "{}"), (2, '{"threads": 2}'))},
    }


@pytest.mark.usefixtures("looked_at_here")
def test_a_sweeps_block_names_them_too(bench, tmp_path):
    (tmp_path / "sweep").mkdir()
    tiny = (bench.plugins / "sweep" / "tiny.yaml").read_text()
    batched = tiny.replace("attention: [exact]", "attention: [exact]\n    batch: [1, 3]")
    (tmp_path / "sweep" / "batched.yaml").write_text(batched)
    words = ["mode=plan", "measure=latency", f"hydra.searchpath=['file://{tmp_path}']"]
    lines = bench(*words, sweep="+sweep=batched").out.splitlines()[:-1]
    assert [("batch=3" in line, "window=16" in line) for line in lines if " exact " in line] == [
        (False, False),
        (False, True),
        (True, True),
    ]


# --------------------------------------------------------------------------- running


def test_batches_and_layouts_are_rows_beside_the_usual_one(bench):
    words = ["attention=[exact,nystra]", "batch=[1,2]", "memory_format=[contiguous,channels_last]", *ONE_MODEL]
    assert bench(*words).code == 0
    table = bench.table()
    assert [name for name in table if name in EXECUTION] == ["batch", "memory_format"]
    assert list(table.columns).index("batch") == list(table.columns).index("dtype") + 1
    rows = table.set_index(["attention", "batch", "memory_format"]).sort_index()
    assert len(rows) == 2 * 2 * 2 and rows.index.is_unique
    assert rows["latency_ms"].notna().all() and rows["peak_memory_mb"].notna().all()
    assert rows["speedup_vs_exact"].notna().all()
    # One measurement of quality for both sizes of batches; the exact model in another layout differs by rounding alone.
    assert (rows.groupby(["attention", "memory_format"])["psnr"].nunique() == 1).all()
    assert (rows.loc["exact", "deviation_psnr"] > 100).all()
    assert rows.at[("exact", 1, "contiguous"), "deviation_psnr"] == np.inf
    values = [r["value"] for r in bench.stored() if r["cell"]["measure"]["name"] != "quality"]
    assert sorted(value["batch"] for value in values) == [1] * 8 + [2] * 8
    assert sum(r["cell"]["measure"]["name"] == "quality" for r in bench.stored()) == 4
    written = (bench.results / "tiny" / "table.md").read_text().splitlines()
    assert sum("channels_last" in line for line in written if line.startswith("|")) == 4


def test_a_usual_run_has_no_such_columns(bench):
    assert bench("attention=exact", "position_bias=native", "measure=quality", "figures=[]").code == 0
    assert not {*bench.table()} & {*EXECUTION, "compile_ms"}
    (result,) = bench.stored()
    assert "execution" not in result["cell"]


def test_what_is_no_graph_is_a_failed_row_and_never_eager_under_another_name(bench, looking):
    words = ["runtime=[eager,compiled]", "attention=looking", "measure=quality", "metrics=[psnr]", "figures=[]"]
    assert bench(*words, "task.limit=1", "position_bias=native", f"hydra.searchpath=['file://{looking}']").code == 2
    table = bench.table().set_index("runtime")
    assert table.status.to_dict() == {"eager": "done", "compiled": "failed"}
    assert table.reason["compiled"] == (
        "runtime=compiled does not fit SwinIR with Looking (its course depends on the numbers in tensors): accepted is "
        "runtime=eager"
    )
    assert np.isnan(table.psnr["compiled"])


def test_rows_from_before_are_at_the_defaults(bench):
    """Records that say nothing of how they were run stand beside new ones that do."""
    assert bench("attention=exact", "position_bias=native", "measure=quality", "figures=[]").code == 0
    before = [r["finished"] for r in bench.stored()]
    words = ["attention=exact", "position_bias=native", "measure=quality", "memory_format=[contiguous,channels_last]"]
    assert bench(*words, "figures=[]").code == 0
    assert before[0] in [r["finished"] for r in bench.stored()] and len(bench.stored()) == 2
    assert list(bench.table()["memory_format"]) == ["contiguous", "channels_last"]


# --------------------------------------------------------------------------- the worker, in this process


@pytest.fixture
def worker(tmp_path, tiny_weights, images):
    """Makes the worker of a session of exact attention on the tiny model, of one measurement."""
    threads = torch.get_num_threads()

    def make(measure, **execution):
        attentions = {"exact": "exact.ExactAttention", "sdpa": "sdpa.FusedAttention"}
        attentions |= {"identity": "identity.IdentityAttention"}
        configs = {name: {"_target_": f"nystra_bench.attention.{target}"} for name, target in attentions.items()}
        measured = {"_target_": f"nystra_bench.measure.{measure}.{measure.capitalize()}"}
        content = {"measure": {"name": measure, "version": "1", "params": {}}, "position_bias": "native"}
        content |= {"attention": {"name": "exact", "version": "1", "params": {}}, "device": "cpu", "dtype": "float32"}
        cell = Cell.of(content | {"settings": {}, "execution": execution})
        (tmp_path / "store").mkdir(exist_ok=True)
        timing = {"rounds": 3, "min_rounds": 1, "budget_s": 5, "warmup_s": 0, "min_sample_ms": 0, "again": False}
        request = {
            "store": str(tmp_path / "store"),
            "sys_path": [],
            "metrics": {},
            "references": configs,
            "tf32": False,
            "timing": timing,
            "tiling": None,
            "seed": 0,
            "model": {"_target_": "nystra_bench.models.swinir.load_swinir", "weights": str(tiny_weights)},
            "task": {"_target_": "nystra_bench.tasks.denoise.GaussianDenoise", "sigma": 25.0, "images": str(images)}
            | {"crop": 16},
            "window": 8,
            "position_bias": "native",
            "device": {"_type_": "cpu", "threads": 1},
            "dtype": "float32",
            "execution": execution,
            "cells": [{"cell": cell.text, "measure": measured, "attention": configs["exact"], "parts": {}}],
        }
        return Worker(request, lambda event: None), cell

    yield make
    torch.set_num_threads(threads)


def test_a_compiled_session_times_compiled_models_and_tells_compiling_apart(worker, monkeypatch):
    """With PyTorch's backend without C++ in place of Inductor."""
    monkeypatch.setattr(compiled.torch, "compile", partial(torch.compile, backend="aot_eager"))
    session, cell = worker("latency", runtime="compiled")
    session.run()
    value = session.bench.store.result(cell.key)["value"]
    assert {*value["companions"]} == {"exact", "exact_again", "sdpa", "identity"}
    assert value["setup_ms"] >= value["compile_ms"] > 0
    models = session.bench.compiled
    assert models is not None and len(models._forms) == 3  # one for each attention, and none made while others ran


def test_the_worker_takes_threads_batch_and_layout(worker):
    session, _ = worker("latency", threads=1, batch=3, memory_format="channels_last")
    bench = session.bench
    bench.load()
    assert torch.get_num_threads() == 1
    x = bench.first_input
    assert x.shape == (3, 3, 16, 16) and x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x[0], x[2])
    weight = bench.model.conv_first.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    original = bench.originals["exact"].conv_first.weight
    assert original.is_contiguous() and torch.equal(original, weight)


def test_deviations_are_from_the_eager_original(worker, monkeypatch):
    """A compiled model is another than the original, which no compiler touches."""
    session, _ = worker("latency", runtime="compiled")
    bench = session.bench
    bench.load()
    monkeypatch.setattr(bench, "compiled", lambda model, x: torch.zeros_like(x))
    sample = next(iter(bench.task.samples()))
    assert not bench.restore(bench.model, sample).any()
    assert bench.restore_original(bench.originals["exact"], sample).any()
