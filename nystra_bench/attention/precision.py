"""What half precision cannot hold is computed in float32."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """float16 and bfloat16 in float32: for exponentials, long sums and inverses that half precision cannot hold."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
