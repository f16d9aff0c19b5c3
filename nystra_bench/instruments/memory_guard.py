"""Refusing images that would not fit the memory, before the system kills the process without a word."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nystra_bench.instruments import memory
from nystra_bench.models.windows import WindowedModel

LARGE = 2048 * 2048
"""Pixels from which on an image's need of memory is estimated first."""

PROBE = 512
"""Side in pixels of the image that the need of memory is estimated from."""

IMAGE_BYTES = 160
"""Memory that a pixel of the clean image takes outside of the model while outputs are compared [measured]."""


class MemoryGuard:
    """Estimates what the largest image of a task needs from a small one, in proportion to the pixels.

    Args:
        sizes: height and width of the degraded images.
        channels: of the images.
        tile: side of the tiles that images are cut into; None where they are whole.
        device, dtype: where and in what precision the model runs.
        forward: restores (1, channels, side, side) by a model.
        batch: so many images a call.
    """

    def __init__(
        self,
        sizes: list[tuple[int, int]],
        channels: int,
        tile: int | None,
        device: str,
        dtype: torch.dtype,
        forward: Callable[[WindowedModel, Tensor], Tensor],
        batch: int = 1,
    ):
        self.height, self.width = max(sizes, key=lambda size: size[0] * size[1])
        self.channels, self.tile = channels, tile or max(self.height, self.width)
        self.device, self.dtype, self.forward, self.batch = device, dtype, forward, batch

    def check(self, model: WindowedModel) -> bool:
        """Whether it was worth a look; the attention that is plugged in then has run on a small image.

        Raises:
            MemoryError: the largest image needs more than is free.
        """
        if self.batch * self.height * self.width < LARGE:
            return False
        free = memory.free_memory(self.device)
        if free is None or not memory.tells_residence(self.device):
            return False
        seen = self.batch * min(self.height, self.tile) * min(self.width, self.tile)
        needed = self.bytes_per_pixel(model) * seen + IMAGE_BYTES * self.height * self.width * model.scale**2
        if needed > free:
            raise MemoryError(
                f"{self._images()} of {self.width}x{self.height} pixels need about {needed / 1e9:.0f} GB of memory and "
                f"{free / 1e9:.0f} GB are free: accepted are smaller images (task.crop=), or tiles (tile={PROBE})"
            )
        return True

    def _images(self) -> str:
        return "images" if self.batch == 1 else f"{self.batch} images in a call (batch={self.batch})"

    def bytes_per_pixel(self, model: WindowedModel) -> float:
        window = model.window_size  # in words where it is no square
        side = max(PROBE, 2 * window if isinstance(window, int) else 0)
        probe = torch.rand(1, self.channels, side, side, device=self.device, dtype=self.dtype)
        return memory.peak_taken(lambda: self.forward(model, probe), self.device) / side**2
