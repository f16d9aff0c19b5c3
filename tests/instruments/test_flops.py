"""Operations counted, against formulas: a multiply-add is two."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nystra_bench.attention.exact import ExactAttention
from nystra_bench.attention.identity import IdentityAttention
from nystra_bench.attention.nystra import NystraAttention
from nystra_bench.attention.sdpa import FusedAttention
from nystra_bench.instruments.environment import environment, hardware, usable_cores
from nystra_bench.instruments.flops import count_flops
from nystra_bench.models import plug
from nystra_bench.models.swinir import SwinIR, SwinIRSpec


def test_linear_and_convolution():
    linear, convolution = nn.Linear(24, 48), nn.Conv2d(8, 16, 3, padding=1)
    assert count_flops(lambda: linear(torch.ones(5, 7, 24))) == 2 * 35 * 24 * 48
    assert count_flops(lambda: convolution(torch.ones(2, 8, 9, 11))) == 2 * 2 * 9 * 11 * 16 * 8 * 9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("biased", [False, True])
def test_fused_attention(dtype, biased):
    q, k, v = (torch.ones(3, 2, n, d, dtype=dtype) for n, d in ((16, 8), (20, 8), (20, 8)))
    bias = torch.zeros(3, 2, 16, 20, dtype=dtype) if biased else None
    counted = count_flops(lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=bias))
    assert counted == 2 * 3 * 2 * 16 * 20 * (8 + 8)


def test_products_that_are_added_in_place():
    left, right, added = torch.ones(5, 2, 3), torch.ones(5, 3, 7), torch.zeros(5, 2, 7)
    calls = {
        "bmm": lambda: left @ right,
        "baddbmm": lambda: torch.baddbmm(added, left, right),
        "baddbmm_": lambda: added.baddbmm_(left, right),
    }
    assert {name: count_flops(call) for name, call in calls.items()} == dict.fromkeys(calls, 2 * 5 * 2 * 3 * 7)
    assert count_flops(lambda: added[0].addmm_(left[0], right[0])) == 2 * 2 * 3 * 7


def test_what_is_counted_runs_in_inference_mode_too():
    linear = nn.Linear(4, 4)
    with torch.inference_mode():
        x = torch.ones(2, 4)
    assert count_flops(lambda: linear(x)) == 2 * 2 * 16


def test_the_attention_of_a_model_is_what_is_counted_above_none():
    spec = SwinIRSpec(dim=8, depths=(2,), heads=(2,), window=8, mlp_ratio=1.0)
    model, x = SwinIR(spec).eval(), torch.rand(1, 3, 24, 24)

    def counted(attention):
        plug(model, attention)
        return count_flops(lambda: model(x))

    floor = counted(IdentityAttention())
    windows, heads, tokens, dim = 9, 2, 64, 4
    for attention in (ExactAttention(), NystraAttention(landmarks=4, iterations=2)):
        assert counted(attention) - floor == 2 * attention.flops(windows, heads, tokens, dim, dim)
    assert counted(FusedAttention()) == counted(ExactAttention())


def test_the_environment_names_machine_and_software():
    about = environment()
    assert about["cpu"] == hardware("cpu")
    assert 1 <= usable_cores() == about["cores"]
    assert about["packages"]["torch"] == torch.__version__
    assert len(about["source"]) == 64
