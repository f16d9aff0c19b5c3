"""Learned perceptual image patch similarity."""

from __future__ import annotations

import warnings
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from nystra_bench.errors import UserError
from nystra_bench.metrics.backbones import Backbone
from nystra_bench.metrics.base import Metric
from nystra_bench.metrics.conventions import FEATURES, Convention

if TYPE_CHECKING:
    from torch import Tensor, nn

SMALLEST = {"alex": 31, "squeeze": 17, "vgg": 16}
"""Network -> the side in pixels from which on every layer has an output."""


class Lpips(Metric):
    """LPIPS 0.1 of Zhang et al. (2018, arXiv 1801.03924), by the package ``lpips`` with its own linear heads.

    Images are clipped to [0, 1], scaled to [-1, 1] and looked at whole; grey ones as three equal channels. Computed on
    the CPU in float32, wherever the model runs.

    Args:
        net: ``alex``, ``squeeze`` or ``vgg``.
        backbone: state dict (``.pth``) with the ``features.*`` of torchvision's network of that name; null takes what
            ``python -m nystra_bench.fetch lpips-<net>`` has fetched.
        against: as in :class:`Metric`.

    Raises:
        ValueError: the network is none of those.
    """

    higher_is_better = False

    def __init__(self, net: str, backbone: str | None = None, against: str = "truth"):
        super().__init__(against)
        if net not in SMALLEST:
            raise ValueError(f"net={net} is unknown: accepted are {', '.join(SMALLEST)}")
        self.net, self.smallest = net, SMALLEST[net]
        self._backbone = Backbone(f"lpips-{net}", backbone)

    def available(self) -> str | None:
        return self._backbone.absent()

    def convention(self, of_task: Convention) -> Convention:
        return FEATURES

    def compare(self, output: np.ndarray, target: np.ndarray) -> float:
        import torch

        height, width = target.shape[:2]
        if min(height, width) < SMALLEST[self.net]:
            raise UserError(
                f"metrics=lpips_{self.net} needs images of {SMALLEST[self.net]} pixels a side, not {width}x{height}: "
                "accepted are larger images, or metrics without it"
            )
        with torch.inference_mode():
            return self._network(_signed(output), _signed(target)).item()

    @cached_property
    def _network(self) -> nn.Module:
        import nystra_bench.torchvision_guard  # noqa: F401  before lpips, which imports torchvision

        import lpips  # isort: skip

        state = self._backbone.read()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lpips makes torchvision's networks in a way that newer ones deprecate
            network = lpips.LPIPS(net=self.net, pnet_rand=True, verbose=False)
        self._load(network.net, state)
        return network.requires_grad_(False)

    def _load(self, slices: nn.Module, state: dict[str, Tensor]) -> None:
        """Fill the slices of the network, ``slice2.3.weight``, from torchvision's ``features.3.weight``, strictly."""
        features = {key: value for key, value in state.items() if key.startswith("features.")}
        names = {key: f"features.{key.partition('.')[2]}" for key in slices.state_dict()}
        if set(names.values()) != set(features):
            raise self._backbone.unfit(f"does not hold the features of torchvision's network for LPIPS-{self.net}")
        try:
            slices.load_state_dict({key: features[name] for key, name in names.items()})
        except RuntimeError as error:
            raise self._backbone.unfit(f"holds features of another shape than those of LPIPS-{self.net}") from error


def _signed(image: np.ndarray) -> Tensor:
    """(height, width, 1 or 3) in [0, 1] -> (1, 3, height, width) float32 in [-1, 1]."""
    import torch

    planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float()
    return (planes * 2 - 1).expand(3, -1, -1)[None]
