"""What Swin's successors share: blocks that roll and cut the map, around an attention that sees windows alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from nystra_bench.models.sites import Site
from nystra_bench.models.windows import bias_from_table, merge_heads, split_heads
from nystra_bench.sizes import Size, plain


class SwinBlock:
    """Tells its attention the map that is cut, from which regions are made where one asks for them.

    The dense mask, which would be made at every call, is left out.
    """

    attn: Site
    shift_size: int

    def forward(self, x: Tensor, x_size: tuple[int, int], *further) -> Tensor:
        self.attn.told = (*x_size, self.shift_size > 0)
        block: Any = super()  # the module's own class
        return block.forward(x, x_size, *further)

    def calculate_mask(self, x_size: tuple[int, int]) -> Tensor:
        return torch.empty(0)


class SwinSite(Site):
    """``qkv``, a bias table, ``proj``; (B * nW, N, C) -> the same."""

    def window_of_module(self) -> Size:
        return plain(self.window_size)

    def bias_weights(self) -> Iterable[Tensor]:
        return (self.relative_position_bias_table,)

    def position_bias(self, size: Size) -> Tensor:
        return bias_from_table(self.relative_position_bias_table, size)

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = split_heads(self.qkv(x), 3, self.num_heads)
        return q * self.scale, k, v

    def forward(self, x: Tensor, *_, **__) -> Tensor:
        height, width, shifted = self.told
        regions = self.regions(height, width, shifted, x.device)
        return self.proj(merge_heads(self.attend(*self.queries_keys_values(x), regions)))
