"""HAT (Chen et al., arXiv 2205.04437): window attention, channel attention, and attention to overlapping windows."""

from __future__ import annotations

import torch
from torch import Tensor

from nystra_bench.models.adapters.swin_family import SwinBlock, SwinSite
from nystra_bench.models.sites import Adapter


class WithoutMask:
    """The model, which would make the dense mask of all blocks at once."""

    def calculate_mask(self, x_size: tuple[int, int], dtype: torch.dtype) -> Tensor:
        return torch.empty(0)


class HAT(Adapter):
    architecture = "HAT"
    mixins = {"WindowAttention": SwinSite, "HAB": SwinBlock, "HAT": WithoutMask}
    kept = {
        "OCAB": "its keys and values are those of a larger window than its queries",
        "ChannelAttention": "it weighs channels, not tokens",
    }
