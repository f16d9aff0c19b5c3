"""Between images as people have them, (height, width, C), and as models do, (B, C, height, width)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def as_input(image: np.ndarray, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    """(height, width, C) -> (1, C, height, width), contiguous, on a device and in a precision."""
    tensor = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].contiguous()
    return tensor.to(device, dtype)


def as_image(output: Tensor) -> np.ndarray:
    """The first image of (B, C, height, width), as (height, width, C) float32, neither clipped nor rounded."""
    return output[0].permute(1, 2, 0).float().cpu().numpy()
