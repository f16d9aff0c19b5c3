"""Fused exact attention with the position bias folded into the features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nystra_bench.attention.base import Window, add_bias_and_mask
from nystra_bench.attention.folding import folded_bias
from nystra_bench.attention.parameters import check_whole_numbers
from nystra_bench.attention.sdpa import FusedAttention


class FoldedAttention(FusedAttention):
    """softmax([Q F][K G]^T + M) V by PyTorch's fused kernel, with ``F G^T`` the position bias reduced to a rank.

    Kernels that take no bias, or take one only slowly, can so serve biased windows: nothing of N x N is made after the
    first call. Its deviation is that of the bias; windows on the shift's seam are masked as in ``sdpa``.

    Args:
        bias_rank: r, the number of features by which queries and keys grow.

    Raises:
        ValueError: the rank is out of its range.
    """

    exact = False
    folds_bias = True

    def __init__(self, bias_rank: int = 16):
        super().__init__()
        check_whole_numbers(bias_rank=(bias_rank, 1))
        self.bias_rank = bias_rank

    def forward(self, q: Tensor, k: Tensor, v: Tensor, window: Window) -> Tensor:
        dim_v = v.shape[-1]
        if factors := folded_bias(window, self.bias_rank):
            f, g = factors
            q, k = (torch.cat([x, y.to(x.dtype).expand(x.shape[0], -1, -1, -1)], -1) for x, y in ((q, f), (k, g)))
        # The fused CPU kernel wants values as wide as keys.
        width = max(q.shape[-1], dim_v)
        q, k, v = (F.pad(x, (0, width - x.shape[-1])) for x in (q, k, v))
        return self.attend(q, k, v, None, window)[..., :dim_v]

    def matrix(self, q: Tensor, k: Tensor, window: Window) -> Tensor:
        bias = None
        if factors := folded_bias(window, self.bias_rank):
            f, g = factors
            bias = f @ g.transpose(-2, -1)
        return add_bias_and_mask(q @ k.transpose(-2, -1), bias, window.mask()).softmax(-1)

    def flops(self, windows: int, heads: int, tokens: int, dim: int, dim_v: int) -> int:
        width = max(dim + min(self.bias_rank, tokens), dim_v)
        return 4 * windows * heads * tokens * tokens * width
