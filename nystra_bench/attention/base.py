"""The seam of the project: what a windowed model asks of an attention, and what it tells it.

A model cuts its feature map into windows of ``N = height * width`` tokens and calls
``attention(q, k, v, window)`` with tensors of shape (B * nW, H, N, d): B images, nW windows an image (the
windows of one image stand together), H heads. Everything else that an attention may want to know is in
``window``, and whatever is costly there is computed only when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from nystra_bench.attention.cache import Cache

MASKED = -100.0
"""Logit added between tokens of different regions (Swin, arXiv 2103.14030, official implementation)."""


class Window:
    """Geometry of the windows of one attention call; bias and mask are made only when asked for.

    ``bias``, ``regions`` and ``mask`` make what they give at every call, as published models do; ``kept_bias`` and
    ``kept_mask`` make it once.

    Args:
        height, width: size of a window in tokens.
        bias: makes the position bias, (H, N, N), or None where the model has none.
        regions: makes the region number of each token, (nW, N) int64, or None where nothing is masked. Tokens of
            one window attend to each other only within one region.
        cache: of this attention in the calling layer, for what is computed once a layer (factors of the bias, say);
            it is emptied when the layer's weights, device, dtype, window or mode (training, evaluation) change.
        shared: of this attention for all layers of a map with these regions and of all maps of the same size, for what
            is derived from the regions alone.
    """

    def __init__(
        self,
        height: int,
        width: int,
        bias: Callable[[], Tensor | None] | None = None,
        regions: Callable[[], Tensor | None] | None = None,
        cache: Cache | None = None,
        shared: Cache | None = None,
    ):
        self.height = height
        self.width = width
        self.cache = Cache() if cache is None else cache
        self.shared = Cache() if shared is None else shared
        self._bias = bias
        self._regions = regions

    @property
    def tokens(self) -> int:
        """N, the number of tokens of a window."""
        return self.height * self.width

    @property
    def has_bias(self) -> bool:
        return self._bias is not None

    @property
    def has_regions(self) -> bool:
        """Whether the windows may be masked; it does not make the regions."""
        return self._regions is not None

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

    def kept_bias(self, dtype: torch.dtype) -> Tensor | None:
        """The position bias (H, N, N) of a dtype, made once for a layer; not to be written to.

        Where gradients are recorded it is made at every call, so that they reach the model's parameters.
        """
        make = self._bias
        if make is None:
            return None

        def of_dtype() -> Tensor | None:
            made = make()
            return None if made is None else made.to(dtype)

        return of_dtype() if torch.is_grad_enabled() else self.cache.once_for_all(("bias", dtype), of_dtype)

    def kept_mask(self, dtype: torch.dtype) -> Tensor | None:
        """The mask (nW, N, N) of a dtype, made once for all layers of maps with these regions; not to be written to."""
        if self._regions is None:
            return None

        def make() -> Tensor | None:
            mask = self.mask()
            return None if mask is None else mask.to(dtype)

        return self.shared.once_for_all(("mask", dtype), make)


def region_mask(regions: Tensor) -> Tensor:
    """Additive float32 mask (nW, N, N) that keeps tokens of different regions (nW, N) apart."""
    differs = regions[:, :, None] != regions[:, None, :]
    return torch.zeros(differs.shape, device=regions.device).masked_fill_(differs, MASKED)


class Site(Protocol):
    """A place in a model that holds a replaceable attention."""

    attention: Attention


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

    uses_bias: bool = False
    folds_bias: bool = False
    """Whether it uses the bias in the form of features of the tokens, of a lower rank."""
    uses_mask: ClassVar[bool] = False

    rows_sum_to_one: ClassVar[bool] = False
    """Whether each row of the matrix sums to one, so that equal values stay what they are."""

    permutation_equivariant: ClassVar[bool] = False
    """Whether the order of a window's tokens does not matter (without bias and mask)."""

    linear_in_values: bool = True
    """Whether ``forward`` is ``matrix`` times v. Where the values have a say in the weights, or bound the output, it is
    not, and ``matrix`` is what is left without that."""

    exact_with_all_landmarks: ClassVar[bool] = False
    """Whether the method is exact where every token is a landmark and the kernel is well-conditioned."""

    def uses(self) -> dict[str, str]:
        """What becomes of ``bias`` and ``mask``, in one word each: used, folded or ignored."""
        bias = "folded" if self.folds_bias else "used" if self.uses_bias else "ignored"
        return {"bias": bias, "mask": "used" if self.uses_mask else "ignored"}

    calibration_images: int = 0
    """How many images the method wants to see before it is used; a parameter may set it."""

    def calibrate(self, sites: Mapping[str, Site], restore: Callable[[Tensor], Tensor], images: list[Tensor]) -> dict:
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

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "forward" in vars(cls) and not {"forward_map", "reads_maps"} & vars(cls).keys():
            # What it inherits would pass its own forward by.
            type.__setattr__(cls, "reads_maps", Attention.reads_maps)

    def reads_maps(self, x: Tensor, window: Window) -> bool:
        """Whether ``forward_map`` can take the place of ``forward`` on maps of x's device and dtype.

        Where it says so, no windows are cut out for the method and put back: two copies of the map that exist only to
        feed the attention, and more where it is shifted.
        """
        return False

    def forward_map(self, q: Tensor, k: Tensor, v: Tensor, window: Window, places: Tensor, scale: float) -> Tensor:
        """The same as ``forward``, with all tokens where they lie on their maps.

        Args:
            q, k: (B, H, L, d), the L tokens of a map in any order; q is to be multiplied by ``scale`` first.
            v: (B, H, L, d_v).
            window: the geometry, as for ``forward``.
            places: which of the L tokens stands at each place of each window, (nW, N) int32, each token once.

        Returns:
            (B, H, L, d_v), of v's dtype.
        """
        raise NotImplementedError

    def matrix(self, q: Tensor, k: Tensor, window: Window) -> Tensor:
        """The matrix (B * nW, H, N, N) that the method multiplies v by; for the analysis, not for speed."""
        raise NotImplementedError

    def about(self) -> dict[str, str]:
        """What is to be recorded beside a result about how the method ran on this machine: plain JSON, {} for nothing.

        It is asked for after calls, and costs them nothing: which kernel PyTorch took, say.
        """
        return {}

    def refuses(self, height: int, width: int) -> str | None:
        """Why the method cannot work on windows of this size (tokens), as one clause; None where it can."""
        return None

    def flops(self, windows: int, heads: int, tokens: int, dim: int, dim_v: int) -> int:
        """Floating point operations of the matrix products of one call (a multiply-add counts as two).

        The windows have a position bias and no shift mask.
        """
        raise NotImplementedError


def add_bias_and_mask(logits: Tensor, bias: Tensor | None, mask: Tensor | None) -> Tensor:
    """Logits (B * nW, H, N, N) plus a position bias (H, N, N) and a shift mask (nW, N, N); None adds nothing."""
    if bias is not None:
        logits = logits + bias.to(logits.dtype)
    if mask is not None:
        per_image = logits.unflatten(0, (-1, len(mask)))
        logits = (per_image + mask.to(logits.dtype)[:, None]).flatten(0, 1)
    return logits
