"""DAT (Chen et al., arXiv 2308.03364): halves of the channels in lying and standing windows, and channel attention."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from nystra_bench.models.sites import Adapter, Site
from nystra_bench.models.windows import bias_from_table, split_heads
from nystra_bench.sizes import Size, plain


class RectangleSite(Site):
    """One half: (3, B, height * width, C), the queries, keys and values, -> (B, height, width, C)."""

    def window_of_module(self) -> Size:
        return plain((self.H_sp, self.W_sp))

    def bias_weights(self) -> Iterable[Tensor]:
        return self.pos.parameters()

    def position_bias(self, size: Size) -> Tensor:
        return bias_from_table(self.pos(self.rpe_biases), size)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
        q, k, v = split_heads(x, 1, self.num_heads)[0].chunk(3)
        return q, k, v, self.scale

    def forward(self, qkv: Tensor, H: int, W: int, mask: Tensor | None = None) -> Tensor:  # noqa: N803 as it is called
        regions = self.regions(H, W, mask is not None, qkv.device)
        return self.over_map(qkv.flatten(0, 1).unflatten(1, (H, W)), 0, regions)  # what is shifted is rolled already


class WithoutMasks:
    """Around both halves: says that they are shifted, without making the dense masks."""

    def calculate_mask(self, *_, **__) -> tuple[Tensor, Tensor]:
        return torch.empty(0), torch.empty(0)


class DAT(Adapter):
    architecture = "DAT"
    mixins = {"Spatial_Attention": RectangleSite, "Adaptive_Spatial_Attention": WithoutMasks}
    kept = {"Adaptive_Channel_Attention": "it attends between channels, not tokens"}
