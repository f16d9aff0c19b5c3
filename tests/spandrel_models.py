"""Small models of spandrel, one of each architecture with an adapter."""

from __future__ import annotations

import importlib
import math

import torch
from torch import nn

import nystra_bench.torchvision_guard  # noqa: F401  before spandrel, which imports torchvision

LIGHT = {"upscale": 2, "upsampler": "pixelshuffledirect"}
SWIN = {"img_size": 32, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 3), "window_size": 8}
RECTANGLES = {"img_size": 32, "embed_dim": 32, "depth": [4, 4], "num_heads": [4, 4], "upscale": 2}
STRIPES = {"num_heads_window": [2, 2], "num_heads_stripe": [2, 2], "stripe_size": [8, 16]}

SHAPES = {
    "DAT": {**RECTANGLES, **LIGHT, "split_size": [4, 8], "expansion_factor": 2},
    "RGT": {**RECTANGLES, "split_size": [8, 16], "mlp_ratio": 2},
    "HAT": {**SWIN, "squeeze_factor": 6, "upscale": 2, "upsampler": "pixelshuffle", "overlap_ratio": 0.5},
    "DRCT": {**SWIN, "num_heads": (2, 2), "upscale": 2, "upsampler": "pixelshuffle", "gc": 8},
    "Swin2SR": {**SWIN, **LIGHT},
    "SwinIR": {**SWIN, **LIGHT},
    "SCUNet": {"in_nc": 3, "config": [2, 1, 1, 2, 1, 1, 2], "dim": 64},
    "GRL": {"img_size": 32, "embed_dim": 24, "depths": [2, 2], "window_size": 8, **STRIPES, **LIGHT},
}
WINDOWS = {"DAT": {(4, 8), (8, 4)}, "RGT": {(8, 16), (16, 8)}}
"""Where they are not 8."""


def spandrel_model(name: str, seed: int = 0) -> nn.Module:
    """A model in evaluation mode with random parameters, in which bias, mask and sharpness are felt."""
    architecture = getattr(importlib.import_module(f"spandrel.architectures.{name}"), name)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = architecture(**SHAPES[name])
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "bias_table" in parameter_name or "relative_position_params" in parameter_name:
                parameter.copy_(noise)
            elif "logit_scale" in parameter_name:
                parameter.copy_(2 + 0.1 * noise)
            elif parameter.ndim == 1:
                parameter.copy_(0.1 * noise + ("norm" in parameter_name and parameter_name.endswith("weight")))
            else:
                parameter.copy_(noise / math.sqrt(parameter[0].numel()))
    return model.eval().requires_grad_(False)


def sizes(name: str) -> list[tuple[int, int]]:
    """Sizes of images that the bare model takes, odd ones where it takes these."""
    return {"DRCT": [(32, 32), (48, 16)], "SCUNet": [(64, 64), (51, 70)]}.get(name, [(32, 32), (37, 51)])
