"""Slow float64 references of the attentions of 2025 and 2026, written from their papers' formulas with loops.

Nothing here calls the project's own attentions. A formula gets the heads of one region of one window, numpy arrays
(H, N, c) of queries and keys in balance, so that their product is the logit, and (H, N, d_v) of values; random numbers
are given, so that only the formula is tested.
"""

from __future__ import annotations

import numpy as np
import torch
from baseline_references import razavi, softmax


def by_region(formula, q, k, v, size, regions=None, factors=None) -> np.ndarray:
    """Apply a formula to each region of each window of (B * nW, H, N, c) tensors.

    Args:
        formula: of (q, k, v, (height, width)), where a region is no rectangle (1, N).
        factors: F and G (H, N, r) of a position bias, or None.
    """
    q, k, v = (np.asarray(torch.as_tensor(t).double()) for t in (q, k, v))
    root = q.shape[-1] ** 0.25
    out = np.empty_like(v)
    for window in range(len(q)):
        queries, keys = q[window] * root, k[window] / root
        if factors is not None:
            queries, keys = (
                np.concatenate([x, np.asarray(torch.as_tensor(y).double())], -1)
                for x, y in zip((queries, keys), factors, strict=True)
            )
        of_token = np.zeros(q.shape[-2]) if regions is None else np.asarray(regions)[window % len(regions)]
        for region in set(of_token.tolist()):
            own = np.flatnonzero(of_token == region)
            values = formula(queries[:, own], keys[:, own], v[window][:, own], rectangle(own, size[1]))
            out[window][:, own] = values
    return out


def rectangle(tokens, width: int) -> tuple[int, int]:
    """Height and width where tokens fill a rectangle, else those of a row."""
    places = {(int(t) // width, int(t) % width) for t in tokens}
    rows, columns = {y for y, _ in places}, {x for _, x in places}
    filled = places == {(y, x) for y in rows for x in columns}
    together = all(max(line) - min(line) + 1 == len(line) for line in (rows, columns))
    return (len(rows), len(columns)) if filled and together else (1, len(tokens))


def softmax_attention(q, k, v):
    return softmax(q @ k.swapaxes(-1, -2)) @ v


# --------------------------------------------------------------------------- AVGGT


def avggt(q, k, v, size, kept):
    """``kept`` are the tokens subsampled; the weights of one query after another."""
    heads, tokens, _ = q.shape
    out = np.empty_like(v)
    dropped = [t for t in range(tokens) if t not in kept]
    for h in range(heads):
        for i in range(tokens):
            entries = [(np.exp(q[h, i] @ k[h, j]), v[h, j]) for j in kept]
            if i in dropped:
                entries.append((np.exp(q[h, i] @ k[h, i]), v[h, i]))
            if dropped:
                others = len(dropped) - (i in dropped)
                mean_k, mean_v = k[h, dropped].mean(0), v[h, dropped].mean(0)
                entries.append((others * np.exp(q[h, i] @ mean_k), mean_v))
            out[h, i] = sum(w * x for w, x in entries) / sum(w for w, _ in entries)
    return out


# --------------------------------------------------------------------------- FNA


def farthest(points: np.ndarray, count: int) -> list[int]:
    """From the first point on, always the one with the largest distance from those chosen."""
    chosen = [0]
    while len(chosen) < count:
        distances = [min(np.linalg.norm(p - points[c]) for c in chosen) for p in points]
        for c in chosen:
            distances[c] = -1.0
        chosen.append(int(np.argmax(distances)))
    return chosen


def fna(q, k, v, size, landmarks, iterations):
    heads, tokens, _ = q.shape
    chosen = farthest(np.concatenate(list(k), -1), min(landmarks, tokens))
    out = np.empty_like(v)
    for h in range(heads):
        q_marks, k_marks = q[h, chosen], k[h, chosen]
        z = razavi(softmax(q_marks @ k_marks.T), iterations)
        out[h] = softmax(q[h] @ k_marks.T) @ z @ softmax(q_marks @ k[h].T) @ v[h]
    return out


# --------------------------------------------------------------------------- PISA


def blocks(size, block, cell) -> list[list[int]]:
    """Tokens of each block; with a cell (height, width) in the order of cells, with None row by row."""
    height, width = size
    tokens = list(range(height * width))
    if cell is not None:
        tokens.sort(key=lambda t: (t // width // cell[0], t % width // cell[1], t // width, t % width))
    return [tokens[i : i + block] for i in range(0, len(tokens), block)]


def pisa(q, k, v, size, block, density, cell, first_order=True):
    heads, tokens, _ = q.shape
    cut = blocks(size, block, cell)
    critical_count = max(1, int(density * len(cut)))
    out = np.empty_like(v)
    for h in range(heads):
        k_means = [k[h, b].mean(0) for b in cut]
        pairs = [(j, mean) for b, mean in zip(cut, k_means, strict=True) for j in b]
        changes = sum(np.outer(k[h, j] - mean, v[h, j]) for j, mean in pairs) * first_order
        for of_queries in cut:
            scores = [q[h, of_queries].mean(0) @ mean for mean in k_means]
            critical = set(np.argsort(scores)[::-1][:critical_count].tolist())
            for i in of_queries:
                above, below, share = np.zeros(v.shape[-1]), 0.0, 0.0
                for number, b in enumerate(cut):
                    if number in critical:
                        weights = [np.exp(q[h, i] @ k[h, j]) for j in b]
                    else:
                        weights = [np.exp(q[h, i] @ k_means[number])] * len(b)
                        share += sum(weights)
                    above += sum(w * v[h, j] for w, j in zip(weights, b, strict=True))
                    below += sum(weights)
                out[h, i] = (above + share / tokens * (q[h, i] @ changes)) / below
    return out


# --------------------------------------------------------------------------- Thinformer


def kernel_halving(kernel: np.ndarray, noise: np.ndarray) -> list[int]:
    """Numbers of the points that are taken; the signed sum's products are added up anew for every pair."""
    pairs = len(kernel) // 2
    e = np.eye(len(kernel))
    f = [e[2 * i] - e[2 * i + 1] for i in range(pairs)]
    size = [np.sqrt(max(f[i] @ kernel @ f[i], 0)) for i in range(pairs)]
    signs = [1]
    for i in range(1, pairs):
        product = sum(s * (f[j] @ kernel @ f[i]) for j, s in enumerate(signs))
        signs.append(-1 if noise[i] * size[i] * max(size[: i + 1]) <= product else 1)
    return [2 * i + (sign < 0) for i, sign in enumerate(signs)]


def thinformer(q, k, v, size, thinned, randomness, with_values):
    """``thinned`` are the tokens that a window starts from, ``randomness`` of each halving (bucket, noise, coins)."""
    out = np.empty_like(v)
    for h in range(len(q)):
        chosen = list(thinned)
        b_squared = np.abs(v[h]).max() ** 2
        for bucket, noise, coins in randomness:
            halves = []
            for number, start in enumerate(range(0, len(chosen), bucket)):
                own = chosen[start : start + bucket]
                kernel = np.exp(k[h, own] @ k[h, own].T)
                if with_values:
                    kernel = kernel * (v[h, own] @ v[h, own].T + b_squared)
                taken = kernel_halving(kernel, noise[number])
                if coins[number]:
                    taken = [t ^ 1 for t in taken]
                halves += [own[t] for t in taken]
            chosen = halves
        out[h] = softmax(q[h] @ k[h, chosen].T) @ v[h, chosen]
    return out


# --------------------------------------------------------------------------- WildCat


def wildcat(q, k, v, size, gumbel, clip):
    """The kernel is the exponential one itself, what is left of it a Schur complement, and its inverse is formed."""
    out = np.empty_like(v)
    for h in range(len(q)):
        if len(k[h]) <= len(gumbel):
            out[h] = softmax_attention(q[h], k[h], v[h])
            continue
        keys = k[h] - k[h].mean(0)
        t_squared = 3.94582 * np.linalg.norm(keys, axis=1).max() / np.linalg.norm(q[h], axis=1).max()
        kernel = np.exp(keys @ keys.T / t_squared)
        chosen: list[int] = []
        for noise in gumbel:
            left = np.diag(kernel).copy()
            if chosen:
                rows = kernel[chosen]
                left -= np.einsum("sn,st,tn->n", rows, np.linalg.inv(kernel[np.ix_(chosen, chosen)]), rows)
                left[chosen] = 0
            with np.errstate(divide="ignore"):
                chosen.append(int(np.argmax(np.log(left.clip(0)) + noise)))
        weights = np.linalg.solve(kernel[np.ix_(chosen, chosen)], kernel[chosen])
        mixed = np.exp(q[h] @ keys[chosen].T) @ weights
        out[h] = mixed @ v[h] / mixed.sum(1, keepdims=True)
        if clip:
            out[h] = np.clip(out[h], v[h].min(0), v[h].max(0))
    return out
