"""Pseudo-inverses of small matrices by a fixed number of matrix products."""

from __future__ import annotations

import torch
from torch import Tensor

from nystra_bench.attention.precision import at_least_float32

INITS = ("global", "matrix")


def razavi_pinv(a: Tensor, iterations: int, init: str = "matrix") -> Tensor:
    """Approximate the pseudo-inverse of ``a`` (..., m, m) by the third-order iteration of Razavi et al. (2014).

    ``Z <- 1/4 Z (13 I - A Z (15 I - A Z (7 I - A Z)))`` from ``Z = A^T / (|A|_1 |A|_inf + 1e-15)``. With
    ``init="global"`` the two norms are maxima over the whole tensor, as in the code of PnP-Nystra
    (arXiv 2506.08520): then the windows, heads and images of a batch influence one another. With
    ``init="matrix"`` each matrix has its own norms. The 1e-15 is of that code: with it a matrix whose norms vanish in
    its precision has an inverse near zero, and no NaN.

    Returns:
        (..., m, m), of a's dtype; computed in float32 at least.
    """
    shape, dtype = a.shape, a.dtype
    a = at_least_float32(a)
    a = a.flatten(0, -3) if a.dim() > 2 else a[None]
    z = a.mT / (_norm_product(a, init) + 1e-15)
    for _ in range(iterations):
        az = a @ z
        step = torch.baddbmm(az, az, az, beta=7, alpha=-1)  # A Z (7 I - A Z)
        step = torch.baddbmm(az, az, step, beta=15, alpha=-1)
        z = torch.baddbmm(z, z, step, beta=13 / 4, alpha=-1 / 4)
    return z.view(shape).to(dtype)


def _norm_product(a: Tensor, init: str) -> Tensor:
    columns, rows = a.abs().sum(-2), a.abs().sum(-1)
    if init == "global":
        return columns.max() * rows.max()
    return (columns.amax(-1) * rows.amax(-1))[..., None, None]
