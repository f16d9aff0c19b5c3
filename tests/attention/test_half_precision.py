"""Half precision with large logits: every method's output is finite, and near what it gives in float32.

Logits have a standard deviation of 6, up to 40. The tolerance is a relative error of four roundings of the dtype (4e-3
in float16, 3e-2 in bfloat16). Methods that choose by comparison, which key is the nearest, say, have to choose in
float32: in half precision tokens near a border went elsewhere, and outputs were off by 10 to 60 %.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from attention_references import relative_error, smooth_qkv
from hydra.utils import instantiate
from omegaconf import OmegaConf

from nystra_bench.attention.base import Window
from nystra_bench.attention.nystra import NystraAttention

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "attention").glob("*.yaml"))
HEADS = 2


def with_large_logits(side: int):
    q, k, v = smooth_qkv(2, HEADS, side, side, 16, seed=side)
    logits = q @ k.mT
    scale = min(6 / logits.std(), 40 / logits.abs().max())
    assert (logits * scale).abs().max() > 25
    return q * scale, k, v


def window(side: int) -> Window:
    bias = torch.randn(HEADS, side**2, side**2, generator=torch.Generator().manual_seed(1))
    return Window(side, side, lambda: bias)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
@pytest.mark.parametrize("side", (8, 16, 32))
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@torch.inference_mode()
def test_half_precision_is_finite_and_near_float32(path, side, dtype):
    attention = instantiate(OmegaConf.load(path))
    half = [t.to(dtype) for t in with_large_logits(side)]
    expected = attention(*(t.float() for t in half), window(side))
    actual = attention(*half, window(side))
    assert actual.dtype == dtype and actual.isfinite().all()
    limits = torch.finfo(dtype)
    spacing = limits.smallest_normal * limits.eps  # of the numbers near zero
    allowed = 4 * limits.eps * expected.norm() + spacing * math.sqrt(expected.numel())
    assert (actual.float() - expected).norm() <= allowed


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
@pytest.mark.parametrize("init", ("global", "matrix"))
@torch.inference_mode()
def test_row_sums_of_nystra_may_exceed_float16(init, dtype):
    """Where queries and keys have a part in common, so that logits are about 10: all of the output was NaN."""
    q, k, v = smooth_qkv(2, HEADS, 32, 32, 16, seed=1)
    half = [t.to(dtype) for t in (q + 0.8, k + 0.8, v)]
    attention = NystraAttention(init=init)
    q_marks_k = attention._factors(half[0], half[1], Window(32, 32))[1]
    assert q_marks_k.sum(-1).max() > torch.finfo(torch.float16).max
    expected = attention(*(t.double() for t in half), Window(32, 32))
    assert relative_error(attention(*half, Window(32, 32)), expected) < 2 * torch.finfo(dtype).eps
