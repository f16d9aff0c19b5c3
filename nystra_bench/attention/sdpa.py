"""Exact attention by PyTorch's fused kernel: what a user who only wants speed would try first."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from nystra_bench.attention.base import Attention, Window, add_bias_and_mask, region_mask


class FusedAttention(Attention):
    """softmax(QK^T + B + M) V by ``scaled_dot_product_attention``, without an N x N matrix of logits.

    Only the windows that touch the shift's seam are masked. The others, most of them, go through the kernel
    with the one (H, N, N) bias that they share, so that no (nW, H, N, N) tensor is made for them. PyTorch's fused
    CPU kernel serves d_v = d without gradients; elsewhere PyTorch itself falls back to separate operations.
    """

    exact = True
    rows_sum_to_one = True
    permutation_equivariant = True
    uses_bias = True
    uses_mask = True

    def forward(self, q: Tensor, k: Tensor, v: Tensor, window: Window) -> Tensor:
        bias, regions = window.bias(), window.regions()
        return self.attend(q, k, v, None if bias is None else bias.to(q.dtype)[None], regions)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, regions: Tensor | None) -> Tensor:
        """Attention with a bias (1, H, N, N) and the mask of the regions (nW, N)."""
        return _fused(q, k, v, bias) if regions is None else self._with_seam(q, k, v, bias, regions)

    def _with_seam(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, regions: Tensor) -> Tensor:
        seam = (regions != regions[:, :1]).any(1)
        windows = regions.shape[0]
        of_image = seam.repeat(q.shape[0] // windows)
        out = v.new_empty(v.shape)
        inside = (~of_image).nonzero()[:, 0]
        if len(inside):
            out[inside] = _fused(q[inside], k[inside], v[inside], bias)
        # One seam window after the other: their biases would otherwise stand in memory all at once.
        for index in seam.nonzero()[:, 0].tolist():
            mask = region_mask(regions[index : index + 1]).to(q.dtype)[:, None]
            same = slice(index, None, windows)
            out[same] = _fused(q[same], k[same], v[same], mask if bias is None else bias + mask)
        return out

    def matrix(self, q: Tensor, k: Tensor, window: Window) -> Tensor:
        return add_bias_and_mask(q @ k.transpose(-2, -1), window).softmax(-1)

    def flops(self, windows: int, heads: int, tokens: int, dim: int, dim_v: int) -> int:
        return 2 * windows * heads * tokens * tokens * (dim + dim_v)


def _fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Attention of q, which is already scaled; ``bias`` (1, H or 1, N, N) is shared by all windows."""
    q, k, v = (t.contiguous() for t in (q, k, v))
    if bias is not None:
        bias = bias.expand(q.shape[0], q.shape[1], -1, -1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
