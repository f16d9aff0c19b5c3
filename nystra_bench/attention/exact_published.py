"""Exact softmax attention as released code runs it: bias and mask are made anew at every call."""

from __future__ import annotations

from torch import Tensor

from nystra_bench.attention.base import Window
from nystra_bench.attention.exact import ExactAttention


class PublishedExactAttention(ExactAttention):
    """The same operations as ``exact``, with position bias, shift regions and mask rebuilt in each layer at each call.

    That is what SwinIR's released code does on images of another size than it was trained on, and what latencies in
    papers contain (https://github.com/dslisleedh/ESC/issues/19). A speed-up against it that ``exact`` does not
    show comes from keeping the two, which exact attention can do as well as any other.
    """

    def bias_and_mask(self, q: Tensor, window: Window) -> tuple[Tensor | None, Tensor | None]:
        return window.bias(), window.mask()
