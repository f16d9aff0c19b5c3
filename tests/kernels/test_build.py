"""Building the kernels: once, atomically, under a name that tells what they are for; and what is where it cannot be."""

from __future__ import annotations

import logging
import shutil
import threading
from pathlib import Path

import pytest
import torch
from attention_references import random_qkv

from nystra_bench import kernels
from nystra_bench.attention import implementation
from nystra_bench.attention.base import Window
from nystra_bench.attention.nystra import NystraAttention
from nystra_bench.attention.nystra_fused import FusedNystraAttention
from nystra_bench.attention.nystra_plus import NystraPlusAttention
from nystra_bench.attention.nystra_plus_fused import FusedNystraPlusAttention
from nystra_bench.configuration import Catalogue, configs_folder, instantiate
from nystra_bench.errors import UserError
from nystra_bench.instruments.sources import sources_of
from nystra_bench.kernels import build, operators

METHODS = [(FusedNystraPlusAttention, NystraPlusAttention), (FusedNystraAttention, NystraAttention)]


@pytest.fixture(autouse=True)
def as_if_new(monkeypatch, tmp_path):
    """A process that has loaded nothing yet, with an empty cache folder."""
    monkeypatch.setenv("NYSTRA_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    before = operators.unusable
    monkeypatch.setattr(build, "_flags_of_machine", lambda: ["-for-this-machine"])
    for module in (operators, kernels):
        monkeypatch.setattr(module, "unusable", operators.cache(before.__wrapped__))
    monkeypatch.setattr(operators, "_load", lambda file: None)
    implementation._tell.cache_clear()


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """A compiler that notes each call, and writes a line."""
    return script(monkeypatch, tmp_path, 'for last; do :; done\nsleep 0.2\necho library > "$last"\n')


def script(monkeypatch, tmp_path, body) -> Path:
    file, log = tmp_path / "compiler", tmp_path / "calls"
    file.write_text(f'#!/bin/sh\necho "$@" >> {log}\n{body}')
    file.chmod(0o755)
    monkeypatch.setenv("CXX", str(file))
    return log


def without_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")


def without_folder(monkeypatch, tmp_path):
    script(monkeypatch, tmp_path, "exit 0\n")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NYSTRA_BENCH_CACHE", str(tmp_path / "file"))


def unknown_processor(monkeypatch, tmp_path):
    monkeypatch.undo()
    monkeypatch.setenv("NYSTRA_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build.platform, "machine", lambda: "abacus")
    for module in (operators, kernels):
        monkeypatch.setattr(module, "unusable", operators.cache(operators.unusable.__wrapped__))


NOT_HERE = {
    "there is no C++ compiler (CXX=no-such-compiler)": without_compiler,
    "cannot be written to (Not a directory)": without_folder,
    "the processor (abacus, ": unknown_processor,
}


@pytest.mark.parametrize("reason", NOT_HERE)
@pytest.mark.parametrize(("fused", "eager"), METHODS)
def test_where_there_can_be_no_kernels_the_eager_form_runs_and_says_why(
    monkeypatch, tmp_path, caplog, reason, fused, eager
):
    NOT_HERE[reason](monkeypatch, tmp_path)
    qkv, attention = random_qkv(2, 2, 64, 16), fused()
    with caplog.at_level(logging.WARNING, "nystra_bench"), torch.inference_mode():
        for _ in range(2):
            assert torch.equal(attention(*qkv, Window(8, 8)), eager()(*qkv, Window(8, 8)))
    assert attention.about()["kernel"].startswith("eager (") and reason in attention.about()["kernel"]
    (line,) = [record.getMessage() for record in caplog.records]
    assert reason in line and "\n" not in line


@pytest.mark.parametrize("reason", NOT_HERE)
@pytest.mark.parametrize("method", [method for method, _ in METHODS])
def test_where_there_can_be_no_kernels_to_ask_for_them_is_an_error_in_a_sentence(monkeypatch, tmp_path, reason, method):
    NOT_HERE[reason](monkeypatch, tmp_path)
    with pytest.raises(UserError) as error:
        method(implementation="fused")
    assert str(error.value).startswith("implementation=fused cannot run, since ") and reason in str(error.value)
    assert "accepted here are implementation=auto and eager" in str(error.value) and "\n" not in str(error.value)


def test_a_compiler_that_fails_leaves_nothing_and_its_first_error_is_told(monkeypatch, tmp_path):
    script(monkeypatch, tmp_path, 'printf "in file x\\nx.h:1: error: no vectors\\n" >&2\nexit 1\n')
    attention = FusedNystraAttention(implementation="fused")
    with pytest.raises(UserError, match="failed with x.h:1: error: no vectors"):
        attention(*random_qkv(1, 2, 64, 16), Window(8, 8))
    assert [file.suffix for file in build.folder().iterdir()] == [".lock"]


def test_it_is_built_once_whoever_asks(compiler):
    waiting = [threading.Thread(target=build.library) for _ in range(3)]
    for thread in waiting:
        thread.start()
    for thread in waiting:
        thread.join()
    assert len(compiler.read_text().splitlines()) == 1
    assert build.library().read_text() == "library\n"
    assert len(compiler.read_text().splitlines()) == 1
    assert {file.suffix for file in build.folder().iterdir()} <= {".lock", ".so"}


def test_what_was_built_serves_without_a_compiler(monkeypatch, compiler):
    built = build.library()
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert build.refusal() is None and build.library() == built


@pytest.mark.parametrize("change", ["source", "torch", "processor"])
def test_a_library_of_something_else_is_not_taken(monkeypatch, tmp_path, compiler, change):
    before = build.library()
    if change == "source":
        shutil.copytree(build.SOURCES, tmp_path / "source")
        with (tmp_path / "source" / "tiles.h").open("a") as file:
            file.write("// changed\n")
        monkeypatch.setattr(build, "SOURCES", tmp_path / "source")
    elif change == "torch":
        monkeypatch.setattr(torch, "__version__", "99.0")
    else:
        monkeypatch.setattr(build, "_flags_of_machine", lambda: ["-for-another-machine"])
    assert build.library() != before
    assert len(compiler.read_text().splitlines()) == 2


def test_a_library_that_does_not_load_is_built_again(monkeypatch, compiler):
    """One of another system that shares the folder, or a damaged one."""
    file = build.library()
    file.write_text("damaged\n")

    def load(path):
        if path.read_text() != "library\n":
            raise OSError("invalid ELF header")

    monkeypatch.setattr(operators, "_load", load)
    assert operators.unusable() is None
    assert file.read_text() == "library\n" and len(compiler.read_text().splitlines()) == 2


def test_one_that_never_loads_is_a_reason(monkeypatch, compiler):
    def load(path):
        raise OSError("wrong version of libc\nand more")

    monkeypatch.setattr(operators, "_load", load)
    assert operators.unusable() == "wrong version of libc"
    with pytest.raises(RuntimeError, match="wrong version of libc"):
        kernels.operator("nystra", lambda *_, **__: 0)


def test_it_is_tried_once_a_process(monkeypatch, tmp_path):
    log = script(monkeypatch, tmp_path, "exit 1\n")
    for _ in range(3):
        assert "failed with status 1" in operators.unusable()
    assert len(log.read_text().splitlines()) == 1


def test_the_c_sources_are_part_of_what_decides_a_latency(monkeypatch):
    """And they are no part of it for methods that do not use them."""
    from nystra_bench.instruments import sources

    def digests():
        names = ("nystra_plus_fused", "nystra_plus")
        return [sources_of(f"nystra_bench.attention.{name}") for name in names]

    fused, eager = digests()
    assert "nystra_bench.kernels" in fused and "nystra_bench.kernels.build" in fused
    assert not any(name.startswith("nystra_bench.kernels") for name in eager)
    monkeypatch.setattr(sources, "COMPILED", ())
    (without, same) = digests()
    assert {name for name in fused if fused[name] != without[name]} == {"nystra_bench.kernels"}
    assert same == eager


@pytest.mark.parametrize("name", ["nystra_plus", "nystra"])
def test_the_fused_options_are_the_eager_ones_and_the_implementation(name):
    catalogue = Catalogue([configs_folder()])
    fused = catalogue.parameters("attention", f"{name}_fused")
    assert fused.pop("implementation") == implementation.DEFAULT == "auto"
    assert fused == catalogue.parameters("attention", name)


def test_an_unknown_implementation_is_refused():
    config = Catalogue([configs_folder()]).option("attention", "nystra_fused")
    with pytest.raises(UserError, match="implementation=fast is unknown: accepted are auto, eager, fused"):
        instantiate(config | {"implementation": "fast"})


def test_the_block_is_the_one_of_the_source():
    assert f"BLOCK = {kernels.BLOCK};" in (build.SOURCES / "tiles.h").read_text()
