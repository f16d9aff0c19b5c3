"""State dicts of the right names and shapes for the networks inside metrics, from a seed: nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import nystra_bench.torchvision_guard  # noqa: F401  before torchvision and torch-fidelity

import torch  # isort: skip
import torchvision  # isort: skip
from torch import nn  # isort: skip
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3  # isort: skip

NETWORKS = {"alex": "alexnet", "squeeze": "squeezenet1_1", "vgg": "vgg16"}


def lively(network: nn.Module, seed: int) -> nn.Module:
    """Weights that let signals through all layers, so that features differ between images."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            deviation = (2 / module.weight[0].numel()) ** 0.5
            module.weight.data = deviation * torch.randn(module.weight.shape, generator=generator)
    return network


def write_features(net: str, path: Path, seed: int = 0) -> Path:
    """What torchvision's own file of that network holds, features and classifier, with other numbers."""
    with torch.device("meta"):
        network = getattr(torchvision.models, NETWORKS[net])(weights=None)
    network.features.to_empty(device="cpu")
    lively(network.features, seed)
    state = {f"features.{name}": value for name, value in network.features.state_dict().items()}
    for name, value in state.items():
        if name.endswith("bias"):
            value.zero_()
    rest, shaped = next((k, v) for k, v in network.state_dict().items() if k.startswith("classifier"))
    torch.save({**state, rest: torch.zeros(1).expand(shaped.shape)}, path)
    return path


def write_inception(path: Path, seed: int = 0) -> Path:
    """torch-fidelity's Inception v3."""

    class Unfilled(FeatureExtractorInceptionV3):
        def load_state_dict(self, state):
            pass

    nothing = path.with_suffix(".none")
    torch.save({}, nothing)
    torch.save(lively(Unfilled("unfilled", ["2048"], str(nothing)), seed).state_dict(), path)
    return path
