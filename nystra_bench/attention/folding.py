"""The position bias as features of the tokens, ``[Q F][K G]^T = Q K^T + B``, for what never sees an N x N matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from nystra_bench.attention.base import Window

EXACT_UP_TO = 512
"""Tokens up to which the bias is factorised by a full SVD; a randomised one beyond."""


def centred(bias: Tensor) -> Tensor:
    """The position bias (H, N, N) less the mean of each row, float32: the same to softmax, and nearer to a low rank."""
    bias = bias.float()
    return bias - bias.mean(-1, keepdim=True)


def bias_factors(bias: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """F, G of shape (H, N, rank), float32, with ``F G^T`` nearest to a position bias (H, N, N), which is ``centred``.

    Beyond ``EXACT_UP_TO`` tokens by a randomised SVD (Halko et al., arXiv 0909.4061) with a seed of its own, so
    that the same bias has the same factors.
    """
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


def folded_bias(window: Window, rank: int) -> tuple[Tensor, Tensor] | None:
    """F and G (H, N, rank) of a window's position bias, made once a layer and window size; None where there is none."""

    def make() -> tuple[Tensor, Tensor]:
        bias = window.bias()
        assert bias is not None, "asked for where there is one"
        return bias_factors(centred(bias), rank)

    return window.cache.once("factors", make) if window.has_bias and rank else None
