"""Published implementations from PyPI as oracles."""

from __future__ import annotations

import pytest
import torch
from attention_references import random_qkv, relative_error, smooth_qkv

from nystra_bench.attention.base import Window
from nystra_bench.baselines.common import gaussian_directions
from nystra_bench.baselines.nystromformer import NystromformerAttention
from nystra_bench.baselines.performer import PerformerAttention

WINDOWS, HEADS, DIM = 3, 2, 16


def unscaled(q):
    return q * q.shape[-1] ** 0.5


@pytest.mark.parametrize("iterations", (1, 3, 6))
@pytest.mark.parametrize("landmarks", (4, 16))
@pytest.mark.parametrize("data", (random_qkv, smooth_qkv), ids=("noise", "smooth"))
def test_nystromformer_agrees_with_nystrom_attention(data, landmarks, iterations):
    """That package projects its input to q, k and v: here the identity, of all three side by side."""
    package = pytest.importorskip("nystrom_attention", reason="the test extra nystrom-attention is not installed")
    size = (64,) if data is random_qkv else (8, 8)
    q, k, v = data(WINDOWS, HEADS, *size, DIM, seed=1)
    oracle = package.NystromAttention(
        3 * HEADS * DIM, DIM, HEADS, num_landmarks=landmarks, pinv_iterations=iterations, residual=False
    )
    torch.nn.init.eye_(oracle.to_qkv.weight)
    oracle.to_out = torch.nn.Identity()
    side_by_side = torch.cat([t.transpose(1, 2).flatten(2) for t in (unscaled(q), k, v)], -1)
    with torch.no_grad():
        expected = oracle(side_by_side).unflatten(-1, (HEADS, DIM)).transpose(1, 2)
        actual = NystromformerAttention(landmarks, iterations, init="global")(q, k, v, Window(8, 8))
    assert relative_error(actual, expected) < 1e-5


@pytest.mark.parametrize("features", (16, 40))
@pytest.mark.parametrize("scale", (1.0, 4.0))
def test_performer_agrees_with_performer_pytorch(features, scale):
    package = pytest.importorskip(
        "performer_pytorch", reason="the test extra performer-pytorch is not installed, or Python has no distutils"
    )
    q, k, v = random_qkv(WINDOWS, HEADS, 64, DIM, seed=2)
    q, window = scale * q, Window(8, 8)
    projection = gaussian_directions(window, features, q, seed=3, orthogonal=True)
    oracle = package.FastAttention(DIM, features)
    oracle.projection_matrix.copy_(projection)
    # The oracle takes the maximum of all keys in one window and head, as ours.
    expected = oracle(unscaled(q), k, v)
    assert relative_error(PerformerAttention(features, seed=3)(q, k, v, window), expected) < 1e-5
