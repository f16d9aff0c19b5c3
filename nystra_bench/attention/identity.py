"""No attention at all: the floor of cost, which every replacement of the attention is bounded by."""

from __future__ import annotations

import torch
from torch import Tensor

from nystra_bench.attention.base import Attention, Window


class IdentityAttention(Attention):
    """Passes v through. Its latency is that of the rest of the model, its deviation what the attention is worth."""

    rows_sum_to_one = True
    permutation_equivariant = True

    def forward(self, q: Tensor, k: Tensor, v: Tensor, window: Window) -> Tensor:
        return v

    def reads_maps(self, x: Tensor, window: Window) -> bool:
        return True

    def forward_map(self, q: Tensor, k: Tensor, v: Tensor, window: Window, places: Tensor, scale: float) -> Tensor:
        return v

    def matrix(self, q: Tensor, k: Tensor, window: Window) -> Tensor:
        eye = torch.eye(q.shape[-2], dtype=q.dtype, device=q.device)
        return eye.expand(*q.shape[:2], *eye.shape)

    def flops(self, windows: int, heads: int, tokens: int, dim: int, dim_v: int) -> int:
        return 0
