"""Swin2SR (Conde et al., arXiv 2209.11345): cosine attention, with a bias from a small network of the log-distance."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from nystra_bench.models.adapters.swin_family import SwinBlock, SwinSite
from nystra_bench.models.sites import Adapter
from nystra_bench.models.windows import bias_from_table, split_heads
from nystra_bench.sizes import Size

SHARPEST = math.log(100)
"""Bound of the learned logarithmic temperature."""


class CosineSite(SwinSite):
    """A cosine times a temperature is the product of a unit vector and one of the temperature's length."""

    def bias_weights(self) -> Iterable[Tensor]:
        return self.cpb_mlp.parameters()

    def position_bias(self, size: Size) -> Tensor:
        table = self.cpb_mlp(self.relative_coords_table).view(-1, self.num_heads)
        return bias_from_table(16 * table.sigmoid(), size)

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        bias = None
        if self.q_bias is not None:
            bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        q, k, v = split_heads(F.linear(x, self.qkv.weight, bias), 3, self.num_heads)
        return F.normalize(q, dim=-1) * self.logit_scale.clamp(max=SHARPEST).exp(), F.normalize(k, dim=-1), v


class Swin2SR(Adapter):
    architecture = "Swin2SR"
    mixins = {"WindowAttention": CosineSite, "SwinTransformerBlock": SwinBlock}
