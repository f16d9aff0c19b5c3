"""SCUNet (Zhang et al., arXiv 2203.13278): a U-Net of blocks, half convolution, half attention in 8x8 windows."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from nystra_bench.models.sites import Adapter, Site
from nystra_bench.models.windows import bias_from_table, half, split_heads
from nystra_bench.sizes import Size


class MapSite(Site):
    """Rolls and cuts the map itself: (B, height, width, C) -> the same."""

    type: Any  # nn.Module has a method of that name

    def window_of_module(self) -> Size:
        return self.window_size

    def bias_weights(self) -> tuple[Tensor, ...]:
        return (self.relative_position_params,)

    def position_bias(self, size: Size) -> Tensor:
        return bias_from_table(self.relative_position_params.flatten(1).t(), size)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
        q, k, v = split_heads(self.embedding_layer(x), 3, self.n_heads)
        return q, k, v, self.scale

    def finish(self, x: Tensor) -> Tensor:
        return self.linear(x)

    def forward(self, x: Tensor) -> Tensor:
        shifted = vars(self)["type"] != "W"  # nn.Module has a method of that name
        regions = self.regions(x.shape[1], x.shape[2], shifted, x.device)
        return self.over_map(x, half(self.size) if shifted else 0, regions)


class SCUNet(Adapter):
    architecture = "SCUNet"
    mixins = {"WMSA": MapSite}
