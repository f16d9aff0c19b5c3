"""Fused attention in few calls: windows with one mask together, what is kept, and what is told of the kernel."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from attention_references import exact, random_qkv, relative_error

from nystra_bench.attention import sdpa
from nystra_bench.attention.base import Window, region_mask
from nystra_bench.attention.exact import ExactAttention
from nystra_bench.attention.exact_published import PublishedExactAttention
from nystra_bench.attention.folded import FoldedAttention
from nystra_bench.attention.groups import groups_of
from nystra_bench.attention.sdpa import FusedAttention, chosen_kernel, kernel_width
from nystra_bench.models.windows import shift_regions

SIZE, HEADS, DIM = 4, 2, 8
TOKENS = SIZE * SIZE
BIAS = torch.randn(HEADS, TOKENS, TOKENS, generator=torch.Generator().manual_seed(1))


def shifted(rows, columns) -> Window:
    regions = shift_regions(rows * SIZE, columns * SIZE, SIZE, SIZE // 2)
    return Window(SIZE, SIZE, lambda: BIAS, lambda: regions)


@pytest.fixture
def calls(monkeypatch):
    """Windows of each call of the kernel."""
    made, kernel = [], F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, *a, **k: made.append(len(q)) or kernel(q, *a, **k))
    return made


@pytest.mark.parametrize(
    "rows, columns, expected",
    (
        (1, 1, [2]),
        (2, 2, [2, 2, 2, 2]),
        (4, 5, [24, 6, 8, 2]),
        (1, 3, [4, 2]),  # all at the bottom, the last in the corner
        (16, 16, [512, 30, 30, 2]),  # few are masked: all windows are attended without a mask first
    ),
)
@torch.inference_mode()
def test_windows_with_one_mask_are_one_call(calls, rows, columns, expected):
    q, k, v = random_qkv(2 * rows * columns, HEADS, TOKENS, DIM, seed=rows)
    window = shifted(rows, columns)
    out = FusedAttention()(q, k, v, window)
    assert sorted(calls, reverse=True) == sorted(expected, reverse=True) and len(calls) <= 4
    assert relative_error(out, exact(q, k, v, BIAS, window.regions())) < 1e-5


def test_each_group_has_its_windows_mask():
    window = shifted(3, 4)
    masks = region_mask(window.regions())
    seen = []
    for group in groups_of(window, 24, torch.float32):
        for number in group.windows.tolist():
            expected = masks[number % 12]
            assert torch.equal(torch.zeros_like(expected) if group.mask is None else group.mask[0, 0], expected)
            seen.append(number)
    assert sorted(seen) == list(range(24))


def test_equal_masks_make_one_group_whatever_the_numbers_of_the_regions():
    regions = torch.tensor([[5, 5, 1, 1], [2, 2, 7, 7], [3, 3, 3, 3], [0, 1, 1, 0]])
    groups = groups_of(Window(2, 2, regions=lambda: regions), 4, torch.float32)
    assert sorted(group.windows.tolist() for group in groups) == [[0, 1], [2], [3]]


@pytest.mark.parametrize("rows", (3, 16))
def test_gradients_pass_through_masked_groups(rows):
    window = shifted(rows, rows)
    outputs = []
    for method in (ExactAttention(), FusedAttention()):
        q, k, v = (t.requires_grad_() for t in random_qkv(rows * rows, HEADS, TOKENS, DIM))
        out = method(q, k, v, window)
        (out * torch.linspace(0, 1, DIM)).sum().backward()
        outputs.append((out, q.grad, k.grad, v.grad))
    for one, other in zip(*outputs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_the_output_lies_in_memory_as_models_merge_its_heads():
    """(B, N, H, d), so that no copy is needed; the inputs are slices of one tensor, as in models."""
    for rows in (3, 16):
        qkv = torch.randn(rows * rows, TOKENS, 3, HEADS, DIM).permute(2, 0, 3, 1, 4)
        out = FusedAttention()(*qkv, shifted(rows, rows))
        assert out.transpose(1, 2).is_contiguous()
        torch.testing.assert_close(out, ExactAttention()(*qkv, shifted(rows, rows)), rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------------------- what is made, and how often


@pytest.mark.parametrize(
    "method, calls, biases, regions",
    (
        (ExactAttention, 3, 1, 1),
        (FusedAttention, 3, 1, 1),
        (FoldedAttention, 3, 1, 1),
        (PublishedExactAttention, 3, 3, 3),
    ),
)
@torch.inference_mode()
def test_bias_and_mask_are_kept_except_by_the_published_form(method, calls, biases, regions):
    made, whole = [], shifted(3, 3)
    window = Window(
        SIZE,
        SIZE,
        lambda: made.append("bias") or whole.bias(),
        lambda: made.append("regions") or whole.regions(),
    )
    q, k, v = random_qkv(9, HEADS, TOKENS, DIM)
    attention = method()
    for _ in range(calls):
        attention(q, k, v, window)
    assert (made.count("bias"), made.count("regions")) == (biases, regions)


@torch.inference_mode()
def test_all_three_exact_forms_agree_and_two_of_them_to_the_last_bit():
    q, k, v = random_qkv(18, HEADS, TOKENS, DIM)
    first, fused, published = (
        method(q, k, v, shifted(3, 3)) for method in (ExactAttention(), FusedAttention(), PublishedExactAttention())
    )
    assert torch.equal(first, published)
    assert relative_error(fused, first) < 1e-6


@torch.inference_mode()
def test_sdpa_keeps_no_sum_of_bias_and_mask():
    """One bias for the layer, and the distinct masks without heads for all layers."""
    window = shifted(5, 5)
    FusedAttention()(*random_qkv(25, HEADS, TOKENS, DIM), window)
    (kept,) = window.cache.values()
    assert torch.equal(kept, BIAS)
    (groups,) = window.shared.values()
    assert sum(group.mask.numel() for group in groups if group.mask is not None) == 3 * TOKENS * TOKENS


def test_where_gradients_are_recorded_the_bias_has_its_own():
    table = torch.zeros(HEADS, TOKENS, TOKENS, requires_grad=True)
    q, k, v = random_qkv(2, HEADS, TOKENS, DIM)
    window = Window(SIZE, SIZE, lambda: 1 * table)
    for method in (ExactAttention(), FusedAttention()):
        for _ in range(2):
            table.grad = None
            method(q, k, v, window).square().sum().backward()
            assert table.grad.abs().sum() > 0


# --------------------------------------------------------------------------- the kernel


@pytest.mark.parametrize(
    "width, dtype, device, expected",
    (
        (30, torch.float16, "cuda", 32),
        (30, torch.bfloat16, "cuda", 32),
        (30, torch.float32, "cuda", 32),
        (10, torch.float16, "cuda", 16),
        (10, torch.float32, "cuda", 12),
        (16, torch.float16, "cuda", 16),
        (12, torch.float32, "cuda", 12),
        (10, torch.float32, "cpu", 10),
        (30, torch.bfloat16, "cpu", 30),
    ),
)
def test_widths_are_filled_up_to_what_a_kernel_reads_at_once(width, dtype, device, expected):
    assert kernel_width(width, dtype, device) == expected


@pytest.mark.parametrize("dim, dim_v", ((10, 10), (10, 6)))
@torch.inference_mode()
def test_filling_up_changes_nothing(monkeypatch, dim, dim_v):
    """As on CUDA, but on the CPU."""
    widths, kernel = [], F.scaled_dot_product_attention

    def record(q, k, v, **how):
        widths.append((q.shape[-1], k.shape[-1], v.shape[-1]))
        return kernel(q, k, v, **how)

    monkeypatch.setattr(F, "scaled_dot_product_attention", record)
    monkeypatch.setattr(sdpa, "kernel_width", lambda width, dtype, device: kernel_width(width, dtype, "cuda"))
    q, k, v = random_qkv(9, HEADS, TOKENS, dim, dim_v)
    out = FusedAttention()(q, k, v, shifted(3, 3))
    assert out.shape == v.shape
    assert relative_error(out, exact(q, k, v, BIAS, shifted(3, 3).regions())) < 1e-5
    assert set(widths) == {(12, 12, kernel_width(dim_v, torch.float32, "cuda"))}


@pytest.mark.parametrize("method", (FusedAttention, FoldedAttention))
@torch.inference_mode()
def test_the_kernel_is_told_as_pytorch_decides_it(method):
    attention = method()
    assert attention.about() == {}
    attention(*random_qkv(9, HEADS, TOKENS, DIM), shifted(3, 3))
    assert attention.about() == {"kernel": "flash"}


def test_the_last_call_counts():
    attention = FusedAttention()
    with torch.inference_mode():
        attention(*random_qkv(9, HEADS, TOKENS, DIM), shifted(3, 3))
        attention(*random_qkv(9, HEADS, TOKENS, DIM, 5), shifted(3, 3))
    assert attention.about() == {"kernel": "math"}, "PyTorch's CPU kernel wants values as wide as keys"


@torch.inference_mode()
def test_pytorch_is_asked_once_a_shape(monkeypatch):
    asked = []
    monkeypatch.setattr(sdpa, "chosen_kernel", lambda q, *_: asked.append(len(q)) or "flash")
    attention, window = FusedAttention(), shifted(3, 4)
    for _ in range(3):
        attention(*random_qkv(12, HEADS, TOKENS, DIM), window)
    assert sorted(asked) == [1, 2, 3, 6]


def test_where_pytorch_cannot_be_asked_the_kernel_is_unknown(monkeypatch):
    q, k, v = random_qkv(1, HEADS, TOKENS, DIM)
    monkeypatch.delattr(torch, "_fused_sdp_choice")
    assert chosen_kernel(q, k, v, None) == "unknown"


def test_other_methods_have_nothing_to_tell():
    assert ExactAttention().about() == {}
