"""Exact attention in both forms against the float64 reference, and the fused form's memory."""

from __future__ import annotations

import pytest
import torch
from attention_references import exact, exact_matrix, identity, random_qkv, relative_error
from torch.utils._python_dispatch import TorchDispatchMode

from nystra_bench.attention.base import MASKED, Window, region_mask
from nystra_bench.attention.exact import ExactAttention
from nystra_bench.attention.identity import IdentityAttention
from nystra_bench.attention.sdpa import FusedAttention

HEADS, HEIGHT, WIDTH, WINDOWS = 3, 4, 8, 4
TOKENS = HEIGHT * WIDTH

BIAS = 2 * torch.randn(HEADS, TOKENS, TOKENS, generator=torch.Generator().manual_seed(1))


def seam_regions() -> torch.Tensor:
    """Four windows as a cyclic shift leaves them: one whole, cut in columns, cut in rows, cut in both."""
    rows = (torch.arange(HEIGHT) >= HEIGHT // 2).long()[:, None].expand(HEIGHT, WIDTH)
    columns = (torch.arange(WIDTH) >= WIDTH // 2).long()[None, :].expand(HEIGHT, WIDTH)
    return torch.stack([0 * rows, 1 + columns, 3 + 2 * rows, 5 + 2 * rows + columns]).flatten(1)


@pytest.fixture(params=(None, BIAS), ids=("no bias", "bias"))
def bias(request):
    return request.param


@pytest.fixture(params=(False, True), ids=("no shift", "shift"))
def regions(request):
    return seam_regions() if request.param else None


def window_of(bias, regions) -> Window:
    return Window(HEIGHT, WIDTH, None if bias is None else lambda: bias, None if regions is None else lambda: regions)


@pytest.mark.parametrize("method", (ExactAttention, FusedAttention))
@pytest.mark.parametrize("images", (1, 3))
@pytest.mark.parametrize("dim_v", (16, 6))
def test_agrees_with_float64(method, images, dim_v, bias, regions):
    q, k, v = random_qkv(images * WINDOWS, HEADS, TOKENS, 16, dim_v, seed=images)
    with torch.no_grad():
        actual = method()(q, k, v, window_of(bias, regions))
    assert actual.dtype == torch.float32 and actual.shape == v.shape
    assert relative_error(actual, exact(q, k, v, bias, regions)) < 1e-5


@pytest.mark.parametrize("method", (ExactAttention, FusedAttention))
def test_bfloat16_is_near_float64(method, bias, regions):
    q, k, v = random_qkv(2 * WINDOWS, HEADS, TOKENS, 16, dtype=torch.bfloat16)
    with torch.no_grad():
        actual = method()(q, k, v, window_of(bias, regions))
    assert actual.dtype == torch.bfloat16
    assert relative_error(actual, exact(q, k, v, bias, regions)) < 3e-2


@pytest.mark.parametrize("method", (ExactAttention, FusedAttention))
def test_matrix_agrees_with_float64_and_is_row_stochastic(method, bias, regions):
    q, k, _ = random_qkv(2 * WINDOWS, HEADS, TOKENS, 16, seed=2)
    matrix = method().matrix(q, k, window_of(bias, regions))
    assert relative_error(matrix, exact_matrix(q, k, bias, regions)) < 1e-5
    torch.testing.assert_close(matrix.sum(-1), torch.ones(matrix.shape[:-1]))


@pytest.mark.parametrize("method", (ExactAttention, FusedAttention))
def test_tokens_of_another_region_are_not_seen(method, bias):
    q, k, v = random_qkv(WINDOWS, HEADS, TOKENS, 16, seed=3)
    regions = seam_regions()
    changed = v.clone()
    changed[3, :, regions[3] == 8] += 1e6
    seen, unseen = regions[3] == 8, regions[3] != 8
    before = method()(q, k, v, window_of(bias, regions))[3]
    after = method()(q, k, changed, window_of(bias, regions))[3]
    assert torch.equal(before[:, unseen], after[:, unseen])
    assert not torch.allclose(before[:, seen], after[:, seen])


def test_sdpa_masks_shared_by_all_windows_of_an_image_when_every_window_is_cut():
    regions = torch.arange(TOKENS).remainder(2).expand(WINDOWS, TOKENS)
    q, k, v = random_qkv(2 * WINDOWS, HEADS, TOKENS, 16, seed=4)
    actual = FusedAttention()(q, k, v, window_of(BIAS, regions))
    assert relative_error(actual, exact(q, k, v, BIAS, regions)) < 1e-5


def test_region_mask_is_minus_100_between_regions_and_0_within():
    regions = torch.tensor([[0, 0, 1], [2, 2, 2]])
    expected = torch.zeros(2, 3, 3)
    expected[0, :2, 2] = expected[0, 2, :2] = MASKED
    assert torch.equal(region_mask(regions), expected)


def test_identity_passes_the_values_through():
    q, k, v = random_qkv(2, HEADS, TOKENS, 16, 6)
    actual = IdentityAttention()(q, k, v, window_of(BIAS, None))
    assert relative_error(actual, identity(q, k, v)) == 0


# --------------------------------------------------------------------------- memory


class LargestTensor(TorchDispatchMode):
    """The number of entries of the largest tensor that an operation allocated.

    Not under inference_mode: there, composite operations reach the mode whole and hide what they allocate.
    """

    def __init__(self):
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.entries = max(self.entries, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


def largest_tensor(method, bias, regions, images=2) -> int:
    q, k, v = random_qkv(images * WINDOWS, HEADS, TOKENS, 8)
    with torch.no_grad(), LargestTensor() as largest:
        method()(q, k, v, window_of(bias, regions))
    return largest.entries


def test_sdpa_never_builds_the_logits_of_all_windows(bias, regions):
    inputs = 2 * WINDOWS * HEADS * TOKENS * 8
    one_window = HEADS * TOKENS * TOKENS
    assert largest_tensor(FusedAttention, bias, regions) <= max(inputs, one_window) < WINDOWS * one_window


def test_exact_does_build_them_so_that_the_measure_of_memory_is_sound(bias, regions):
    assert largest_tensor(ExactAttention, bias, regions) == 2 * WINDOWS * HEADS * TOKENS * TOKENS


def test_logits_that_the_memory_cannot_hold_are_refused_with_their_size(monkeypatch):
    from nystra_bench.attention import exact
    from nystra_bench.instruments import memory

    monkeypatch.setattr(exact, "LARGE", 1000)
    q = torch.zeros(2, 3, 16, 4)
    needed = 2 * 2 * 3 * 16 * 16 * 4
    monkeypatch.setattr(memory, "free_memory", lambda device: needed - 1.0)
    with pytest.raises(MemoryError, match="logits of 2 windows, 3 heads and 16 x 16 tokens .* accepted are"):
        exact.ExactAttention()(q, q, q, Window(4, 4))
    monkeypatch.setattr(memory, "free_memory", lambda device: needed + 1.0)
    assert exact.ExactAttention()(q, q, q, Window(4, 4)).shape == q.shape
