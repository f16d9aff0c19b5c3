"""The position bias as features of the tokens, ``[Q F][K G]^T = Q K^T + B``, for what never sees an N x N matrix."""

from __future__ import annotations

from collections.abc import Sequence

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


def error_of_factors(bias: Tensor, f: Tensor, g: Tensor) -> float:
    """What F and G (H, N, r) in place of a position bias (H, N, N) do to the outputs, of the head where it is most.

    With P the softmax of the bias and E = F G^T - B, less its mean under P, which softmax does not see: the root of the
    mean over queries of ``sum_j (P_ij E_ij)^2``. That is, to first order, the RMS error of the output for independent
    values of variance 1 and logits of position alone. An error of the bias does less where attention is flat, since it
    averages out over the keys.
    """
    worst = 0.0
    for of_head, left, right in zip(bias, f, g, strict=True):
        weights, wrong = of_head.softmax(-1), left @ right.mT - of_head
        wrong -= (weights * wrong).sum(-1, keepdim=True)
        worst = max(worst, (weights * wrong).square().sum(-1).mean().sqrt().item())
    return worst


def factors_within(bias: Tensor, ranks: Sequence[int], error: float) -> tuple[Tensor, Tensor]:
    """F and G of the first of these rising ranks whose ``error_of_factors`` is at most ``error``, else of the last."""
    f, g = bias_factors(bias, ranks[-1])
    for rank in ranks[:-1]:
        if error_of_factors(bias, f[..., :rank], g[..., :rank]) <= error:
            return f[..., :rank].contiguous(), g[..., :rank].contiguous()
    return f, g


def folded_bias(
    window: Window, rank: int | None, ranks: Sequence[int] = (), error: float = 0.0
) -> tuple[Tensor, Tensor] | None:
    """F and G (H, N, rank) of a window's position bias, made once a layer and window size; None where there is none.

    Where the rank is None, it is that of ``factors_within``.
    """

    def make() -> tuple[Tensor, Tensor]:
        bias = window.bias()
        assert bias is not None, "asked for where there is one"
        bias = centred(bias)
        return factors_within(bias, ranks, error) if rank is None else bias_factors(bias, rank)

    return window.cache.once("factors", make) if window.has_bias and rank != 0 else None
