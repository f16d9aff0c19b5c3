"""Position bias and shift mask for methods that never see an N x N matrix.

A landmark is an average of tokens, so its bias is the average of their biases: for pooled landmarks the position bias
of a window is three small tables, exactly. For landmarks that differ from window to window, and for fused exact
attention, the bias is factorised into features that stand beside those of the tokens: ``[Q F][K G]^T = Q K^T + B``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nystra_bench.attention.base import MASKED, Window

EXACT_UP_TO = 512
"""Tokens up to which the bias is factorised by a full SVD; a randomised one beyond."""


def bias_factors(bias: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """F, G of shape (H, N, rank), float32, with ``F G^T`` the best approximation of the bias (H, N, N) of that rank.

    Beyond ``EXACT_UP_TO`` tokens by a randomised SVD (Halko et al., arXiv 0909.4061) with a seed of its own, so that
    the same bias has the same factors.
    """
    bias = bias.float()
    rank = min(rank, bias.shape[-1])
    if bias.shape[-1] <= EXACT_UP_TO:
        u, s, vh = torch.linalg.svd(bias, full_matrices=False)
        v = vh.transpose(-2, -1)
    else:
        with torch.random.fork_rng(devices=[bias.device] if bias.is_cuda else []):
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(bias, q=min(rank + 8, bias.shape[-1]), niter=4)
    root = s[..., None, :rank].sqrt()
    return u[..., :rank] * root, v[..., :rank] * root


def pooled_mask(regions: Tensor, pool: Callable[[Tensor], Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The shift mask between tokens and landmarks (nW, 1, N, m), among landmarks, and between landmarks and tokens.

    Args:
        regions: (nW, N).
        pool: averages (..., N, d) over the landmarks' cells to (..., m, d).

    It is 0 where both are in one region and -100 where they are not, as among tokens. A landmark whose cell lies across
    regions is masked in part.
    """
    numbers, index = regions.unique(return_inverse=True)
    shares = pool((regions[..., None] == numbers).to(dtype)).transpose(-2, -1)
    of_token = index[..., None].expand(-1, -1, shares.shape[-1])
    left = MASKED * (1 - shares.gather(1, of_token))
    return left[:, None], pool(left)[:, None], left.transpose(-2, -1)[:, None]


def cached(window: Window, name: object, make):
    """What ``make`` gives, made once a layer and window size."""
    if name not in window.cache:
        window.cache[name] = make()
    return window.cache[name]
