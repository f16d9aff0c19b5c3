"""Small stores made by hand, through the engine's own classes, so that what is read is what is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from nystra_bench.sweep.cell import SCHEMA, Cell
from nystra_bench.sweep.store import Store, write_atomically

DESCRIBE = {
    "psnr": {"unit": "dB", "higher_is_better": True, "convention": "RGB, whole image, clipped, rounded to 8 bits"},
    "ssim": {"unit": "", "higher_is_better": True, "convention": "RGB, Gaussian window of 11, whole image"},
    "deviation_psnr": {"unit": "dB", "higher_is_better": True, "convention": "RGB, whole image, not rounded"},
}
NYSTRA = {"guard": 5.0, "init": "global", "iterations": 2, "landmarks": 16}
COMPANIONS = {
    "exact": [400.0, 410.0, 390.0, 400.0, 405.0],
    "exact_again": [401.0, 408.0, 391.0, 399.0, 406.0],
    "sdpa": [150.0, 152.0, 149.0, 150.0, 151.0],
    "identity": [60.0, 61.0, 60.0, 60.0, 62.0],
    "native": [90.0, 91.0, 90.0, 89.0, 90.0],
}


class SyntheticStore:
    """Writes cells, results and failures as the engine does."""

    nystra, companions = NYSTRA, COMPANIONS

    def __init__(self, results: Path, sweep: str = "demo"):
        self.results, self.sweep = results, sweep
        self.store = Store(results / "store")
        self.cells: list[dict] = []

    def cell(self, measure: str, attention: str, params: dict | None = None, /, **changes) -> Cell:
        """A planned cell; ``changes`` replace its fields, and None leaves one out."""
        content = {
            "measure": {"name": measure, "version": "1", "params": {}},
            "model": {"name": "toy_w8", "weights": "aa" * 32, "version": "1", "native_window": 8},
            "window": 32,
            "position_bias": "interpolate",
            "task": {"name": "denoise", "version": "1", "dataset": "bundled", "params": {"sigma": 25.0, "seed": 0}}
            | {"data": "bb" * 32},
            "attention": {"name": attention, "version": "1", "params": params or {}},
            "device": "cpu",
            "dtype": "float32",
            "settings": {} if measure == "quality" else {"hardware": "toy", "threads": 2},
        }
        cell = Cell.of({name: part for name, part in (content | changes).items() if part is not None})
        uses = {"bias": "folded", "mask": "ignored"}
        self.cells.append({"key": cell.key, "cell": cell.content, "uses": uses, "status": "planned", "reason": None})
        return cell

    def skip(self, cell: Cell, reason: str) -> None:
        self.cells[-1] |= {"status": "skipped", "reason": reason}
        assert self.cells[-1]["key"] == cell.key

    def quality(self, cell: Cell, images: list[dict], output: np.ndarray | None = None, **about) -> None:
        """``images``: the metrics of each image; ``output`` (H, W, 3): the restored first image."""
        value = {
            "images": [
                {"id": f"image{n}", "height": 48, "width": 64, "metrics": metrics, "input": {"psnr": 20.0, "ssim": 0.3}}
                for n, metrics in enumerate(images)
            ],
            "describe": DESCRIBE,
            "unavailable": {"lpips": "no <weights> file"},
        }

        def attach(folder: Path) -> None:
            if output is not None:
                np.savez_compressed(folder / "output.npz", output=output.astype(np.float16), id="image0")

        self._save(cell, value, attach=attach, **about)

    def picture(self, cell: Cell, degraded: np.ndarray, clean: np.ndarray) -> None:
        """The input and clean image of a cell's task."""
        self.store.write_arrays(self.store.panel_images(cell, "image0"), input=degraded, clean=clean)

    def latency(self, cell: Cell, samples: list[float], companions: dict, size: tuple = (48, 64), **about) -> None:
        """``size``: height and width of the input."""
        value = {"samples_ms": samples, "first_ms": 2 * samples[0], "setup_ms": 5.0, "companions": companions}
        self._save(cell, value | {"height": size[0], "width": size[1], "batch": 1, "seed": 0}, **about)

    def memory(self, cell: Cell, peak: float = 512.0, gflops: float = 12.5, attention: float = 3.1) -> None:
        self._save(cell, {"peak_mb": peak, "method": "RSS", "gflops": gflops, "attention_gflops": attention})

    def bound(self, cell: Cell, *layers: dict) -> None:
        """``layers``: the numbers of each, name -> for each head one for each of two windows."""
        named = [{"layer": f"blocks.{n}", "windows": [0, 5], "values": values} for n, values in enumerate(layers)]
        self._save(cell, {"image": "image0", "height": 48, "width": 64, "layers": named})

    def alone(self, measure: str, attention: str, params: dict | None = None, **parameters) -> Cell:
        """A planned cell of a measurement that needs neither model nor task, with parameters."""
        absent = dict.fromkeys(("model", "window", "position_bias", "task"))
        measured = {"name": measure, "version": "1", "params": parameters}
        return self.cell(measure, attention, params, measure=measured, **absent)

    def scaling(self, cell: Cell, times: dict[int, float], end: str | None = None, **about) -> None:
        """``times``: tokens -> ms; ``end``: why the curve goes no further, at four times the last size."""
        sizes = [_size(n, {"samples_ms": [0.98 * ms, ms, 1.02 * ms], "median_ms": ms, "peak_mb": n / 1e3})
                 for n, ms in times.items()]  # fmt: skip
        if end:
            sizes.append(_size(4 * max(times), {"samples_ms": [], "kind": "time", "reason": end}))
        self._save(cell, {"heads": 6, "dim": 30, "seed": 0, "sizes": sizes}, **about)

    def propagation(self, cell: Cell, *errors: tuple[float, float], **about) -> None:
        """``errors``: of each layer, all attentions replaced and its own alone."""
        layers = [
            {"layer": f"blocks.{n}.attn", "block": f"blocks.{n}", "all": every, "alone": alone}
            for n, (every, alone) in enumerate(errors)
        ]
        error = {"mean_square_error": errors[-1][0] ** 2, "height": 48, "width": 64}
        self._save(cell, {"layers": layers, **error}, **about)

    def spectrum(self, cell: Cell, records: list[dict]) -> None:
        """``records``: the numbers of each layer and head (``spectrum_record``)."""
        self._save(cell, {"images": [{"id": "image0", "height": 48, "width": 64, "records": records}]})

    def maps(self, cell: Cell, values: np.ndarray, exact: np.ndarray, **changes) -> None:
        """One map of an attention and the exact one, (height, width) in tokens of two pixels; the box starts at row 8,
        column 16. ``changes`` replace what is told of it."""
        height, width = values.shape
        told = {"layer": "blocks.0", "head": 0, "query": [11, 19], "box": [8, 16, 2 * height, 2 * width]}
        told |= {"outside": 0.0, "map_error": float(np.abs(values - exact).sum() / 2)} | changes

        def attach(folder: Path) -> None:
            image = np.linspace(0, 1, 48 * 64 * 3).reshape(48, 64, 3)
            np.savez_compressed(folder / "maps.npz", image=image.astype(np.float16), map0=values, exact0=exact)

        self._save(cell, {"image": "image0", "height": 48, "width": 64, "maps": [told]}, attach=attach)

    def _save(self, cell: Cell, value: dict, **about) -> None:
        defaults = {"status": "done", "reason": None, "seconds": 1.0, "session": "s1"}
        self.store.save(cell, value, **(defaults | {"environment": {"cpu": "toy & co"}} | about))

    def fill(self) -> None:
        """One group with every kind of outcome: infinities, skipped, failed, missing, unstable, and ugly names."""
        rng = np.random.default_rng(0)
        clean = rng.random((48, 64, 3)).astype(np.float32)

        def scores(psnr: float, deviation: float) -> list[dict]:
            return [
                {"psnr": psnr - 1, "ssim": 0.8, "deviation_psnr": deviation - 2, "deviation_ssim": 0.9, "lpips2": 0.1},
                {"psnr": psnr + 1, "ssim": 0.9, "deviation_psnr": deviation + 2, "deviation_ssim": 0.9, "lpips2": 0.3},
            ]

        for name, params, psnr, deviation, samples in [
            ("exact", {}, 30.0, float("inf"), COMPANIONS["exact"]),
            ("identity", {}, 22.0, 24.0, COMPANIONS["identity"]),
            ("nystra", NYSTRA, 28.0, 32.0, [80.0, 82.0, 78.0, 80.0, 81.0]),
            ("nystra", NYSTRA | {"landmarks": 8}, 27.0, 30.0, [70.0, 71.0, 70.0, 70.0, 72.0]),
            ("nystra", NYSTRA | {"landmarks": 8, "init": "matrix"}, 27.5, 30.5, [71.0, 71.0, 70.0, 70.0, 72.0]),
            ("a<b>&|_%", {}, 25.0, 27.0, [400.0, 409.0, 391.0, 401.0, 404.0]),
        ]:
            quality = self.cell("quality", name, params)
            noisy = clean + (0 if name == "exact" else 0.1) * rng.standard_normal(clean.shape)
            self.quality(quality, scores(psnr, deviation), noisy)
            self.picture(quality, clean + 0.2 * rng.standard_normal(clean.shape), clean)
            unstable: dict[str, Any] = {"status": "unstable", "reason": "spread 12 %"} if name == "identity" else {}
            self.latency(self.cell("latency", name, params), samples, COMPANIONS, **unstable)
            self.memory(self.cell("memory", name, params))
            if name == "nystra":
                self.bound(self.cell("bound", name, params), {"matrix_error": [[0.1, 0.2], [0.3, 0.4]]})
            self.spectrum(self.cell("spectrum", name, params), [spectrum_record(n, 0.8 + 0.05 * n) for n in range(3)])
            self.maps(self.cell("maps", name, params), noisy[:4, :6, 0] / 24, clean[:4, :6, 0] / 24, outside=0.1)
        self.skip(self.cell("quality", "refuser"), "refuses <windows> | of 32")
        failing = self.cell("quality", "broken")
        self.store.fail(failing, "failed", "RuntimeError: no <b>luck</b>", "Traceback…")
        self.quality(self.cell("quality", "half"), scores(26.0, 28.0))
        self.cell("latency", "half")

    def write(self) -> Path:
        """Write the plan; the results folder."""
        plan = {"schema": SCHEMA, "sweep": self.sweep, "cells": self.cells}
        write_atomically(self.results / self.sweep / "cells.json", json.dumps(plan))
        return self.results


def _size(tokens: int, about: dict) -> dict:
    """A size of a curve, with what is the same at all."""
    same = {"side": round(tokens**0.5), "windows": 1, "finite": True, "unstable": None, "kind": None, "reason": None}
    return {"tokens": tokens, **same, **about}


def spectrum_record(head: int = 0, decay: float = 0.8, tokens: int = 64, **changes) -> dict:
    """A head of ``blocks.0`` whose singular values fall by a factor; ``changes`` replace what is told of it."""
    values = [decay**n for n in range(min(tokens, 50))]
    shares = np.cumsum(np.square(values)) / np.sum(np.square(values))
    record = {"layer": "blocks.0", "head": head, "tokens": tokens, "singular_values": values}
    record |= {f"energy_{n}": float(shares[min(n, tokens) - 1]) for n in (5, 10, 20)}
    record |= {f"rank_{p}": float((shares < p / 100).sum() + 1) for p in (90, 95, 99)}
    record |= {"effective_tokens": 12.5, "self_mass": 0.1, "logit_min": -9.0, "logit_max": 8.0, "logit_std": 2.5}
    return record | {"matrix_mse": 1e-5, "spectral_error": 0.25} | changes


# --------------------------------------------------------------------------- what reports are drawn from


def unmeasured(store: SyntheticStore) -> None:
    """A planned sweep of which nothing is measured yet."""
    for measure in ("quality", "latency", "memory", "bound", "spectrum", "maps"):
        store.cell(measure, "exact")
        store.cell(measure, "nystra", NYSTRA)
    store.skip(store.cell("quality", "refuser"), "refuses windows of 32")


def not_finite(store: SyntheticStore) -> None:
    """Every number is infinite or not a number in one row or another, and every name is ugly."""
    model = {"name": "m<&|_%$", "weights": "dd" * 32, "version": "1", "native_window": 8}
    task = {"name": "t<&|_%", "version": "1", "dataset": r"d<&|_%$\frac{$", "params": {"sigma": 25.0}}
    about = {"model": model, "task": task | {"data": "cc" * 32}}
    infinity, nan = float("inf"), float("nan")
    for name, params, number in [
        ("exact", {}, infinity),
        ("identity", {}, -infinity),
        ("nystra", NYSTRA, nan),
        ("nystra", NYSTRA | {"landmarks": 8}, infinity),
        ("a<b>&|_%$", {}, nan),
        ("b^{}~#\\", {}, -infinity),
        ("one|number", {}, 30.0),
    ]:
        metrics = {"psnr": number, "ssim": number, "deviation_psnr": number, "deviation_ssim": number}
        output = np.full((8, 8, 3), min(max(number, 0.0), 1.0) if number == number else nan)
        store.quality(store.cell("quality", name, params, **about), [metrics, metrics | {"psnr": 30.0}], output)
        store.latency(store.cell("latency", name, params, **about), [10.0, 10.0], {"exact": [10.0, 10.0]})
        store.memory(store.cell("memory", name, params, **about), nan, infinity, nan)
        store.bound(store.cell("bound", name, params, **about), {"matrix_error": [[number, 0.5]]})
        record = spectrum_record()
        whole = ("layer", "head", "tokens", "singular_values")
        broken: dict[str, Any] = {key: number for key in record if key not in whole}
        values = [1.0, *[number] * 49]
        store.spectrum(
            store.cell("spectrum", name, params, **about),
            [record, spectrum_record(1, singular_values=values, **broken)],
        )
        store.maps(store.cell("maps", name, params, **about), np.full((4, 6), number), np.full((4, 6), nan),
                   outside=number, map_error=number)  # fmt: skip


def without_models(store: SyntheticStore) -> None:
    """Attentions alone, against the number of tokens: measured, ended, not finite, failed and missing."""
    for mode, growth in (("window", 2.0), ("image", 1.0)):
        for name, params in (("exact", {}), ("a<b>&|_%$", {}), ("nystra", NYSTRA), ("identity", {})):
            times = {n: 1e-5 * n ** (growth if name == "exact" else 1.0) for n in (256, 1024, 4096, 16384)}
            end = "a call would take about 9 s, more than 2 s" if name == "exact" else None
            store.scaling(store.alone("scaling", name, params, shape="swinir_m", mode=mode), times, end)
        bad = {256: float("inf"), 1024: float("nan"), 4096: 0.0}
        store.scaling(store.alone("scaling", "bad", shape="6x30", mode=mode), bad, status="nonfinite", reason="NaN")
    store.store.fail(store.alone("scaling", "broken", shape="global", mode="window"), "failed", "RuntimeError: no luck")
    store.alone("scaling", "missing", shape="global", mode="window")


def by_layer(store: SyntheticStore) -> None:
    """Errors layer by layer, some with their operations: measured, none at all, not finite, and missing."""
    infinity, nan = float("inf"), float("nan")
    for bias in ("native", "interpolate"):
        store.propagation(store.cell("propagation", "exact", position_bias=bias), (0.0, 0.0), (0.0, 0.0))
        for landmarks in (8, 16):
            nystra = "nystra", NYSTRA | {"landmarks": landmarks}
            cell = store.cell("propagation", *nystra, position_bias=bias)
            store.propagation(cell, (0.1, 0.1), (0.3, 0.05), (1.2, 0.4))
            store.memory(store.cell("memory", *nystra, position_bias=bias), attention=landmarks / 10)
        cell = store.cell("propagation", "a<b>&|_%$", position_bias=bias)
        store.propagation(cell, (0.1, 0.2), (infinity, nan), status="nonfinite", reason="NaN")
    store.cell("propagation", "missing")


CASES: dict[str, Callable[[SyntheticStore], None]] = {
    "full": SyntheticStore.fill,
    "empty": lambda store: None,
    "unmeasured": unmeasured,
    "not_finite": not_finite,
    "without_models": without_models,
    "by_layer": by_layer,
}
"""What tables and figures have to bear, by name: fills an empty store."""
