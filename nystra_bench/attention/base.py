"""The seam of the project: what a windowed model asks of an attention, and what it tells it.

A model cuts its feature map into windows of ``N = height * width`` tokens and calls
``attention(q, k, v, window)`` with tensors of shape (B * nW, H, N, d): B images, nW windows an image (the
windows of one image stand together), H heads. Everything else that an attention may want to know is in
``window``, and whatever is costly there is computed only when it is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

MASKED = -100.0
"""Logit added between tokens of different regions (Swin, arXiv 2103.14030, official implementation)."""


class Cache(dict):
    """What an attention made once for a layer and window size.

    Attributes:
        setup_s: seconds that making it took.
    """

    setup_s = 0.0

    def once(self, name: object, make: Callable):
        """What ``make`` gave when this name was first asked for."""
        if name not in self:
            before, started = self.setup_s, _now()
            self[name] = make()
            self.setup_s = before + _now() - started  # with what ``make`` itself asked for
        return self[name]


def _now() -> float:
    """Seconds, when a GPU has done what it was told until now."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


class Window:
    """Geometry of the windows of one attention call; bias and mask are made only when asked for.

    Args:
        height, width: size of a window in tokens.
        bias: makes the position bias, (H, N, N), or None where the model has none.
        regions: makes the region number of each token, (nW, N) int64, or None where nothing is masked. Tokens of
            one window attend to each other only within one region.
        cache: of this attention in the calling layer, for what is computed once a layer (factors of the bias, say);
            it is emptied when the layer's weights, device, dtype or window change.
    """

    def __init__(
        self,
        height: int,
        width: int,
        bias: Callable[[], Tensor] | None = None,
        regions: Callable[[], Tensor | None] | None = None,
        cache: Cache | None = None,
    ):
        self.height = height
        self.width = width
        self.cache = Cache() if cache is None else cache
        self._bias = bias
        self._regions = regions

    @property
    def tokens(self) -> int:
        """N, the number of tokens of a window."""
        return self.height * self.width

    @property
    def has_bias(self) -> bool:
        return self._bias is not None

    def bias(self) -> Tensor | None:
        """Position bias (H, N, N), to be added to the logits; None where there is none."""
        return self._bias() if self._bias is not None else None

    def regions(self) -> Tensor | None:
        """Region number of each token, (nW, N) int64; None where every token sees its whole window."""
        return self._regions() if self._regions is not None else None

    def mask(self) -> Tensor | None:
        """Additive mask (nW, N, N) of 0 and -100; None where every token sees its whole window."""
        regions = self.regions()
        return None if regions is None else region_mask(regions)


def region_mask(regions: Tensor) -> Tensor:
    """Additive float32 mask (nW, N, N) that keeps tokens of different regions (nW, N) apart."""
    differs = regions[:, :, None] != regions[:, None, :]
    return torch.zeros(differs.shape, device=regions.device).masked_fill_(differs, MASKED)


class Attention(nn.Module):
    """Base class of all attentions, published and ours.

    A method is one subclass and one file ``configs/attention/<name>.yaml`` that names it in ``_target_``; its
    parameters are the constructor's arguments. An instance is shared by all layers of a model, so it holds no
    state of a layer (``window.cache`` is for that), and neither parameters nor persistent buffers.
    """

    version: ClassVar[str] = "1"
    """Raised whenever the numbers that the method gives change: it is part of a result's identity."""

    exact: ClassVar[bool] = False
    """True where the method computes softmax(QK^T + B + M) V itself, not an approximation."""

    uses_bias: ClassVar[bool] = False
    folds_bias: ClassVar[bool] = False
    """Whether it uses the bias in the form of features of the tokens, of a lower rank."""
    uses_mask: ClassVar[bool] = False

    rows_sum_to_one: ClassVar[bool] = False
    """Whether each row of the matrix sums to one, so that equal values stay what they are."""

    permutation_equivariant: ClassVar[bool] = False
    """Whether the order of a window's tokens does not matter (without bias and mask)."""

    exact_with_all_landmarks: ClassVar[bool] = False
    """Whether the method is exact where every token is a landmark and the kernel is well-conditioned."""

    def uses(self) -> dict[str, str]:
        """What becomes of ``bias`` and ``mask``, in one word each: used, folded or ignored."""
        bias = "folded" if self.folds_bias else "used" if self.uses_bias else "ignored"
        return {"bias": bias, "mask": "used" if self.uses_mask else "ignored"}

    def about(self) -> dict[str, str]:
        """What is to be recorded of how the method ran on this machine, after it ran: plain JSON."""
        return {}

    calibration_images: int = 0
    """How many images the method wants to see before it is used; a parameter may set it."""

    def calibrate(self, sites: dict[str, nn.Module], restore: Callable[[Tensor], Tensor], images: list[Tensor]) -> dict:
        """Fit the method to a model, without training and without clean images.

        Args:
            sites: the places of the attentions, by layer name.
            restore: the model.
            images: ``calibration_images`` of its inputs, (1, C, height, width), or fewer where there are not so many.

        Returns:
            What is recorded with every result: plain JSON.
        """
        return {}

    def at_layer(self, name: str) -> Attention:
        """What stands in the layer of this name; one object for all layers, unless a method says otherwise.

        Raises:
            ValueError: the method has to be calibrated first.
        """
        return self

    def forward(self, q: Tensor, k: Tensor, v: Tensor, window: Window) -> Tensor:
        """Attend within windows.

        Args:
            q, k: (B * nW, H, N, d), of one floating dtype; q is already scaled by 1/sqrt(d).
            v: (B * nW, H, N, d_v).
            window: the geometry, N = window.tokens.

        Returns:
            (B * nW, H, N, d_v), of v's dtype.
        """
        raise NotImplementedError

    def matrix(self, q: Tensor, k: Tensor, window: Window) -> Tensor:
        """The matrix (B * nW, H, N, N) that the method multiplies v by; for the analysis, not for speed."""
        raise NotImplementedError

    def refuses(self, height: int, width: int) -> str | None:
        """Why the method cannot work on windows of this size (tokens), as one clause; None where it can."""
        return None

    def flops(self, windows: int, heads: int, tokens: int, dim: int, dim_v: int) -> int:
        """Floating point operations of the matrix products of one call (a multiply-add counts as two).

        The windows have a position bias and no shift mask.
        """
        raise NotImplementedError


def add_bias_and_mask(logits: Tensor, window: Window) -> Tensor:
    """Logits (B * nW, H, N, N) plus the window's position bias and shift mask."""
    bias, mask = window.bias(), window.mask()
    if bias is not None:
        logits = logits + bias.to(logits.dtype)
    if mask is not None:
        windows = mask.shape[0]
        per_image = logits.unflatten(0, (-1, windows))
        logits = (per_image + mask.to(logits.dtype)[:, None]).flatten(0, 1)
    return logits
