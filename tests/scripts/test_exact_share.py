"""The share of exact attention's weights that version 5 attends to one by one."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from attention_references import random_qkv
from script_modules import FOLDER, script

from nystra_bench.attention.base import Window

share = script("exact_share")


@torch.inference_mode()
def weights(q, k, v, **parameters) -> torch.Tensor:
    attention, found = share.Watched(exact_up_to=0, **parameters), []
    with share.watched(attention, found):
        attention(q, k, v, Window(16, 16))
    assert {tokens for tokens, _ in found} == {256}
    return torch.cat([w.flatten() for _, w in found])


def test_all_of_them_where_all_keys_are_near():
    """But for clusters of a single token, whose mean is that token."""
    found = weights(*random_qkv(2, 2, 256, 16), landmarks=16, exact_keys=256)
    assert found.shape == (2 * 2 * 256,) and found.max() <= 1 + 1e-5
    assert found.mean() > 0.98


@pytest.mark.parametrize("keys", [0, 64])
def test_that_of_the_pairs_where_all_weights_are_equal(keys):
    q, k, v = random_qkv(1, 1, 256, 16)
    found = weights(torch.zeros_like(q), k, v, landmarks=64, exact_keys=keys)
    least, most = 32 / 256, (32 + keys) / 256  # a block, and as many further keys as whole clusters have
    assert found.min() >= least - 1e-6 and found.max() <= most + 1e-6
    assert keys == 0 or found.mean() > (32 + 0.8 * keys) / 256


def test_it_is_a_command():
    command = [sys.executable, str(FOLDER / "exact_share.py"), "swinir_denoise_w8", "16", "--side", "32"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("| layer | N |") and len(lines) > 4
    assert all("| 256 |" in line and "%" in line for line in lines[2:])
