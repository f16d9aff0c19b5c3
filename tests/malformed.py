"""Inputs that hold a mistake, each with the whole sentence that a user gets; for ``test_malformed.py``."""

from __future__ import annotations

import json
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nystra_bench import cli
from nystra_bench.arguments import parse
from nystra_bench.configuration import Catalogue, configs_folder, instantiate
from nystra_bench.fetch.archives import unpack
from nystra_bench.fetch.command import _find
from nystra_bench.measure.base import measurement
from nystra_bench.models.checkpoint_files import state_dict
from nystra_bench.models.checkpoints import resolve
from nystra_bench.models.swinir import load_swinir
from nystra_bench.replay import read_recorded
from nystra_bench.sweep.cell import SCHEMA, Cell
from nystra_bench.sweep.engine import Engine
from nystra_bench.sweep.executors.base import executor
from nystra_bench.sweep.grid import Overrides, expand
from nystra_bench.sweep.planfile import read_cells
from nystra_bench.tasks.denoise import GaussianDenoise
from nystra_bench.tasks.pairs import FolderPairs

Given = Callable[[Path], object]


@dataclass(frozen=True)
class Malformed:
    """A mistake.

    Attributes:
        what: it is.
        given: reads it; gets an empty folder.
        told: the sentence, with ``{folder}`` for that one.
    """

    what: str
    given: Given
    told: str


def words(*given: str) -> Given:
    return lambda folder: parse([*given])


def command(*given: str, **files: str) -> Given:
    """A whole command line, with a folder of plug-ins where files are given."""

    def read(folder: Path) -> None:
        arguments = parse([*given, *([f"plugins=['{folder}']"] if files else [])])
        for name, content in files.items():
            choice, _, option = name.partition("_")
            (folder / choice).mkdir()
            (folder / choice / f"{option}.yaml").write_text(content)
        Engine(*cli.compose_config(arguments), arguments.overrides)

    return read


def sweep(blocks: object, axes: dict | None = None, **parameters: dict) -> Given:
    """A sweep's blocks, with what the command line replaces in them."""
    return lambda folder: expand(blocks, Overrides(axes or {}, parameters), Catalogue([configs_folder()]))


BLOCK = {"model": "swinir_x2", "task": "super_resolution", "attention": "nystra"}


def option(**config: object) -> Given:
    named = {"_target_" if name == "target" else name: value for name, value in config.items()}
    return lambda folder: instantiate(named)


def plugin(name: str, code: str) -> Given:
    """``Mine`` of a module of a plug-in."""

    def make(folder: Path) -> None:
        (folder / f"{name}.py").write_text(code)
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(folder))
            instantiate({"_target_": f"{name}.Mine"})

    return make


MINE = "from nystra_bench.metrics.base import Metric\n\n\nclass Mine(Metric):\n"


def executing(name: str, **given: object) -> Given:
    config = Catalogue([configs_folder()]).option("executor", name)
    return lambda folder: executor(name, config | given)


CELL = Cell.of({"measure": {"name": "quality", "version": "1", "params": {}}, "attention": {"name": "exact"}})
PLANNED = {"key": CELL.key, "cell": CELL.content, "status": "planned", "reason": None}


def plan(**changes: object) -> Given:
    content = {"schema": SCHEMA, "sweep": "s", "cells": [PLANNED]} | changes
    return _file("cells.json", json.dumps(content).encode(), read_cells)


def cell(**changes: object) -> Given:
    content = {"schema": SCHEMA, "key": CELL.key, "cell": CELL.content, "status": "done", "value": {}} | changes
    return _file("result.json", json.dumps(content).encode(), read_recorded)


def _file(name: str, content: bytes, read: Callable[[Path], object]) -> Given:
    def given(folder: Path) -> object:
        (folder / name).write_bytes(content)
        return read(folder / name)

    return given


def weights(content: bytes, name: str = "weights.pth") -> Given:
    return _file(name, content, state_dict)


def saved(content: object) -> Given:
    def given(folder: Path) -> object:
        torch.save(content, folder / "weights.pth")
        return load_swinir(folder / "weights.pth")

    return given


class Code:
    """What a pickle would call as it is read."""

    def __reduce__(self):
        return print, ("code was run",)


def images(write: Callable[[Path], object]) -> Given:
    def given(folder: Path) -> object:
        write(folder / "a.png")
        return [*GaussianDenoise(25, images=str(folder)).samples()]

    return given


def png(width: int, height: int, depth: int = 8) -> bytes:
    """An RGB image of black pixels; only of few are there any."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + bytes(width * 3 * depth // 8) for _ in range(height)) if width < 1000 else b""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def unlike_pairs(folder: Path) -> object:
    for name, size in (("lq", (30, 24)), ("gt", (24, 30))):
        (folder / name).mkdir()
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(folder / name / "a.png")
    return [*FolderPairs(str(folder)).samples()]


def unmatched_pairs(folder: Path) -> object:
    for name in ("lq/a.png", "gt/b.png"):
        (folder / name).parent.mkdir()
        Image.new("RGB", (24, 24)).save(folder / name)
    return [*FolderPairs(str(folder)).samples()]


def zipped(*members: str, wanted: str | None = None) -> Given:
    def given(folder: Path) -> None:
        with zipfile.ZipFile(folder / "a.zip", "w") as archive:
            for member in members:
                archive.writestr(member, b"content")
        unpack(folder / "a.zip", folder / "out", wanted)

    return given


def tarred(name: str) -> Given:
    def given(folder: Path) -> None:
        with tarfile.open(folder / "a.tar", "w") as archive:
            archive.addfile(tarfile.TarInfo(name))
        unpack(folder / "a.tar", folder / "out")

    return given


INPUTS = [
    # ------------------------------------------------------------------ the command line
    Malformed(
        "a word without =",
        words("denoise"),
        "denoise is not accepted: an option is given as option=value",
    ),
    Malformed(
        "a list without its end",
        words("attention=[exact"),
        "attention=[exact cannot be read as an option: accepted is option=value, with lists as [a,b], and text "
        'with any of ()[]{},:\'" in two kinds of quotes, as "attention=\'a, b\'"',
    ),
    Malformed(
        "an axis without values",
        words("attention=[]"),
        "attention=[] holds no value: accepted are one or more, as [value,value]",
    ),
    Malformed(
        "several values of a setting",
        words("seed=1,2"),
        "seed=1,2 holds several values: accepted is one; what takes several are axes, as attention=[exact,nystra]"
        " or window_size=[16,32]",
    ),
    Malformed(
        "two sweeps",
        words("+sweep=[denoise,deblur]"),
        "+sweep=[denoise,deblur] names 2 sweeps: accepted is one; a sweep of your own takes in others by include:"
        " [one,other]",
    ),
    Malformed(
        "a list as a path",
        words("results=[a,b]"),
        "results=[a,b] is a list: accepted is one name or path (one in brackets stands in quotes)",
    ),
    Malformed(
        "a deletion",
        words("~mode"),
        "~mode is not accepted: an option is given as option=value",
    ),
    Malformed(
        "a flag of Hydra's",
        lambda folder: cli._answer("--multirun", ["--multirun"]),
        "--multirun is not accepted: one run takes lists and measures all their combinations, as "
        "attention=[exact,nystra] window_size=[16,32]",
    ),
    Malformed(
        "no sweep",
        command("mode=plan"),
        "no sweep is given: add +sweep=NAME, accepted are <sweeps>",
    ),
    Malformed(
        "an unknown mode",
        command("+sweep=denoise", "mode=fast"),
        "mode=fast is unknown: accepted are run, plan, report",
    ),
    Malformed(
        "one round",
        command("+sweep=denoise", "timing.rounds=1"),
        "timing.rounds=1 is out of range: accepted are whole numbers from 2 on, up to 10000",
    ),
    Malformed(
        "a group as a setting",
        command("+sweep=denoise", "timing=5"),
        "timing=5: timing is a group of options: accepted are timing.rounds, timing.min_rounds, timing.budget_s, "
        "timing.again, timing.count_first, timing.warmup_s, timing.min_sample_ms",
    ),
    Malformed(
        "a name outside the results",
        command("+sweep=denoise", "name=../x"),
        "name=../x is no folder name: accepted are names, or names joined by /, without a dot in front and other "
        "than store",
    ),
    Malformed(
        "no results",
        command("+sweep=denoise", "results=null"),
        "results=null is no folder: accepted is a path",
    ),
    Malformed(
        "a status that is not retried",
        command("+sweep=denoise", "retry=[lost]"),
        "retry=lost is unknown: accepted are unstable, nonfinite, failed, oom, timeout, crashed",
    ),
    Malformed(
        "no metric",
        command("+sweep=denoise", "metrics=[]"),
        "metrics=[] holds no metric: accepted are all, <metrics>",
    ),
    Malformed(
        "a folder of plug-ins that is none",
        command("+sweep=denoise", "plugins=[/nowhere]"),
        "plugins=/nowhere is no folder: accepted are folders with attention/, task/, … in them",
    ),
    Malformed(
        "an unknown bias",
        sweep([BLOCK], {"position_bias": ["interpolated"]}),
        "position_bias=interpolated is unknown (did you mean interpolate?): accepted are native, interpolate, "
        "drop",
    ),
    Malformed(
        "a window of nothing",
        sweep([BLOCK], {"window_size": [0]}),
        "window_size=0 does not fit: accepted are native, or whole numbers from 2 on",
    ),
    Malformed(
        "whole numbers as precision",
        sweep([BLOCK], {"dtype": ["int8"]}),
        "dtype=int8 is unknown: accepted are float32, bfloat16, float16, float64",
    ),
    Malformed(
        "an unknown runtime",
        sweep([BLOCK], {"runtime": ["fast"]}),
        "runtime=fast is unknown: accepted are eager, compiled, graphs",
    ),
    Malformed(
        "a batch of a million",
        sweep([BLOCK], {"batch": [1_000_000]}),
        "batch=1000000 is out of range: accepted are whole numbers from 1 on, up to 1024",
    ),
    Malformed(
        "a batch that nothing obeys",
        sweep([BLOCK | {"measure": "spectrum"}], {"batch": [2]}),
        "batch=2 changes nothing in measure=spectrum: accepted beside it are latency, memory",
    ),
    Malformed(
        "a misspelt parameter",
        sweep([BLOCK], attention={"landmark": [8]}),
        "attention.landmark=8 is a parameter of no chosen attention (did you mean attention.landmarks?): accepted"
        " are attention.guard, attention.init, attention.iterations, attention.landmarks",
    ),
    # ------------------------------------------------------------------ YAML
    Malformed(
        "no YAML",
        command("+sweep=mine", sweep_mine="blocks: ["),
        "<folder>/sweep/mine.yaml cannot be read (expected the node content, but found '<stream end>', line 1): "
        "accepted is YAML, names with values, as landmarks: 8",
    ),
    Malformed(
        "a list as an option",
        command("+sweep=mine", sweep_mine="- a"),
        "<folder>/sweep/mine.yaml holds no mapping: accepted are names with values, as landmarks: 8",
    ),
    Malformed(
        "settings that are a list",
        command("+sweep=mine", sweep_mine="settings: [a]"),
        "sweep.settings=['a'] is no mapping: accepted are options of config.yaml with values",
    ),
    Malformed(
        "a sweep that includes itself",
        command("+sweep=mine", sweep_mine="include: mine"),
        "sweep.include=mine includes itself: accepted are <sweeps>",
    ),
    Malformed(
        "blocks that are no list",
        sweep({"model": "swinir_x2"}),
        "sweep.blocks={'model': 'swinir_x2'} is no list of blocks: accepted is one or more, each a mapping of "
        "axes",
    ),
    Malformed(
        "a block that is none",
        sweep(["swinir_x2"]),
        "sweep.blocks holds swinir_x2, which is no block: accepted are mappings of axes to values",
    ),
    Malformed(
        "an unknown axis",
        sweep([BLOCK | {"tasks": "denoise"}]),
        "sweep.blocks: the axis=tasks is unknown (did you mean task?): accepted are model, task, window_size, "
        "position_bias, attention, device, dtype, runtime, threads, batch, memory_format, measure",
    ),
    Malformed(
        "an unknown parameter in a block",
        sweep([BLOCK | {"attention": {"name": "nystra", "rank": 3}}]),
        "sweep.blocks: the parameter of attention nystra=rank is unknown: accepted are landmarks, iterations, "
        "init, guard",
    ),
    # ------------------------------------------------------------------ plug-ins
    Malformed(
        "no target",
        option(landmarks=8),
        "no _target_ is named beside landmarks: accepted is _target_: package.module.Name",
    ),
    Malformed(
        "a target that is nowhere",
        option(target="nowhere.Attention"),
        "_target_=nowhere.Attention cannot be imported (ModuleNotFoundError: No module named 'nowhere'): accepted"
        " is package.module.Name",
    ),
    Malformed(
        "a target of the system",
        option(target="os.system", command="true"),
        "_target_=os.system is nothing that an option may stand for: accepted are subclasses of Attention, "
        "Download, Executor, Figure, Measurement, Metric, Table, Task, and functions that load a model, of a "
        "plug-in or annotated with the module that they give",
    ),
    Malformed(
        "an entry that is not taken",
        option(target="nystra_bench.attention.exact.ExactAttention", rank=3),
        "ExactAttention: got an unexpected keyword argument 'rank': accepted entries are none",
    ),
    Malformed(
        "no number",
        option(target="nystra_bench.attention.nystra.NystraAttention", landmarks="few"),
        "NystraAttention: landmarks=few does not fit: accepted are whole numbers",
    ),
    Malformed(
        "a number out of range",
        option(target="nystra_bench.tasks.denoise.GaussianDenoise", sigma=-1),
        "task.sigma=-1 is out of range: accepted are numbers above 0, up to 255",
    ),
    Malformed(
        "Python that is none",
        plugin("mistyped", "x = = 1"),
        "_target_=mistyped.Mine cannot be imported (SyntaxError: invalid syntax (mistyped.py, line 1)): accepted "
        "is package.module.Name",
    ),
    Malformed(
        "an error while it is made",
        plugin("raising", f"{MINE}    def __init__(self):\n        {{}}['x']\n"),
        "_target_=raising.Mine cannot be made (KeyError: 'x'; <folder>/raising.py, line 6): accepted is what "
        "takes the entries beside it",
    ),
    Malformed(
        "a metric as a measurement",
        lambda folder: measurement("mine", {"_target_": "nystra_bench.metrics.psnr.Psnr"}),
        "measure=mine: nystra_bench.metrics.psnr.Psnr is no measurement: accepted are subclasses of "
        "nystra_bench.measure.base.Measurement",
    ),
    Malformed(
        "a measurement without its needs",
        lambda folder: measurement("mine", {"_target_": "nystra_bench.measure.base.Measurement"}),
        "measure=mine: nystra_bench.measure.base.Measurement does not say which axes it needs: accepted is a "
        "tuple of model, task, window_size, position_bias, attention, device, dtype, with device and dtype in it "
        "and, where window_size or position_bias is, model",
    ),
    # ------------------------------------------------------------------ executors
    Malformed(
        "an unknown executor",
        command("+sweep=denoise", "executor=slrum"),
        "executor=slrum is unknown (did you mean slurm?): accepted are <executors>",
    ),
    Malformed(
        "a parameter of another executor",
        command("+sweep=denoise", "executor.parallel=2"),
        "executor.parallel=2 is a parameter of no chosen executor: accepted are none",
    ),
    Malformed(
        "an unknown cluster",
        executing("slurm", cluster="lsf"),
        "SlurmExecutor: executor.cluster=lsf is unknown: accepted are slurm, local",
    ),
    Malformed(
        "no processor",
        executing("slurm", cpus=0),
        "SlurmExecutor: executor.cpus=0 is out of range: accepted are whole numbers from 1 on",
    ),
    Malformed(
        "no hour",
        executing("slurm", hours=0),
        "SlurmExecutor: executor.hours=0 is out of range: accepted are numbers from 1/60 to 8760",
    ),
    Malformed(
        "no image in a job",
        executing("ray", images_per_job=0),
        "RayExecutor: executor.images_per_job=0 is out of range: accepted are whole numbers from 1 on, and null",
    ),
    Malformed(
        "fewer tries than none",
        executing("ray", retries=-1),
        "RayExecutor: executor.retries=-1 is out of range: accepted are whole numbers from 0 on",
    ),
    Malformed(
        "resources that are a list",
        executing("ray", resources=["a100"]),
        "RayExecutor: executor.resources=['a100'] does not fit: accepted are null and {NAME: amount}",
    ),
    Malformed(
        "a metric as an executor",
        lambda folder: executor("mine", {"_target_": "nystra_bench.metrics.psnr.Psnr"}),
        "executor=mine: nystra_bench.metrics.psnr.Psnr is no executor: accepted are subclasses of "
        "nystra_bench.sweep.executors.base.Executor",
    ),
    # ------------------------------------------------------------------ files of the store
    Malformed(
        "a plan that is no JSON",
        _file("cells.json", b"{", read_cells),
        "<folder>/cells.json cannot be read as the plan of a sweep (no JSON): plan the sweep again, by the same "
        "command without mode=report",
    ),
    Malformed(
        "a plan of a newer schema",
        plan(schema=SCHEMA + 1),
        "<folder>/cells.json cannot be read as the plan of a sweep (schema 3, where 1 and 2 are read): plan the "
        "sweep again, by the same command without mode=report",
    ),
    Malformed(
        "a plan without cells",
        plan(cells={}),
        "<folder>/cells.json cannot be read as the plan of a sweep (no list of cells): plan the sweep again, by "
        "the same command without mode=report",
    ),
    Malformed(
        "a plan with another cell's key",
        plan(cells=[PLANNED | {"key": "0" * 64}]),
        "<folder>/cells.json cannot be read as the plan of a sweep (cells[0]: it belongs to another cell): plan "
        "the sweep again, by the same command without mode=report",
    ),
    Malformed(
        "a plan with an unknown status",
        plan(cells=[PLANNED, PLANNED | {"status": "soon"}]),
        "<folder>/cells.json cannot be read as the plan of a sweep (cells[1]: status 'soon'): plan the sweep "
        "again, by the same command without mode=report",
    ),
    Malformed(
        "a cell that is not there",
        lambda folder: read_recorded(folder / "result.json"),
        "CELL=<folder>/result.json is no file: accepted is a result.json of results/store, or its folder",
    ),
    Malformed(
        "a cell without a value",
        cell(value=[]),
        "CELL=<folder>/result.json cannot be read as a result (no result): accepted is a result.json of "
        "results/store, or its folder",
    ),
    Malformed(
        "a cell of before recipes",
        cell(),
        "CELL=<folder>/result.json does not say by which configurations it was measured, as results of before "
        "2026-11-26 do not: accepted are later ones",
    ),
    Malformed(
        "a cell with a recipe that is none",
        cell(recipe={"device": "cpu"}),
        "CELL=<folder>/result.json has a recipe whose device does not fit ('cpu'): accepted is a result.json of "
        "results/store, or its folder",
    ),
    # ------------------------------------------------------------------ checkpoints
    Malformed(
        "weights that are not there",
        lambda folder: resolve(folder / "weights.pth"),
        "model.weights=<folder>/weights.pth is no file: accepted are the path of a .pth or .safetensors file, or "
        "the name of bundled weights (<weights>) or of official ones (python -m nystra_bench.fetch lists them)",
    ),
    Malformed(
        "empty weights",
        weights(b""),
        "model.weights=<folder>/weights.pth is empty: accepted is a .safetensors file or a .pth file of tensors",
    ),
    Malformed(
        "weights of zeros",
        weights(bytes(100)),
        "model.weights=<folder>/weights.pth holds zeros alone, as a broken download: accepted is a .safetensors "
        "file or a .pth file of tensors",
    ),
    Malformed(
        "a web page for weights",
        weights(b"<!DOCTYPE html><html>not found</html>"),
        "model.weights=<folder>/weights.pth is a web page, not the file that it links to: accepted is a "
        ".safetensors file or a .pth file of tensors",
    ),
    Malformed(
        "a pointer for weights",
        weights(b"version https://git-lfs.github.com/spec/v1\n"),
        "model.weights=<folder>/weights.pth is a Git-LFS pointer, which git lfs pull replaces by the file: "
        "accepted is a .safetensors file or a .pth file of tensors",
    ),
    Malformed(
        "text for weights",
        weights(b"no weights"),
        "model.weights=<folder>/weights.pth is damaged, or no checkpoint of PyTorch: accepted is a .safetensors "
        "file or a .pth file of tensors",
    ),
    Malformed(
        "safetensors that end early",
        weights(struct.pack("<Q", 99) + b"{", "weights.safetensors"),
        "model.weights=<folder>/weights.safetensors cannot be read (Error while deserializing header: invalid "
        "header length): accepted is a .safetensors file or a .pth file of tensors",
    ),
    Malformed(
        "weights with code",
        saved({"a": Code()}),
        "model.weights=<folder>/weights.pth holds print beside tensors, as a whole model or a training's objects "
        "that were saved, and could execute code: its state dict alone is wanted, as "
        "torch.save(model.state_dict(), FILE) writes it: accepted is a .safetensors file or a .pth file of "
        "tensors",
    ),
    Malformed(
        "one tensor",
        saved(torch.zeros(2)),
        "model.weights=<folder>/weights.pth holds no state dict, but one Tensor: accepted is a .safetensors file "
        "or a .pth file of tensors",
    ),
    Malformed(
        "no tensors",
        saved({}),
        "model.weights=<folder>/weights.pth holds nothing: accepted is a .safetensors file or a .pth file of "
        "tensors",
    ),
    Malformed(
        "an optimizer's state",
        saved({"state": {}, "param_groups": []}),
        "model.weights=<folder>/weights.pth holds the state of an optimizer (state, param_groups) and no weights:"
        " accepted is the file of the model beside it",
    ),
    Malformed(
        "another architecture's weights",
        saved({"encoder.weight": torch.zeros(3, 3)}),
        "model.weights=<folder>/weights.pth is not of the architecture SwinIR ('conv_first.weight' is not as "
        "there; it holds encoder.weight): accepted is a SwinIR checkpoint, or another model=",
    ),
    # ------------------------------------------------------------------ images
    Malformed(
        "a folder that is not there",
        lambda folder: GaussianDenoise(25, images=str(folder / "none")),
        "task.images=<folder>/none is no folder: accepted are <pictures>, or a folder with images (png, webp, "
        "jpg, jpeg, jpe, jfif, bmp, tif, tiff, gif, ppm, pgm, pbm, pnm)",
    ),
    Malformed(
        "a folder without images",
        lambda folder: GaussianDenoise(25, images=str(folder)),
        "task.images=<folder> holds no image: accepted are <pictures>, or a folder with images (png, webp, jpg, "
        "jpeg, jpe, jfif, bmp, tif, tiff, gif, ppm, pgm, pbm, pnm)",
    ),
    Malformed(
        "text for an image",
        images(lambda file: file.write_text("no image")),
        "task.images: <folder>/a.png cannot be read as an image (cannot identify image file '<folder>/a.png'): "
        "mend or remove it",
    ),
    Malformed(
        "an image that ends early",
        images(lambda file: file.write_bytes(png(24, 24)[:50])),
        "task.images: <folder>/a.png cannot be read as an image (image file is truncated): mend or remove it",
    ),
    Malformed(
        "transparency",
        images(lambda file: Image.new("RGBA", (24, 24)).save(file)),
        "task.images: <folder>/a.png has mode RGBA: accepted are 8-bit RGB, grey and palette images",
    ),
    Malformed(
        "16 bits",
        images(lambda file: file.write_bytes(png(24, 24, 16))),
        "task.images: <folder>/a.png has mode RGB, 16 bits: accepted are 8-bit RGB, grey and palette images",
    ),
    Malformed(
        "an image bomb",
        images(lambda file: file.write_bytes(png(60_000, 60_000))),
        "task.images: <folder>/a.png says to have more than 178956970 pixels, and is not decoded: accepted are "
        "smaller images",
    ),
    Malformed(
        "images that are too small",
        images(lambda file: Image.new("RGB", (4, 4)).save(file)),
        "task.images=<folder> holds no image of the 11 pixels a side that the metrics need (a is 4x4): accepted "
        "are larger images",
    ),
    Malformed(
        "pairs of unlike sizes",
        unlike_pairs,
        "task.root=<folder>: <folder>/lq/a.png is 24x30, <folder>/gt/a.png is 30x24: accepted are pairs with the "
        "size of the clean image",
    ),
    Malformed(
        "an image without its pair",
        unmatched_pairs,
        "task.root=<folder>: <folder>/lq/a.png has no clean image (task.clean=gt, task.clean_name={name}): "
        "accepted are complete pairs",
    ),
    # ------------------------------------------------------------------ archives and downloads
    Malformed(
        "a member outside",
        zipped("../evil"),
        "<folder>/a.zip is not unpacked: its member '../evil' would lie outside the folder; accepted are archives"
        " without it",
    ),
    Malformed(
        "an absolute member",
        tarred("/tmp/evil"),
        "<folder>/a.tar is not unpacked: its member '/tmp/evil' would lie outside the folder; accepted are "
        "archives without it",
    ),
    Malformed(
        "a member below a file",
        zipped("a", "a/b"),
        "<folder>/a.zip is not unpacked: its member 'a/b' lies below another one that is a file, or has the name "
        "of a folder; accepted are archives without it",
    ),
    Malformed(
        "a member without a name",
        zipped("."),
        "<folder>/a.zip is not unpacked: its member '.' has no name; accepted are archives without it",
    ),
    Malformed(
        "no such member",
        zipped("a", wanted="b"),
        "<folder>/a.zip holds no files in b: accepted are archives with some there",
    ),
    Malformed(
        "a download that there is not",
        lambda folder: _find("swinir-m-x9"),
        "swinir-m-x9 is no download (did you mean swinir-m-x8?): python -m nystra_bench.fetch --list shows all",
    ),
    Malformed(
        "no archive",
        lambda folder: ((folder / "a.zip").write_text("no archive"), unpack(folder / "a.zip", folder / "out")),
        "<folder>/a.zip is no whole zip or tar archive (File is not a zip file): accepted is one that came whole",
    ),
]
