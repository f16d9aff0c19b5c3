"""Small SwinIRs with random parameters, among them the position bias, so that every part of the model matters."""

from __future__ import annotations

import math

import pytest
import torch

import nystra_bench.torchvision_guard  # noqa: F401  before any test imports spandrel, which imports torchvision
from nystra_bench.models.swinir import SwinIR, SwinIRSpec

SMALL = SwinIRSpec(dim=24, depths=(2, 2), heads=(3, 2), window=8, mlp_ratio=2.0)


def _randomised(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The model in evaluation mode, every parameter drawn anew: weights keep the signal's size, biases are felt."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("relative_position_bias_table"):
                parameter.copy_(noise)
            elif parameter.ndim == 1:
                parameter.copy_(0.1 * noise + ("norm" in name and name.endswith("weight")))
            else:
                parameter.copy_(noise / math.sqrt(parameter[0].numel()))
    return model.eval().requires_grad_(False)


@pytest.fixture
def randomised():
    return _randomised


@pytest.fixture
def small_spec():
    return SMALL


@pytest.fixture
def small_model():
    """A colour denoiser of two groups with two blocks each, window 8."""
    return _randomised(SwinIR(SMALL))


@pytest.fixture
def image():
    """Two images of 19 x 27: no multiple of the window, smaller than the enlarged windows."""
    return torch.rand(2, 3, 19, 27, generator=torch.Generator().manual_seed(3))
