"""What the methods of 2025 and 2026 share here: a bias as features, and each region of a masked window by itself."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from nystra_bench.attention.base import Attention, Window
from nystra_bench.attention.cache import Cache
from nystra_bench.attention.folding import folded_bias
from nystra_bench.attention.parameters import check_whole_numbers
from nystra_bench.attention.precision import at_least_float32

Shape = tuple[int, int]
"""Height and width in tokens."""


class RegionwiseAttention(Attention):
    """Gives a method of queries, keys and values alone the position bias and the shift mask of a window.

    - The bias is folded into the features, ``[Q F][K G]^T = Q K^T + B``, as in ``nystra_plus``: whatever the method
      does with keys, choosing some of them among it, it then does with their places, too.
    - Of a window with several regions each is attended as a window of its own, with as many landmarks as a whole one
      has, or all its tokens. So no query ever sees another region, at the cost of a whole window, or less.

    Queries and keys reach the method in balance: the scale 1/sqrt(d), which q arrives with, is shared out to both as
    d^(-1/4) each, since kernels of keys with keys need one scale. Everything is computed in float32 at least.

    Args:
        bias_rank: r, the number of features that stand for the position bias; 0 leaves it out.

    Raises:
        ValueError: a parameter is out of its range.
    """

    uses_bias = True
    folds_bias = True
    uses_mask = True

    def __init__(self, bias_rank: int):
        super().__init__()
        check_whole_numbers(bias_rank=(bias_rank, 0))
        self.bias_rank = bias_rank
        self.uses_bias = self.folds_bias = bias_rank > 0

    def attend(self, q: Tensor, k: Tensor, v: Tensor, size: Shape, cache: Cache) -> Tensor:
        """The method on windows (n, H, N, c) without bias or mask, each logit being q k; float32 at least.

        Args:
            size: height and width of a window in tokens, N = height * width.
            cache: for what is made once a layer; windows of several sizes share it.

        Returns:
            (n, H, N, d_v).
        """
        raise NotImplementedError

    def linear(self) -> RegionwiseAttention:
        """The same method as far as it is a matrix of q and k times v: itself, unless values have more of a say."""
        return self

    def forward(self, q: Tensor, k: Tensor, v: Tensor, window: Window) -> Tensor:
        queries, keys = self._with_features(at_least_float32(q), at_least_float32(k), window)
        values = at_least_float32(v)
        parts = parts_of(window, len(q))
        if not parts:
            return self.attend(queries, keys, values, (window.height, window.width), window.cache).to(v.dtype)
        rows = [x.transpose(1, 2).flatten(0, 1) for x in (queries, keys, values)]
        out = torch.empty_like(rows[2], memory_format=torch.contiguous_format)
        for part in parts:
            queries, keys, values = map(part.take, rows)
            part.put(self.attend(queries, keys, values, part.size, window.cache), out)
        return out.unflatten(0, (len(q), -1)).transpose(1, 2).to(v.dtype)

    def matrix(self, q: Tensor, k: Tensor, window: Window) -> Tensor:
        eye = torch.eye(window.tokens, dtype=q.dtype, device=q.device)
        return self.linear().forward(q, k, eye.expand(*q.shape[:-2], -1, -1), window)

    def _with_features(self, q: Tensor, k: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        """Queries and keys in balance, with the features of the bias beside them where there is one."""
        quarter = q.shape[-1] ** 0.25
        q, k = q * quarter, k / quarter
        factors = folded_bias(window, self.bias_rank)
        if factors is None:
            return q, k
        f, g = factors
        q, k = (torch.cat([x, y.to(x).expand(len(x), -1, -1, -1)], -1) for x, y in ((q, f), (k, g)))
        return q, k

    def width(self, tokens: int, dim: int) -> int:
        """Channels of a query with its features, for the count of operations."""
        return dim + min(self.bias_rank, tokens)


@dataclass(frozen=True)
class Part:
    """All regions of one shape in the windows of a batch."""

    size: Shape
    """Height and width; 1 and the number of tokens where a region is no rectangle"""
    tokens: Tensor
    """(n, tokens of a region) int64, row by row: numbers among the tokens of the batch, window after window"""

    def take(self, rows: Tensor) -> Tensor:
        """The regions' tokens (n, H, tokens, c) among all (B * nW * N, H, c)."""
        return rows.index_select(0, self.tokens.flatten()).unflatten(0, self.tokens.shape).transpose(1, 2)

    def put(self, part: Tensor, rows: Tensor) -> None:
        """The inverse: write (n, H, tokens, c) into ``rows`` (B * nW * N, H, c)."""
        rows.index_copy_(0, self.tokens.flatten(), part.transpose(1, 2).flatten(0, 1))


def parts_of(window: Window, count: int) -> list[Part]:
    """The regions of the ``count`` windows of a batch; none where every token sees its whole window.

    They are made once for all layers of maps with the same regions.
    """
    if not window.has_regions:
        return []
    return window.shared.once_for_all(("parts", count), lambda: _parts(window, count))


def _parts(window: Window, count: int) -> list[Part]:
    regions = window.regions()
    if regions is None or bool((regions == regions[:, :1]).all()):
        return []
    by_size: dict[Shape, list[Tensor]] = defaultdict(list)
    patterns, of_window = regions.unique(dim=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        first = (of_window == number).nonzero() * window.tokens
        for region in pattern.unique():
            tokens = (pattern == region).nonzero()[:, 0]
            by_size[_shape(tokens, window.width)].append(first + tokens)
    images = torch.arange(count // len(regions), device=regions.device)[:, None, None] * regions.numel()
    return [Part(size, (images + torch.cat(tokens)).flatten(0, 1)) for size, tokens in by_size.items()]


def _shape(tokens: Tensor, width: int) -> Shape:
    """Height and width of the rectangle that tokens of a window fill, else those of a row of them."""
    height, width = (int(x.max() - x.min()) + 1 for x in (tokens // width, tokens % width))
    return (height, width) if height * width == len(tokens) else (1, len(tokens))
