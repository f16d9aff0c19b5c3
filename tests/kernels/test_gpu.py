"""The kernels in Triton give what the eager forms give: on a GPU where there is one, else by Triton's interpreter."""

from __future__ import annotations

import os

import pytest
import torch
from attention_references import random_qkv, relative_error, smooth_qkv
from kernel_cases import CASES, CLOSE, HEADS, shifted, window_of

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when the kernels are defined

pytest.importorskip("triton", reason="triton comes with PyTorch for GPUs; on a CPU: pip install triton")

from torch.utils.flop_counter import FlopCounterMode

from nystra_bench.attention.nystra_plus import NystraPlusAttention
from nystra_bench.attention.nystra_plus_fused import FusedNystraPlusAttention
from nystra_bench.kernels import gpu as library
from nystra_bench.kernels.gpu import nystra_plus as gpu

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.inference_mode():
        yield


def kernel(method: FusedNystraPlusAttention, qkv, window) -> torch.Tensor:
    """What the method does on a GPU, on a CPU, too."""
    q, k, v = (x.to(DEVICE) for x in qkv)
    features, regions = method._features(window, q), method._regions(window, q.device)
    return gpu.nystra_plus(q, k, v, *features, regions, method.iterations, method.exact_diagonal).cpu()


def errors(parameters, qkv, make_window) -> float:
    eager = NystraPlusAttention(**parameters)(*qkv, make_window())
    return relative_error(kernel(FusedNystraPlusAttention(**parameters), qkv, make_window()), eager)


# The interpreter takes seconds where a GPU takes none: there, only what differs in the kernel's source.
QUICK = ("odd", "an odd number of landmarks", "no features", "no diagonal", "narrower than a vector", "rectangle")


@pytest.mark.parametrize("form", ["in one", "split"])
@pytest.mark.parametrize("case", CASES if torch.cuda.is_available() else QUICK)
def test_nystra_plus(case, form, monkeypatch):
    monkeypatch.setattr(gpu, "SPLIT_FROM", 1 if form == "split" else 10**9)
    monkeypatch.setattr(gpu, "PART", 64)
    (height, width), dim, parameters = CASES[case]
    qkv = smooth_qkv(1, HEADS, height, width, dim)
    assert errors(parameters, qkv, lambda: window_of(height, width)) < CLOSE


@pytest.mark.parametrize("form", ["in one", "split"])
def test_shifted_windows(form, monkeypatch):
    monkeypatch.setattr(gpu, "SPLIT_FROM", 1 if form == "split" else 10**9)
    monkeypatch.setattr(gpu, "PART", 64)
    qkv, regions = smooth_qkv(4, HEADS, 8, 12, 10), shifted(8, 12)
    assert errors({}, qkv, lambda: window_of(8, 12, regions=regions)) < CLOSE


def test_tokens_that_are_as_near_to_several_clusters_join_them_all():
    q, k, v = random_qkv(1, HEADS, 64, 16)
    k = (4 * k[:, :, :1]).round().expand_as(k).contiguous()  # whole numbers: equal in any order of summation
    assert errors({}, (q, k, v), lambda: window_of(8, 8, with_bias=False)) < CLOSE


def test_queries_keys_and_values_are_read_as_a_projection_leaves_them():
    together = torch.randn(2, 64, 3, HEADS, 10)
    q, k, v = together.permute(2, 0, 3, 1, 4)
    assert not q.is_contiguous()
    given = kernel(FusedNystraPlusAttention(), (q, k, v), window_of(8, 8))
    expected = kernel(FusedNystraPlusAttention(), [x.contiguous() for x in (q, k, v)], window_of(8, 8))
    torch.testing.assert_close(given, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_has_sums_in_float32(dtype):
    qkv = [x.to(dtype) for x in smooth_qkv(2, HEADS, 8, 8, 16)]
    given = kernel(FusedNystraPlusAttention(), qkv, window_of(8, 8))
    expected = NystraPlusAttention()(*(x.float() for x in qkv), window_of(8, 8))
    assert given.dtype == dtype
    assert relative_error(given.float(), expected) < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_is_not_finite_stays_so(which):
    qkv = list(random_qkv(1, HEADS, 64, 16))
    qkv[which] = qkv[which].clone()
    qkv[which][0, 0, 5, 3] = float("nan")
    assert not kernel(FusedNystraPlusAttention(), qkv, window_of(8, 8)).isfinite().all()


def test_its_operations_are_counted_as_those_of_the_eager_form():
    method, qkv, window = FusedNystraPlusAttention(), smooth_qkv(1, HEADS, 8, 8, 16), window_of(8, 8)
    q, k, v = (x.to(DEVICE) for x in qkv)
    operator = library.operator("nystra_plus", method._form._flops["cuda"])
    with FlopCounterMode(display=False) as counter:
        operator(q, k, v, *method._features(window, q), None, method.iterations, method.exact_diagonal)
    assert counter.get_total_flops() == method.flops(1, HEADS, 64, 16, 16)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_method_runs_it_on_a_gpu(dtype):
    method = FusedNystraPlusAttention(implementation="fused")
    q, k, v = (x.to(DEVICE, dtype) for x in smooth_qkv(4, HEADS, 16, 16, 30))
    given = method(q, k, v, window_of(16, 16))
    expected = NystraPlusAttention()(*(x.float().cpu() for x in (q, k, v)), window_of(16, 16))
    assert method.about() == {"kernel": "fused"}
    assert relative_error(given.float().cpu(), expected) < max(CLOSE, 4 * torch.finfo(dtype).eps)
