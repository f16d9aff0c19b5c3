"""The guard that lets torchvision, and what imports it, be imported beside a CPU-only torch."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from nystra_bench import torchvision_guard


@pytest.mark.parametrize("first", ("torchvision", "lpips"))
def test_after_the_guard_a_fresh_interpreter_can_import(first):
    code = f"import nystra_bench.torchvision_guard, {first}, torchvision; print(torchvision.__version__)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=80)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()


def test_the_operators_that_torchvision_registers_for_are_declared():
    import torchvision  # noqa: F401

    schema = str(torch.ops.torchvision.nms.default._schema)
    assert schema == "torchvision::nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def test_a_second_call_declares_nothing_anew():
    library = torchvision_guard._library
    assert torchvision_guard.install() is torchvision_guard.install()
    assert torchvision_guard._library is library


def test_nothing_is_declared_where_torchvisions_own_library_loads(monkeypatch):
    monkeypatch.setattr(torchvision_guard, "_library", None)
    monkeypatch.setattr(torchvision_guard, "_own_library_loads", lambda: True)
    assert torchvision_guard.install() is False
    assert torchvision_guard._library is None


def test_without_torchvision_there_is_nothing_to_guard(monkeypatch):
    monkeypatch.setattr(torchvision_guard.importlib.util, "find_spec", lambda name: None)
    assert torchvision_guard._own_library_loads()
