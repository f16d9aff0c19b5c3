"""The kernel of version 5 gives what its eager form gives: all shapes, masks, maps, and layers of models.

Which cluster a token joins and which clusters a block attends to are choices; where two are as good but for rounding,
the forms may choose otherwise. Such windows and heads are few, and then no farther from exact attention.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from attention_references import random_qkv, relative_error, smooth_qkv
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import CLOSE, HEADS, errors_of_heads, shifted, window_of
from torch.utils.flop_counter import FlopCounterMode

from nystra_bench import load_model
from nystra_bench.attention.base import Window
from nystra_bench.attention.exact import ExactAttention
from nystra_bench.attention.identity import IdentityAttention
from nystra_bench.attention.nystra_plus_v5 import NystraPlusV5Attention
from nystra_bench.attention.nystra_plus_v5_fused import FusedNystraPlusV5Attention
from nystra_bench.errors import UserError
from nystra_bench.models import calibrate, named_attention_sites, plug
from nystra_bench.models.checkpoints import BUNDLED
from nystra_bench.models.cutting import in_windows, shift_regions, window_places
from nystra_bench.models.windows import merge_heads, split_heads

pytestmark = pytest.mark.usefixtures("kernels_here", "without_gradients")

ALWAYS = {"exact_up_to": 0}
"""Clusters whatever the window."""

CASES = {
    "default": ((16, 16), 30, {}),
    "narrow": ((16, 16), 10, {}),
    "wide": ((16, 16), 64, {}),
    "rectangle": ((8, 32), 10, {}),
    "odd": ((9, 13), 32, {}),
    "a row": ((1, 117), 16, {}),
    "few landmarks": ((16, 16), 30, {"landmarks": 5, "exact_keys": 40}),
    "blocks of 64": ((32, 32), 16, {"landmarks": 16, "exact_keys": 100}),
    "no near keys": ((16, 16), 16, {"exact_keys": 0}),
    "all keys near": ((16, 16), 16, {"exact_keys": 256}),
    "rank 24": ((12, 12), 30, {"bias_rank": 24}),
    "no features": ((16, 16), 30, {"bias_rank": 0}),
    "no residual": ((16, 16), 30, {"residual": False}),
    "no Lloyd": ((16, 16), 30, {"clustering": 0}),
    "three of Lloyd's steps": ((16, 16), 30, {"clustering": 3}),
    "narrower than a vector": ((8, 8), 3, {}),
    "all tokens are landmarks": ((8, 8), 16, {"landmarks": 64}),
    "one token": ((1, 1), 16, {}),
    "a thousand tokens": ((32, 32), 30, {}),
    "two thousand tokens": ((32, 64), 16, {}),
}


def fused_form(**parameters) -> FusedNystraPlusV5Attention:
    return FusedNystraPlusV5Attention(**{**ALWAYS, **parameters}, implementation="fused")


def agree(fused, eager, exact) -> None:
    """But for rounding; where a choice was another one, the kernel is as close to exact attention."""
    assert fused.isfinite().all()
    apart = errors_of_heads(fused, eager) > CLOSE
    assert apart.sum() <= 1 + apart.numel() // 20
    ours, theirs = (errors_of_heads(x, exact)[apart] for x in (fused, eager))
    assert (ours <= 1.2 * theirs + CLOSE).all()


def compare(parameters, qkv, make_window) -> None:
    eager = NystraPlusV5Attention(**{**ALWAYS, **parameters})(*qkv, make_window())
    fused = fused_form(**parameters)(*qkv, make_window())
    agree(fused, eager, ExactAttention()(*qkv, make_window()))


@pytest.mark.parametrize("masked", [False, True], ids=["unmasked", "shifted"])
@pytest.mark.parametrize("case", CASES)
def test_the_forms_agree(case, masked):
    (height, width), dim, parameters = CASES[case]
    if masked and min(height, width) < 2:
        pytest.skip("nothing to shift")
    regions = shifted(height, width) if masked else None
    compare(parameters, smooth_qkv(4, HEADS, height, width, dim), lambda: window_of(height, width, regions=regions))


@pytest.mark.parametrize("masked", [False, True], ids=["unmasked", "shifted"])
def test_the_forms_agree_on_a_bias_that_is_no_matter_of_offsets(masked):
    bias = torch.randn(HEADS, 117, 117, generator=torch.Generator().manual_seed(0))
    regions = shifted(9, 13) if masked else None
    make_window = partial(Window, 9, 13, lambda: bias, (lambda: regions) if masked else None)
    compare({"landmarks": 9, "exact_keys": 40}, smooth_qkv(4, HEADS, 9, 13, 16), make_window)


@pytest.mark.parametrize("parameters", [{}, {"residual": False}, {"bias_rank": 3, "exact_keys": 100}])
def test_its_operations_are_fewer_than_those_of_the_eager_form(parameters):
    """Counted as they are done, and as the method says of itself: calibration chooses by that."""
    qkv, counted = random_qkv(2, HEADS, 256, 16), {}
    for name in ("fused", "eager"):
        method = FusedNystraPlusV5Attention(**ALWAYS, **parameters, implementation=name)
        with FlopCounterMode(display=False) as counter:
            method(*qkv, window_of(16, 16))
        counted[name] = method.flops(2, HEADS, 256, 16, 16)
        if name == "fused":
            assert counter.get_total_flops() == counted[name]
    assert counted["fused"] < counted["eager"]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    dim=st.sampled_from([4, 10, 16, 17, 30, 32, 64]),
    dim_v=st.sampled_from([5, 16, 30, 64]),
    landmarks=st.sampled_from([None, 1, 4, 9, 16, 64]),
    exact_keys=st.sampled_from([None, 0, 7, 50]),
    rank=st.integers(0, 9),
    with_bias=st.booleans(),
    residual=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_shape(height, width, dim, dim_v, landmarks, exact_keys, rank, with_bias, residual, seed):
    parameters = {"landmarks": landmarks, "exact_keys": exact_keys, "bias_rank": rank, "residual": residual}
    if NystraPlusV5Attention(**parameters).refuses(height, width):
        return
    with torch.inference_mode():
        q, k, _ = smooth_qkv(3, HEADS, height, width, dim, seed=seed)
        v = random_qkv(3, HEADS, height * width, dim_v, seed=seed)[2]
        compare(parameters, (q, k, v), lambda: window_of(height, width, with_bias))


@pytest.mark.parametrize("weights", sorted(file.stem for file in BUNDLED.glob("*.safetensors")))
def test_a_bundled_model(weights):
    """As a whole, half of its layers shifted: the outputs of the forms are closer than either is to exact attention."""
    model = load_model(weights)
    side = 64 if "uformer" in weights or "dehazeformer" in weights else 48
    image = torch.rand(1, model.channels, side, side, generator=torch.Generator().manual_seed(0))
    exact = plug(model, ExactAttention())(image)
    parameters = {"landmarks": 16, "exact_keys": 16}
    eager = plug(model, NystraPlusV5Attention(**parameters))(image)
    fused = plug(model, fused_form(**parameters, exact_up_to=None))(image)
    assert relative_error(eager, exact) > CLOSE, "the attention has to matter for this to show anything"
    assert relative_error(fused, eager) < 0.5 * relative_error(eager, exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("size, shift, dim", [((16, 16), (8, 8), 30), ((9, 6), (4, 3), 10), ((1, 40), (0, 0), 16)])
def test_windows_are_found_on_the_map(size, shift, dim, dtype):
    height, width, scale = 2 * size[0], 3 * size[1], 0.3
    regions = shift_regions(height, width, size, shift) if min(shift) > 1 else None
    smooth = torch.randn(2, height, width, 8, generator=torch.Generator().manual_seed(0)).cumsum(1).cumsum(2) / 30
    x = (smooth @ torch.randn(8, 3 * HEADS * dim, generator=torch.Generator().manual_seed(1))).to(dtype)
    attention, window = fused_form(landmarks=8, exact_keys=16), window_of(*size, regions=regions)
    assert attention.reads_maps(x, window)
    places = window_places(height, width, size, shift)
    qkv = split_heads(x.flatten(1, 2), 3, HEADS)
    found = attention.forward_map(*qkv, window, places, scale)
    assert found.dtype == dtype and found.transpose(1, 2).is_contiguous()
    if dtype == torch.bfloat16:  # queries that are scaled in half precision first are other queries
        precise = attention.forward_map(*(t.float() for t in qkv), window, places, scale)
        assert torch.equal(found, precise.bfloat16())
        return

    def cut_out(windows):
        q, k, v = split_heads(windows, 3, HEADS)
        return merge_heads(attention(q * scale, k, v, window_of(*size, regions=regions)))

    expected = in_windows(x, size, shift, cut_out)
    assert relative_error(merge_heads(found).view_as(expected), expected) < CLOSE


@pytest.mark.parametrize("threads", [2, 5])
def test_the_number_of_threads_changes_nothing(threads):
    qkv, before, outputs = smooth_qkv(5, HEADS, 12, 12, 16), torch.get_num_threads(), []
    window = window_of(12, 12)  # the same, since the factors of its bias differ by rounding
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            outputs.append(fused_form()(*qkv, window))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*outputs)


@pytest.mark.parametrize("equal", ["all", "in pairs"])
def test_equal_keys(equal):
    q, k, v = random_qkv(2, HEADS, 64, 16)
    k = k[..., :1, :].expand_as(k).contiguous() if equal == "all" else k[..., torch.arange(64) % 32, :]
    out = fused_form(landmarks=9, exact_keys=10)(q, k, v, Window(8, 8))
    assert out.isfinite().all()
    if equal == "all":
        assert relative_error(out, v.mean(2, keepdim=True).expand_as(v)) < CLOSE


@pytest.mark.parametrize("logits", [1e2, 1e4])
def test_large_logits(logits):
    """Rows still sum to one."""
    q, k, v = random_qkv(2, HEADS, 144, 16)
    q = q * (logits / (q @ k.mT).abs().amax())
    out = fused_form(landmarks=9, exact_keys=20)(q, k, torch.ones_like(v), window_of(12, 12))
    assert (out - 1).abs().max() < 1e-4


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(which, value):
    qkv = list(random_qkv(1, HEADS, 144, 16))
    qkv[which][0, 0, 5, 3] = value
    out = fused_form(landmarks=9, exact_keys=20)(*qkv, Window(12, 12))
    assert not out[0, 0].isfinite().all()
    assert out[0, 1].isfinite().all(), "the other head has no part in it"


def test_what_ran_is_told():
    q, k, v = random_qkv(1, HEADS, 576, 16)
    attention, window = FusedNystraPlusV5Attention(), window_of(24, 24)
    attention(q, k, v, window)
    assert attention.about() == {"kernel": "fused"}
    attention(q.double(), k.double(), v.double(), window_of(24, 24))
    assert attention.about() == {"kernel": "eager (there is no kernel for float64 on cpu)"}
    small = [x[:, :, :64] for x in (q, k, v)]
    assert not attention.reads_maps(q, window_of(8, 8)), "exact attention wants its windows cut out"
    attention(*small, window_of(8, 8))
    assert attention.about() == {"kernel": "exact"}
    with pytest.raises(UserError, match="does not fit, since there is no kernel for float16 on cpu"):
        fused_form()(q.half(), k.half(), v.half(), window_of(24, 24))


def test_gradients_reach_the_inputs():
    with torch.inference_mode(False):
        q, k, v = (x.clone().requires_grad_() for x in random_qkv(1, HEADS, 144, 16))
        attention = FusedNystraPlusV5Attention(**ALWAYS)
        attention(q, k, v, window_of(12, 12)).square().sum().backward()
        assert attention.about() == {"kernel": "eager (gradients are recorded)"}
        assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in (q, k, v))


def test_a_calibrated_layer_runs_the_kernel():
    model = load_model("swinir_denoise_w8", window_size=24, position_bias="interpolate")
    image = torch.rand(1, model.channels, 24, 24, generator=torch.Generator().manual_seed(0))
    method = FusedNystraPlusV5Attention(target_deviation=30.0, implementation="fused")
    calibrate(model, method, [image])
    layers = [method.at_layer(name) for name in named_attention_sites(model)]
    ours = [layer for layer in layers if isinstance(layer, NystraPlusV5Attention)]
    assert ours and all(type(layer) is FusedNystraPlusV5Attention for layer in ours)
    found = plug(model, method)(image)
    assert relative_error(found, plug(model, ExactAttention())(image)) < 0.1
    assert relative_error(found, plug(model, IdentityAttention())(image)) > CLOSE
