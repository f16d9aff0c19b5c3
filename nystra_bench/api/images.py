"""Images as a user may give them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from nystra_bench.errors import UserError
from nystra_bench.models.images import as_input
from nystra_bench.tasks.datasets import read_image

Image = np.ndarray | Tensor | str | os.PathLike[str]
"""An image: an array (height, width, C) or, of one channel, (height, width); a tensor (C, height, width) or (1, C,
height, width); or the path of an image file. Floats are in [0, 1] (noise may exceed it), whole numbers uint8."""

LARGEST = 10.0
"""Above this a float image is taken for one on the scale of 0 to 255; noise on [0, 1] does not reach it."""

_ACCEPTED = (
    "accepted are an array (height, width, {channels}), a tensor ({channels}, height, width), both float in [0, 1] or "
    "uint8, and the path of an image file"
)


def to_array(image: Image, channels: int, option: str = "image") -> np.ndarray:
    """An image as (height, width, channels) float32, in [0, 1] but for noise.

    Args:
        option: what errors call it.

    Raises:
        UserError: it is no image, or not one of so many channels.
    """
    accepted = _ACCEPTED.format(channels=channels)
    if isinstance(image, (str, os.PathLike)):
        if not Path(image).is_file():
            raise UserError(f"{option}={image} is no file: {accepted}")
        pixels: np.ndarray | None = read_image(Path(image), option)
    elif isinstance(image, Tensor):
        pixels = _from_tensor(image)
    elif isinstance(image, np.ndarray):
        pixels = image[..., None] if image.ndim == 2 else image
    else:
        raise UserError(f"{option} is of the type {type(image).__name__}: {accepted}")
    if pixels is None or pixels.ndim != 3 or pixels.shape[-1] != channels or 0 in pixels.shape:
        seen = pixels if isinstance(image, (str, os.PathLike)) else image
        shape = tuple(seen.shape if seen is not None else ())
        raise UserError(f"{option} of the shape {shape} does not fit a model of {channels} channels: {accepted}")
    return _scaled(pixels, option, accepted)


def _from_tensor(image: Tensor) -> np.ndarray | None:
    """(C, height, width) or a batch of one -> (height, width, C); None for another shape."""
    if image.ndim == 4 and len(image) == 1:
        image = image[0]
    return image.detach().permute(1, 2, 0).cpu().numpy() if image.ndim == 3 else None


def _scaled(pixels: np.ndarray, option: str, accepted: str) -> np.ndarray:
    if pixels.dtype == np.uint8:
        return pixels.astype(np.float32) / 255
    if not np.issubdtype(pixels.dtype, np.floating):
        raise UserError(f"{option} is of the type {pixels.dtype}: {accepted}")
    largest = float(np.abs(pixels).max())
    if not np.isfinite(largest) or largest > LARGEST:
        raise UserError(f"{option} has values up to {largest:g}: {accepted}")
    return pixels.astype(np.float32)


def to_input(image: Image, model: nn.Module) -> Tensor:
    """An image as the model's input, (1, C, height, width), where its parameters are and in their precision.

    Raises:
        UserError: the image does not fit the model.
    """
    parameter = next(model.parameters())
    return as_input(to_array(image, channels_of(model)), parameter.device, parameter.dtype)


def channels_of(model: nn.Module) -> int:
    """The channels of a model's images; three where it does not say."""
    return getattr(model, "channels", 3)


@torch.inference_mode()
def forward(model: nn.Module, x: Tensor) -> Tensor:
    """The model's output for a batch of images, without gradients."""
    return model(x)
