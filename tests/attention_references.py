"""Slow float64 references of the attentions, written from METHODS section 1 with plain loops, and data for them.

Nothing here calls the project's own attentions. Tensors are as in the contract: q, k, v (B * nW, H, N, d) with q
already scaled, bias (H, N, N) or None, regions (nW, N) or None; the windows of one image stand together. Exact
attention and white noise are those of the conformance tests.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from nystra_bench.conformance.references import double, exact, exact_matrix, random_qkv, relative_error
from nystra_bench.models.windows import bias_from_table

__all__ = [
    "exact",
    "exact_matrix",
    "grid",
    "identity",
    "kernel",
    "nystra",
    "pooled",
    "random_qkv",
    "relative_error",
    "smooth_qkv",
]

# --------------------------------------------------------------------------- data


def smooth_qkv(images_windows, heads, height, width, dim, seed=0):
    """Tokens that vary slowly over the window, as features of images do: landmarks of noise would all be near zero."""
    generator = torch.Generator().manual_seed(seed)

    def smooth():
        cells = torch.randn(images_windows * heads, dim, 8, 8, generator=generator)
        field = F.interpolate(cells, size=(height, width), mode="bilinear")
        field = field + 0.5 * torch.randn(field.shape, generator=generator)
        return field.reshape(images_windows, heads, dim, height * width).transpose(-2, -1).contiguous()

    v = torch.randn(images_windows, heads, height * width, dim, generator=generator)
    return smooth() / math.sqrt(dim), smooth(), v


# --------------------------------------------------------------------------- identity


def identity(q, k, v) -> np.ndarray:
    return double(v)


# --------------------------------------------------------------------------- PnP-Nystra


def grid(landmarks: int, height: int | None = None, width: int | None = None) -> tuple[int, int] | None:
    """The h x w = landmarks with the least |h - w|, h <= w where there are two, found by trying all.

    Within a window only those that fit in are tried; None where there is none.
    """
    heights, widths = (range(1, 1 + min(side or landmarks, landmarks)) for side in (height, width))
    pairs = [(abs(h - w), h, w) for h in heights for w in widths if h * w == landmarks]
    return min(pairs)[1:] if pairs else None


def pooled(tokens: np.ndarray, height: int, width: int, landmarks: int) -> np.ndarray:
    """Mean of the tokens (N, d) of each cell; cell i of n on a side of s is floor(i s / n) to ceil((i + 1) s / n)."""
    rows, columns = grid(landmarks, height, width)
    image = tokens.reshape(height, width, -1)
    means = []
    for i in range(rows):
        for j in range(columns):
            top, bottom = i * height // rows, -(-(i + 1) * height // rows)
            left, right = j * width // columns, -(-(j + 1) * width // columns)
            means.append(image[top:bottom, left:right].mean((0, 1)))
    return np.stack(means)


def kernel(x: np.ndarray, guard: float) -> np.ndarray:
    return np.where(x <= guard, np.exp(np.minimum(x, guard)), math.exp(guard) + (x - guard))


def nystra(q, k, v, height, width, landmarks, iterations, init="global", guard=5.0) -> np.ndarray:
    """PnP-Nystra: kernel of pooled landmarks, Razavi's iteration, and the division by the row sums."""
    q, k, v = double(q), double(k), double(v)
    count, heads = q.shape[:2]
    places = [(b, h) for b in range(count) for h in range(heads)]
    q_marks = {at: pooled(q[at], height, width, landmarks) for at in places}
    k_marks = {at: pooled(k[at], height, width, landmarks) for at in places}
    g_a = {at: kernel(q_marks[at] @ k_marks[at].T, guard) for at in places}
    norm_1 = {at: np.abs(g_a[at]).sum(0).max() for at in places}
    norm_inf = {at: np.abs(g_a[at]).sum(1).max() for at in places}
    out = np.empty(v.shape)
    for at in places:
        whole_tensor, own = max(norm_1.values()) * max(norm_inf.values()), norm_1[at] * norm_inf[at]
        a, eye = g_a[at], np.eye(landmarks)
        z = a.T / (whole_tensor if init == "global" else own)
        for _ in range(iterations):
            z = 0.25 * z @ (13 * eye - a @ z @ (15 * eye - a @ z @ (7 * eye - a @ z)))
        g_l, g_u = kernel(q[at] @ k_marks[at].T, guard), kernel(q_marks[at] @ k[at].T, guard)
        ones = np.ones((k.shape[-2], 1))
        out[at] = (g_l @ (z @ (g_u @ v[at]))) / (g_l @ (z @ (g_u @ ones)) + 1e-12)  # N x N is never needed
    return out


def smooth_bias_of(side: int) -> torch.Tensor:
    """A relative position bias (2, N, N) as trained models have: it falls with the distance, and is not symmetric."""
    offset = torch.arange(1 - side, side).float()
    y, x = torch.meshgrid(offset, offset, indexing="ij")
    table = torch.stack([2 - 0.3 * (y**2 + x**2).sqrt() + 0.1 * y, 1 - 0.1 * (y.abs() + x.abs()) - 0.05 * x], -1)
    return bias_from_table(table.flatten(0, 1), side)
