"""A slow float64 reference of exact attention, written from its formula with plain loops, and data for it.

Nothing here calls the project's own attentions. Tensors are as in the contract: q, k, v (B * nW, H, N, d) with q
already scaled, bias (H, N, N) or None, regions (nW, N) or None; the windows of one image stand together.
"""

from __future__ import annotations

import math

import numpy as np
import torch

MASKED = -100.0


def relative_error(actual, expected) -> float:
    """Relative Frobenius norm of the difference, evaluated in float64."""
    actual, expected = (torch.as_tensor(t, dtype=torch.float64) for t in (actual, expected))
    return ((actual - expected).norm() / expected.norm()).item()


def random_qkv(images_windows, heads, tokens, dim, dim_v=None, seed=0, dtype=torch.float32):
    """White noise; q comes scaled by 1/sqrt(d)."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(images_windows, heads, tokens, d, generator=generator) for d in (dim, dim, dim_v or dim))
    return (q / math.sqrt(dim)).to(dtype), k.to(dtype), v.to(dtype)


def exact_matrix(q, k, bias=None, regions=None) -> np.ndarray:
    """softmax(QK^T + B + M), window by window and head by head."""
    q, k = double(q), double(k)
    count, heads, tokens, _ = q.shape
    out = np.empty((count, heads, tokens, tokens))
    for b in range(count):
        for h in range(heads):
            logits = q[b, h] @ k[b, h].T
            if bias is not None:
                logits = logits + double(bias)[h]
            if regions is not None:
                of_window = np.asarray(regions)[b % len(regions)]
                for i in range(tokens):
                    logits[i, of_window != of_window[i]] += MASKED
            weights = np.exp(logits - logits.max(1, keepdims=True))
            out[b, h] = weights / weights.sum(1, keepdims=True)
    return out


def exact(q, k, v, bias=None, regions=None) -> np.ndarray:
    """The output (B * nW, H, N, d_v) of exact attention, float64."""
    return exact_matrix(q, k, bias, regions) @ double(v)


def double(tensor) -> np.ndarray:
    """A tensor or array as float64 array."""
    return np.asarray(torch.as_tensor(tensor).detach().double())
