"""What several of the published methods share: random directions, choosing tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from nystra_bench.attention.base import Window


def refuses_more_than_tokens(landmarks: int, height: int, width: int) -> str | None:
    """Why a window (tokens) cannot give that many landmarks, wherever they lie; None where it can."""
    if landmarks > height * width:
        return f"landmarks={landmarks} exceed the {height * width} tokens of a {height}x{width} window"
    return None


def gaussian_directions(window: Window, count: int, like: Tensor, seed: int, orthogonal: bool = False) -> Tensor:
    """Directions (count, d) of standard normal entries, of the device and dtype of ``like`` (..., d).

    They depend on ``seed``, ``count`` and d alone: windows, heads, layers and devices share them. Each layer keeps
    them in ``window.cache``. With ``orthogonal``, each block of d directions is orthogonal, with the lengths of
    independent normal vectors (Performer, arXiv 2009.14794).
    """
    dim = like.shape[-1]
    key = ("gaussian_directions", count, dim, seed, orthogonal, like.device, like.dtype)
    return window.cache.once(key, lambda: _draw(count, dim, seed, orthogonal).to(like))


def _draw(count: int, dim: int, seed: int, orthogonal: bool) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    if not orthogonal:
        return directions
    blocks = torch.randn(-(-count // dim), dim, dim, generator=generator, dtype=torch.float64)
    basis, triangle = torch.linalg.qr(blocks)
    basis = basis * triangle.diagonal(dim1=-2, dim2=-1).sign()[:, None]  # makes it uniform among all bases
    return basis.mT.flatten(0, 1)[:count] * directions.norm(dim=-1, keepdim=True)


def one_hot(index: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """(..., N) int64 to (..., N, count) of ones and zeros."""
    return (index[..., None] == torch.arange(count, device=index.device)).to(dtype)


def take_rows(table: Tensor, index: Tensor) -> Tensor:
    """Rows (..., n, c) of ``table`` (..., m, c) by their numbers (..., n), window by window and head by head."""
    return table.gather(-2, index[..., None].expand(*index.shape, table.shape[-1]))
