"""How a literature prepares images before it compares them. Only numbers under one convention compare."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from nystra_bench.errors import UserError, unknown

COLOURS = {
    "rgb": (3, "RGB"),
    "y": (3, "luma Y of BT.601 (16 to 235 as MATLAB's rgb2ycbcr, not rounded)"),
    "y or grey": (
        3,
        "luma Y of BT.601 (16 to 235 as MATLAB's rgb2ycbcr, not rounded), but where the clean image is grey its grey "
        "values (0 to 255)",
    ),
    "grey of rgb": (3, "grey values (0 to 255)"),
    "grey": (1, "one grey channel"),
    "any": (None, "all channels"),
}
"""Colour -> the channels that an image must have, and the words for it."""

POOLED_SIDE = 256
_LUMA = np.array([65.481, 128.553, 24.966]) / 255
_LUMA_OFFSET = 16 / 255
_GREY = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Convention:
    """How images are prepared; the same for output and target. The peak value is always 1 (255 in 8 bits).

    Args:
        name: what tables call it.
        colour: ``rgb``; ``y``, the luma of RGB by BT.601 in the studio range; ``y or grey``, the same but for grey
            images, which are compared as they are; ``grey``, one channel; ``any``.
        rounded: clip to [0, 1] and round to 8 bits first.
        border: pixels left out on each side.
        clipped: clip to [0, 1] where nothing is rounded.
        pooled: SSIM on images averaged over cells of round(shorter side / 256) pixels, see :func:`pool`.

    Raises:
        ValueError: the colour is none of the accepted ones, or the border is negative.
    """

    name: str = "custom"
    colour: str = "rgb"
    rounded: bool = True
    border: int = 0
    clipped: bool = True
    pooled: bool = False

    def __post_init__(self):
        if self.colour not in COLOURS:
            raise ValueError(f"colour={self.colour} is unknown: accepted are {', '.join(COLOURS)}")
        if self.border < 0:
            raise ValueError(f"border={self.border} is out of range: accepted are whole numbers from 0 on")

    def for_target(self, target: np.ndarray) -> Convention:
        """What an image and its target (height, width, C) are both prepared by: with ``y or grey`` it depends on the
        target."""
        if self.colour != "y or grey":
            return self
        is_grey = (target == target[..., :1]).all()
        return replace(self, colour="grey of rgb" if is_grey else "y")

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """(height, width, C) float, about [0, 1] -> float64 on the same scale, one channel for ``y`` and ``grey``.

        Raises:
            ValueError: the colour needs another number of channels.
            UserError: the border leaves nothing of the image.
        """
        channels, _ = COLOURS[self.colour]
        if channels not in (None, image.shape[-1]):
            raise ValueError(f"convention {self.name} needs images of {channels} channels, not {image.shape[-1]}")
        image = image.astype(np.float64)
        if self.rounded or self.clipped:
            image = image.clip(0, 1)
        if self.rounded:
            image = np.round(image * 255) / 255
        colour = self.for_target(image).colour
        if colour == "y":
            image = luma(image)
        elif colour == "grey of rgb":
            image = (image @ _GREY)[..., None]
        return self._without_border(image)

    def _without_border(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        b = self.border
        if 2 * b >= min(height, width):
            raise UserError(
                f"a border of {b} pixels leaves nothing of an image of {width}x{height}: accepted are larger images"
            )
        return image[b : height - b, b : width - b]

    def __str__(self) -> str:
        border = f"border of {self.border} pixels left out" if self.border else "whole image"
        values = "clipped and rounded to 8 bits" if self.rounded else "clipped, float" if self.clipped else "float"
        pooled = f"; SSIM after average pooling by round(shorter side / {POOLED_SIDE})" if self.pooled else ""
        return f"{self.name}: {COLOURS[self.colour][1]}, {border}, {values}{pooled}"


def luma(image: np.ndarray) -> np.ndarray:
    """Y of ITU-R BT.601 in the studio range, 16/255 to 235/255: (H, W, 3) RGB in [0, 1] -> (H, W, 1)."""
    return (image @ _LUMA + _LUMA_OFFSET)[..., None]


def pool(image: np.ndarray) -> np.ndarray:
    """DehazeFormer's (arXiv 2204.03883) reduction before SSIM: (H, W, C) -> (H // f, W // f, C), f >= 1.

    Averages over adaptive cells, with f = round(shorter side / 256), half to even.
    """
    import torch
    from torch.nn.functional import adaptive_avg_pool2d

    height, width = image.shape[:2]
    factor = max(1, round(min(height, width) / POOLED_SIDE))
    if factor == 1:
        return image
    planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    return adaptive_avg_pool2d(planes, (height // factor, width // factor)).numpy().transpose(1, 2, 0)


RAW = Convention("raw", colour="any", rounded=False, clipped=False)
"""Deviations between two outputs: float, neither clipped nor rounded, which would hide small ones."""

RGB8 = Convention("rgb8")
"""What images are once they are saved; used by the literature of denoising, deblurring and real noise."""

DENOISE = DEBLUR = REAL_DENOISE = JPEG = RGB8

GREY8 = Convention("grey8", colour="grey")
"""The same for grey images."""

DEHAZE = Convention("dehazeformer", rounded=False, pooled=True)
"""The evaluation of DehazeFormer (arXiv 2204.03883) on RESIDE."""

SR_Y = Convention("sr_y", colour="y")
"""Super-resolution; with the border of a scale see :func:`super_resolution`. Grey images are colour images here, too,
as in SwinIR's test code: their Y has 219/255 of their contrast, which gives 1.32 dB more than ``sr_y_matlab``."""

SR_Y_MATLAB = Convention("sr_y_matlab", colour="y or grey")
"""The same as in the MATLAB code of SRCNN and its successors: grey images (Set14's ``bridge``) stay as they are."""

SR_GREY = {"colour": SR_Y, "as_is": SR_Y_MATLAB}
"""How the grey images of a set are looked at."""

FEATURES = Convention("features", colour="any", rounded=False)
"""What LPIPS sees."""

FEATURES8 = Convention("features8", colour="any")
"""What FID and KID see: Inception is fed with 8-bit images."""

CONVENTIONS = {c.name: c for c in (RAW, RGB8, GREY8, DEHAZE, SR_Y, SR_Y_MATLAB, FEATURES, FEATURES8)}
"""Those that a metric may name in its configuration."""


def super_resolution(scale: int, grey: str = "colour") -> Convention:
    """The super-resolution literature's since SRCNN: Y of the 8-bit image, ``scale`` pixels of border left out.

    Args:
        grey: how grey images are looked at: ``colour``, as in SwinIR's test code, or ``as_is``, as in MATLAB's.

    Raises:
        UserError: it is neither.
    """
    if grey not in SR_GREY:
        raise unknown("task.grey", grey, SR_GREY)
    return replace(SR_GREY[grey], border=scale)
