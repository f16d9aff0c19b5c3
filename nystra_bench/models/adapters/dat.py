"""DAT (Chen et al., arXiv 2308.03364): halves of the channels in lying and standing windows, and channel attention."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from nystra_bench.models.sites import Adapter, Site
from nystra_bench.models.windows import bias_from_table, merge, merge_heads, partition, split_heads
from nystra_bench.sizes import Size, plain


class RectangleSite(Site):
    """One half: (3, B, height * width, C), the queries, keys and values, -> (B, height, width, C)."""

    def window_of_module(self) -> Size:
        return plain((self.H_sp, self.W_sp))

    def bias_weights(self) -> Iterable[Tensor]:
        return self.pos.parameters()

    def position_bias(self, size: Size) -> Tensor:
        return bias_from_table(self.pos(self.rpe_biases), size)

    def forward(self, qkv: Tensor, H: int, W: int, mask: Tensor | None = None) -> Tensor:  # noqa: N803 as it is called
        windows = (partition(x.unflatten(1, (H, W)), self.size) for x in qkv)
        q, k, v = (split_heads(x, 1, self.num_heads)[0] for x in windows)
        out = self.attend(q * self.scale, k, v, self.regions(H, W, mask is not None, q.device))
        return merge(merge_heads(out), self.size, H, W)


class WithoutMasks:
    """Around both halves: says that they are shifted, without making the dense masks."""

    def calculate_mask(self, *_, **__) -> tuple[Tensor, Tensor]:
        return torch.empty(0), torch.empty(0)


class DAT(Adapter):
    architecture = "DAT"
    mixins = {"Spatial_Attention": RectangleSite, "Adaptive_Spatial_Attention": WithoutMasks}
    kept = {"Adaptive_Channel_Attention": "it attends between channels, not tokens"}
