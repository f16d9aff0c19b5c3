"""The kernels give what the eager forms give, but for rounding: all shapes, masks, ties, and layers of models."""

from __future__ import annotations

import pytest
import torch
from attention_references import random_qkv, relative_error, smooth_qkv
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import CASES, CLOSE, HEADS, errors_of_heads, shifted, window_of

from nystra_bench import load_model
from nystra_bench.attention.base import Window
from nystra_bench.attention.exact import ExactAttention
from nystra_bench.attention.nystra import NystraAttention
from nystra_bench.attention.nystra_fused import FusedNystraAttention
from nystra_bench.attention.nystra_plus import NystraPlusAttention
from nystra_bench.attention.nystra_plus_fused import FusedNystraPlusAttention
from nystra_bench.errors import UserError
from nystra_bench.models import calibrate, named_attention_sites, plug
from nystra_bench.models.checkpoints import BUNDLED
from nystra_bench.models.swinir import SwinIR, SwinIRSpec

pytestmark = pytest.mark.usefixtures("kernels_here", "without_gradients")


def errors(parameters, qkv, make_window) -> float:
    eager = NystraPlusAttention(**parameters)(*qkv, make_window())
    fused = FusedNystraPlusAttention(**parameters, implementation="fused")(*qkv, make_window())
    return relative_error(fused, eager)


@pytest.mark.parametrize("masked", [False, True], ids=["unmasked", "shifted"])
@pytest.mark.parametrize("case", CASES)
def test_nystra_plus(case, masked):
    (height, width), dim, parameters = CASES[case]
    regions = shifted(height, width) if masked else None
    qkv = smooth_qkv(4, HEADS, height, width, dim)
    assert errors(parameters, qkv, lambda: window_of(height, width, regions=regions)) < CLOSE


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    height=st.integers(2, 20),
    width=st.integers(2, 20),
    dim=st.sampled_from([4, 10, 16, 17, 30, 32, 64]),
    dim_v=st.sampled_from([5, 16, 30, 64]),
    landmarks=st.sampled_from([4, 6, 8, 16, 64]),
    rank=st.integers(0, 9),
    masked=st.booleans(),
    with_bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_nystra_plus_of_any_shape(height, width, dim, dim_v, landmarks, rank, masked, with_bias, seed):
    method = NystraPlusAttention(landmarks, bias_rank=rank)
    if method.refuses(height, width):
        return
    with torch.inference_mode():
        q, k, _ = smooth_qkv(4, HEADS, height, width, dim, seed=seed)
        v = random_qkv(4, HEADS, height * width, dim_v, seed=seed)[2]
        # A region without clusters of its own is not kept apart; who is near to whom is then a matter of rounding.
        regions = shifted(height, width) if masked and min(height, width) >= 4 else None
        parameters = {"landmarks": landmarks, "bias_rank": rank}
        assert errors(parameters, (q, k, v), lambda: window_of(height, width, with_bias, regions)) < CLOSE


@pytest.mark.parametrize("init", ["global", "matrix"])
@pytest.mark.parametrize("landmarks", [4, 16, 21, 64])
@pytest.mark.parametrize("size", [(16, 16), (9, 13), (8, 32), (4, 32)])
@pytest.mark.parametrize("dims", [(30, 30), (10, 10), (3, 5), (16, 64)])
def test_nystra(size, dims, landmarks, init):
    if NystraAttention(landmarks).refuses(*size):
        pytest.skip("refused")
    q, k, _ = smooth_qkv(3, HEADS, *size, dims[0])
    qkv = q, k, random_qkv(3, HEADS, size[0] * size[1], dims[1])[2]
    eager = NystraAttention(landmarks, 2, init)(*qkv, Window(*size))
    fused = FusedNystraAttention(landmarks, 2, init, implementation="fused")(*qkv, Window(*size))
    assert relative_error(fused, eager) < CLOSE


@pytest.mark.parametrize("scale", [10, 200])
def test_nystra_grows_linearly_beyond_its_guard(scale):
    q, k, v = smooth_qkv(2, HEADS, 8, 8, 16)
    q = q * (scale / (q @ k.mT).amax())
    eager = NystraAttention(iterations=1)(q, k, v, Window(8, 8))
    fused = FusedNystraAttention(iterations=1, implementation="fused")(q, k, v, Window(8, 8))
    assert relative_error(fused, eager) < 1e-4


@pytest.mark.parametrize("equal", ["all", "in pairs"])
def test_tokens_that_are_as_near_to_several_clusters_join_them_all(equal):
    """As in the eager form; without a bias, whose features tell tokens apart."""
    q, k, v = random_qkv(2, HEADS, 64, 16)
    k = k[..., :1, :].expand_as(k).contiguous() if equal == "all" else k[..., torch.arange(64) % 32, :]
    eager = NystraPlusAttention(bias_rank=0)(q, k, v, Window(8, 8))
    fused = FusedNystraPlusAttention(bias_rank=0, implementation="fused")(q, k, v, Window(8, 8))
    assert relative_error(fused, eager) < CLOSE


@pytest.mark.parametrize("method", [FusedNystraPlusAttention, FusedNystraAttention])
def test_queries_keys_and_values_are_read_as_a_projection_leaves_them(method):
    projected = torch.randn(3, 64, 3, HEADS, 30, generator=torch.Generator().manual_seed(0))
    q, k, v = projected.permute(2, 0, 3, 1, 4)
    attention = method(implementation="fused")
    out = attention(q, k, v, window_of(8, 8))
    assert relative_error(out, attention(*(x.contiguous() for x in (q, k, v)), window_of(8, 8))) < 1e-6
    assert out.transpose(1, 2).is_contiguous(), "the projection after it reads all heads of a token"
    across = [x.mT.contiguous().mT for x in (q, k, v)]
    assert relative_error(attention(*across, window_of(8, 8)), out) < 1e-6


@pytest.mark.parametrize("method", [FusedNystraPlusAttention, FusedNystraAttention])
@pytest.mark.parametrize("dims", [(30, 30), (5, 3), (16, 40)])
def test_bfloat16_is_computed_in_float32(method, dims):
    """What comes out is what the same numbers give in float32, rounded once."""
    q, k, _ = (x.bfloat16() for x in smooth_qkv(3, HEADS, 9, 13, dims[0]))
    v = random_qkv(3, HEADS, 9 * 13, dims[1], dtype=torch.bfloat16)[2]
    attention = method(implementation="fused")
    half = attention(q, k, v, window_of(9, 13))
    precise = attention(q.float(), k.float(), v.float(), window_of(9, 13))
    assert half.dtype == torch.bfloat16 and torch.equal(half, precise.bfloat16())
    assert half.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("method", [FusedNystraPlusAttention, FusedNystraAttention])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_number_of_threads_changes_nothing(method, threads):
    qkv = smooth_qkv(5, HEADS, 8, 8, 16)
    before = torch.get_num_threads()
    outputs = []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            outputs.append(method(implementation="fused")(*qkv, window_of(8, 8)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*outputs)


@pytest.mark.parametrize("method", [FusedNystraPlusAttention, FusedNystraAttention])
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(method, which, value):
    qkv = list(random_qkv(1, HEADS, 64, 16))
    qkv[which][0, 0, 5, 3] = value
    out = method(implementation="fused")(*qkv, Window(8, 8))
    assert not out[0, 0].isfinite().all()
    assert out[0, 1].isfinite().all() or method is FusedNystraAttention, "the other head has no part in it"


class Recording(ExactAttention):
    """Exact attention that keeps what the layers call it with."""

    def __init__(self):
        super().__init__()
        self.calls: list[tuple] = []

    def forward(self, q, k, v, window):
        bias, regions = window.bias(), window.regions()
        self.calls.append((q, k, v, window.height, window.width, bias, regions))
        return super().forward(q, k, v, window)


@pytest.mark.parametrize("weights", sorted(file.stem for file in BUNDLED.glob("*.safetensors")))
def test_every_layer_of_a_bundled_model(weights):
    """On one small map; half of the layers are shifted.

    A token that is as near to two clusters but for rounding may join one of them in the eager form and the other here:
    then the kernel gives what the eager form gives in float64.
    """
    model, recording = load_model(weights), Recording()
    side = 64 if "uformer" in weights or "dehazeformer" in weights else 48
    plug(model, recording)(torch.rand(1, model.channels, side, side, generator=torch.Generator().manual_seed(0)))
    assert len(recording.calls) >= len(named_attention_sites(model))
    for q, k, v, height, width, bias, regions in recording.calls:
        makers = [None if x is None else lambda x=x: x for x in (bias, regions)]
        fused = FusedNystraPlusAttention(implementation="fused")(q, k, v, Window(height, width, *makers))
        eager = NystraPlusAttention()(q, k, v, Window(height, width, *makers))
        apart = errors_of_heads(fused, eager) > CLOSE
        assert apart.sum() <= 1 + apart.numel() // 100
        assert relative_error(fused[~apart], eager[~apart]) < CLOSE
        if apart.any():
            exact = NystraPlusAttention()(q.double(), k.double(), v.double(), Window(height, width, *makers))
            assert errors_of_heads(fused, exact)[apart].max() < CLOSE


def test_a_calibrated_layer_runs_the_kernel():
    torch.manual_seed(0)
    model = SwinIR(SwinIRSpec(dim=8, depths=(2,), heads=(2,), window=8, mlp_ratio=1.0)).eval()
    method = FusedNystraPlusAttention(target_deviation=20.0, implementation="fused")
    image = torch.rand(1, 3, 16, 16)
    calibrate(model, method, [image])
    layers = [method.at_layer(name) for name in named_attention_sites(model)]
    plug(model, method)(image)
    ours = [layer for layer in layers if isinstance(layer, NystraPlusAttention)]
    assert ours and all(type(layer) is FusedNystraPlusAttention for layer in ours)
    assert method.about() == {"kernel": "fused"}


@pytest.mark.parametrize("method", [FusedNystraPlusAttention, FusedNystraAttention])
def test_what_ran_is_told(method):
    attention, (q, k, v) = method(), random_qkv(1, HEADS, 64, 16)
    assert attention.about() == {}
    window = window_of(8, 8)
    attention(q, k, v, window)
    assert attention.about() == {"kernel": "fused"}
    assert window.cache.seconds["kernels"] >= 0, "to build and to load them is set-up"
    attention(q.double(), k.double(), v.double(), window_of(8, 8))
    assert attention.about() == {"kernel": "eager (there is no kernel for float64 on cpu)"}
    eager = method(implementation="eager")
    eager(q, k, v, window_of(8, 8))
    assert eager.about() == {"kernel": "eager"}


@pytest.mark.parametrize("method", [FusedNystraPlusAttention, FusedNystraAttention])
def test_what_the_kernel_does_not_have_is_an_error_where_it_is_asked_for(method):
    q, k, v = random_qkv(1, HEADS, 64, 16, dtype=torch.float16)
    with pytest.raises(UserError, match="does not fit, since there is no kernel for float16 on cpu"):
        method(implementation="fused")(q, k, v, window_of(8, 8))


@pytest.mark.parametrize("method", [FusedNystraPlusAttention, FusedNystraAttention])
def test_gradients_reach_the_inputs(method):
    with torch.inference_mode(False):
        q, k, v = (x.clone().requires_grad_() for x in random_qkv(1, HEADS, 64, 16))
        attention = method()
        attention(q, k, v, window_of(8, 8)).square().sum().backward()
        assert attention.about() == {"kernel": "eager (gradients are recorded)"}
        assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in (q, k, v))


@pytest.mark.parametrize("parameters", [{"clustering": 1}, {"landmarks_from": "cells"}])
def test_other_clusterings_are_eager(parameters):
    qkv = smooth_qkv(2, HEADS, 16, 16, 16)
    attention = FusedNystraPlusAttention(**parameters)
    assert torch.equal(attention(*qkv, window_of(16, 16)), NystraPlusAttention(**parameters)(*qkv, window_of(16, 16)))
    assert attention.about()["kernel"].startswith("eager (the kernel has no landmarks_from=")
    with pytest.raises(ValueError, match="implementation=fused does not fit"):
        FusedNystraPlusAttention(**parameters, implementation="fused")


def test_a_compiled_model_holds_the_operator():
    """Its shape is known to PyTorch's compiler without running it."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    qkv, window = random_qkv(2, HEADS, 64, 16), Window(8, 8)
    attention = FusedNystraPlusAttention(implementation="fused")
    real = attention(*qkv, window)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = attention(*(mode.from_tensor(x) for x in qkv), window)
    assert fake.shape == real.shape and fake.stride() == real.stride()
