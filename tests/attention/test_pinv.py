"""Razavi's iteration for the pseudo-inverse."""

from __future__ import annotations

import pytest
import torch

from nystra_bench.attention.pinv import INITS, razavi_pinv


def well_conditioned(*shape, seed=0):
    """Matrices whose singular values lie between 1 and 3."""
    *lead, n = shape
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(2, *lead, n, n, dtype=torch.float64, generator=generator)
    left, right = torch.linalg.qr(noise)[0]
    return left @ torch.diag_embed(torch.linspace(1, 3, n, dtype=torch.float64).expand(*lead, n)) @ right


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("size", (1, 8, 32))
def test_converges_to_the_inverse_with_many_iterations(init, size):
    a = well_conditioned(2, 3, size)
    torch.testing.assert_close(razavi_pinv(a, 20, init), torch.linalg.pinv(a), rtol=1e-10, atol=1e-10)


def test_converges_to_the_pseudo_inverse_of_a_singular_matrix():
    """With few iterations: in the null space, where A Z = 0, each one multiplies rounding errors by 13/4."""
    a = well_conditioned(8)
    a = a @ torch.diag(torch.tensor([1.0] * 5 + [0.0] * 3, dtype=torch.float64)) @ a.T
    torch.testing.assert_close(razavi_pinv(a, 10), torch.linalg.pinv(a), rtol=1e-8, atol=1e-8)


def test_is_of_third_order():
    """I - A Z shrinks as its cube with every iteration."""
    a = well_conditioned(8)
    eye = torch.eye(8, dtype=torch.float64)
    residuals = [torch.linalg.matrix_norm(eye - a @ razavi_pinv(a, i), 2).item() for i in range(4, 9)]
    small = [(before, after) for before, after in zip(residuals, residuals[1:], strict=False) if 1e-4 < before < 0.3]
    assert small, "no step lies where the order shows"
    assert all(after < 2 * before**3 for before, after in small)


def test_without_iterations_it_is_the_scaled_transpose():
    a = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    expected = a.T / (6 * 7)  # largest column sum 2 + 4, largest row sum 3 + 4
    for init in INITS:
        torch.testing.assert_close(razavi_pinv(a, 0, init), expected)


def test_global_init_takes_both_norms_over_the_whole_tensor():
    """The largest column sum comes from one matrix, the largest row sum from the other."""
    a = torch.tensor([[[0.0, 9.0], [0.0, 9.0]], [[11.0, 0.5], [0.25, 0.5]]])
    torch.testing.assert_close(razavi_pinv(a, 0, "global"), a.transpose(1, 2) / (18 * 11.5))
    own = torch.tensor([18 * 9.0, 11.25 * 11.5])[:, None, None]
    torch.testing.assert_close(razavi_pinv(a, 0, "matrix"), a.transpose(1, 2) / own)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16))
def test_keeps_dtype_and_shape_and_leaves_its_argument_alone(dtype):
    a = well_conditioned(2, 3, 8).to(dtype)
    before = a.clone()
    z = razavi_pinv(a, 6)
    assert z.dtype == dtype and z.shape == a.shape
    assert torch.equal(a, before)


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_norms_that_underflow_give_no_nan(init, dtype):
    """exp(-60) squared is zero in float32: 0 / 0 without the 1e-15 of the authors' code."""
    a = torch.full((2, 4, 4), -60.0, dtype=dtype).exp()
    z = razavi_pinv(a, 2, init)
    assert z.isfinite().all() and z.abs().max() < 1e-9
    torch.testing.assert_close(razavi_pinv(a, 0, init), a * 1e15)


@pytest.mark.parametrize("init", INITS)
def test_the_start_is_computed_in_the_inputs_own_precision(init):
    """In float64 the norms were rounded to float32."""
    a = well_conditioned(2, 3, 8)
    columns, rows = a.abs().sum(-2).amax(-1), a.abs().sum(-1).amax(-1)
    norms = columns.max() * rows.max() if init == "global" else (columns * rows)[..., None, None]
    torch.testing.assert_close(razavi_pinv(a, 0, init), a.mT / norms, rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_half_precision_is_inverted_in_float32(dtype):
    a = well_conditioned(2, 3, 8).to(dtype)
    expected = razavi_pinv(a.double(), 20)
    torch.testing.assert_close(razavi_pinv(a, 20).double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-3)
