"""GRL (Li et al., arXiv 2303.00748): cosine attention in windows beside attention through anchors in stripes."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor

from nystra_bench.errors import UserError
from nystra_bench.models.adapters.swin2sr import SHARPEST
from nystra_bench.models.sites import Adapter, Site
from nystra_bench.models.windows import bias_from_table, half, split_heads
from nystra_bench.sizes import Size, plain


class WindowSite(ABC, Site):  # ABC as in the module's own class, which Python wants where a class is exchanged
    """Queries, keys and values of a map, (B, height * width, 3 C) -> (B, height * width, C)."""

    def window_of_module(self) -> Size:
        if self.euclidean_dist:
            raise UserError("this GRL attends by distances, not by products: accepted is one with euclidean_dist=False")
        return plain(self.window_size)

    def bias_weights(self) -> Iterable[Tensor]:
        return self.attn_transform.cpb_mlp.parameters()

    def position_bias(self, size: Size) -> Tensor:
        table = self.attn_transform.cpb_mlp(self.told).view(-1, self.num_heads)
        return bias_from_table(16 * table.sigmoid(), size)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
        q, k, v = split_heads(x, 3, self.num_heads)
        sharpness = self.attn_transform.logit_scale.clamp(max=SHARPEST).exp()
        return F.normalize(q, dim=-1) * sharpness, F.normalize(k, dim=-1), v, 1.0

    def forward(self, qkv: Tensor, x_size: tuple[int, int], table: Tensor, index: Tensor, mask: Tensor | None):
        self.told = table  # of the offsets in a window: the same at every call
        shifted = self.shift_size > 0
        shift = half(self.size) if shifted else 0
        return self.over_map(qkv.unflatten(1, x_size), shift, self.regions(*x_size, shifted, qkv.device)).flatten(1, 2)


class GRL(Adapter):
    architecture = "GRL"
    mixins = {"WindowAttention": WindowSite}
    kept = {
        "AnchorStripeAttention": "it attends through anchors, which is a product of two narrow matrices already",
        "ChannelAttention": "it weighs channels, not tokens",
    }
