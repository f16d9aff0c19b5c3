"""Slow float64 references of the published baselines, one window and head at a time, written from their papers.

Nothing here calls the project's own attentions. q, k, v are (N, d) numpy arrays, with q already scaled by 1/sqrt(d);
random directions, landmark places and clusters are given, so that only the formula is tested.
"""

from __future__ import annotations

import numpy as np
import torch
from attention_references import pooled


def by_head(reference, q, k, v, *more, **parameters) -> np.ndarray:
    """Apply a reference to each window and head of (B, H, N, d) tensors."""
    q, k, v = (np.asarray(torch.as_tensor(t).double()) for t in (q, k, v))
    heads = [
        [reference(q[b, h], k[b, h], v[b, h], *more, **parameters) for h in range(q.shape[1])] for b in range(len(q))
    ]
    return np.array(heads)


def softmax(logits: np.ndarray, axis: int = -1) -> np.ndarray:
    weights = np.exp(logits - logits.max(axis, keepdims=True))
    return weights / weights.sum(axis, keepdims=True)


def normalised(kernel: np.ndarray) -> np.ndarray:
    return kernel / kernel.sum(-1, keepdims=True)


def softmax_attention(q, k, v):
    return softmax(q @ k.T) @ v


def uniform(q, k, v):
    return np.ones((len(q), len(k))) / len(k) @ v


def linear_attention(q, k, v):
    def elu_plus_1(x):
        return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))

    return normalised(elu_plus_1(q * np.sqrt(q.shape[1])) @ elu_plus_1(k).T) @ v


def efficient_attention(q, k, v):
    return softmax(q * np.sqrt(q.shape[1]), 1) @ softmax(k, 0).T @ v


def taylor(q, k, v):
    x = q @ k.T
    return normalised(1 + x + x**2 / 2) @ v


def performer(q, k, v, directions):
    """With the stabilisers of the authors' code: the largest projection taken off, and 1e-4 added."""
    d = q.shape[1]
    x, y = q * np.sqrt(d) / d**0.25, k / d**0.25
    wx, wy = x @ directions.T, y @ directions.T
    fx = np.exp(wx - (x**2).sum(1)[:, None] / 2 - wx.max(1, keepdims=True)) + 1e-4
    fy = np.exp(wy - (y**2).sum(1)[:, None] / 2 - wy.max()) + 1e-4
    return normalised(fx @ fy.T) @ v


def rfa(q, k, v, directions, unit_norm, floor):
    """cos(w . (x - y)) averaged over w is the estimate of the Gaussian."""
    d = q.shape[1]
    x, y = q * np.sqrt(d) / d**0.25, k / d**0.25
    if unit_norm:
        x, y = (t / np.linalg.norm(t, axis=1, keepdims=True) for t in (x, y))
    gaussian = np.mean([np.cos((x @ w)[:, None] - (y @ w)[None, :]) for w in directions], 0)
    half = (y**2).sum(1) / 2
    factor = np.exp(half - half.max())
    kernel = gaussian * factor
    return kernel @ v / np.maximum(kernel.sum(1), floor * factor.sum())[:, None]


def agent_attention(q, k, v, height, width, landmarks):
    root = np.sqrt(q.shape[1])
    agents = pooled(q * root, height, width, landmarks)  # of queries that are not scaled
    return softmax(q * root @ agents.T / root) @ softmax(agents @ k.T / root) @ v


def kv_pooling(q, k, v, height, width, landmarks):
    return softmax_attention(q, pooled(k, height, width, landmarks), pooled(v, height, width, landmarks))


def kv_merging(q, k, v, destinations):
    groups = [[place] for place in destinations]
    for token in set(range(len(k))) - set(destinations):
        cosines = [k[token] @ k[place] / np.linalg.norm(k[token]) / np.linalg.norm(k[place]) for place in destinations]
        groups[int(np.argmax(cosines))].append(token)
    sizes = np.array([len(group) for group in groups])
    merged_k, merged_v = (np.stack([t[group].mean(0) for group in groups]) for t in (k, v))
    return softmax(q @ merged_k.T + np.log(sizes)) @ merged_v


def segments(tokens: np.ndarray, landmarks: int) -> np.ndarray:
    """Mean of tokens floor(i N / m) to ceil((i + 1) N / m)."""
    n = len(tokens)
    return np.stack([tokens[i * n // landmarks : -(-(i + 1) * n // landmarks)].mean(0) for i in range(landmarks)])


def razavi(a: np.ndarray, iterations: int) -> np.ndarray:
    eye = np.eye(len(a))
    z = a.T / (np.abs(a).sum(0).max() * np.abs(a).sum(1).max())
    for _ in range(iterations):
        z = z @ (13 * eye - a @ z @ (15 * eye - a @ z @ (7 * eye - a @ z))) / 4
    return z


def nystromformer(q, k, v, q_marks, k_marks, iterations):
    """``q_marks`` and ``k_marks`` make the landmarks of q and k."""
    q_marks, k_marks = q_marks(q), k_marks(k)
    z = razavi(softmax(q_marks @ k_marks.T), iterations)
    return softmax(q @ k_marks.T) @ z @ softmax(q_marks @ k.T) @ v


def skyformer(q, k, v, q_places, k_places, gamma):
    """With the inverse itself, which the iteration approximates."""
    d = q.shape[1]
    q = q * np.sqrt(d)

    def gaussian(x, y):
        return np.exp(-((x[:, None] - y[None]) ** 2).sum(-1) / (2 * np.sqrt(d)))

    marks = np.concatenate([q[q_places], k[k_places]])
    inverse = np.linalg.inv(gaussian(marks, marks) + gamma * np.eye(len(marks)))
    return gaussian(q, marks) @ inverse @ gaussian(marks, k) @ v


def hamming_kmeans(q, directions, offsets, landmarks, iterations) -> np.ndarray:
    """Cluster of each query: Lloyd's algorithm on hashes, distances and majorities counted bit by bit."""
    n = len(q)
    bits = (q * np.sqrt(q.shape[1])) @ directions.T + offsets >= 0
    centres = [bits[i * n // landmarks].copy() for i in range(landmarks)]

    def assign():
        return np.array([int(np.argmin([(b != c).sum() for c in centres])) for b in bits])

    for _ in range(iterations):
        nearest = assign()
        for j in range(landmarks):
            ones = bits[nearest == j].sum(0)
            zeros = (nearest == j).sum() - ones
            centres[j] = np.where(ones > zeros, True, np.where(zeros > ones, False, centres[j]))
    return assign()


def clustered_attention(q, k, v, clusters):
    out = np.empty((len(q), v.shape[1]))
    for j in set(clusters):
        out[clusters == j] = softmax(q[clusters == j].mean(0) @ k.T) @ v
    return out


def improved_clustered_attention(q, k, v, clusters, keys):
    out = np.empty((len(q), v.shape[1]))
    for i, j in enumerate(clusters):
        weights = softmax(q[clusters == j].mean(0) @ k.T)
        top = np.argsort(-weights)[:keys]
        own = np.exp(q[i] @ k[top].T)
        weights[top] = weights[top].sum() * own / own.sum()
        out[i] = weights @ v
    return out
