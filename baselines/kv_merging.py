"""Softmax attention to keys and values that are merged by similarity."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nystra_bench.attention.base import Attention, Window
from nystra_bench.attention.landmarks import landmark_grid, refuses_landmarks
from nystra_bench.attention.parameters import check_whole_numbers
from nystra_bench.attention.precision import at_least_float32

from .common import one_hot


class MergedAttention(Attention):
    """Token merging (Bolya et al., arXiv 2210.09461) of keys and values, with proportional attention.

    Tokens are parted into m destinations and N - m sources; each source joins the destination whose key is most
    similar to its own (cosine); keys and values of a group are averaged, and attention to a group of s tokens
    gets log(s) on its logits (eq. 1): ``softmax(Q K'^T + log s) V'``.
    The paper takes every other token as a destination and merges the r most similar pairs; going down to m tokens
    in that way costs O(N^2). Here, as in the merging for diffusion models (Bolya and Hoffman, arXiv 2303.17604), the
    destinations are one token of each cell of a grid, its centre, and all other tokens are merged. Each head merges by
    its own keys; queries are not merged.
    O(N m (d + d_v)) time, O(N m) memory. The matrix is row-stochastic. Position bias and shift mask are ignored. With
    as many landmarks as tokens it is softmax attention.

    Args:
        landmarks: m, the number of merged keys.

    Raises:
        ValueError: a parameter is out of its range.
    """

    version = "2"
    rows_sum_to_one = True
    exact_with_all_landmarks = True

    def __init__(self, landmarks: int = 16):
        super().__init__()
        check_whole_numbers(landmarks=(landmarks, 1))
        self.landmarks = landmarks

    def refuses(self, height: int, width: int) -> str | None:
        return refuses_landmarks(self.landmarks, height, width)

    def _destinations(self, window: Window, device: torch.device) -> Tensor:
        """Token at the centre of each cell of the grid, (m,) int64."""
        rows, columns = landmark_grid(self.landmarks, window.height, window.width)
        y = (2 * torch.arange(rows, device=device) + 1) * window.height // (2 * rows)
        x = (2 * torch.arange(columns, device=device) + 1) * window.width // (2 * columns)
        return (y[:, None] * window.width + x).flatten()

    def _groups(self, k: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        """Each token's share in each group's mean (B * nW, H, N, m), and the groups' sizes (B * nW, H, m)."""
        destinations = self._destinations(window, k.device)
        unit = F.normalize(at_least_float32(k), dim=-1)  # whom a token is nearest to, rounding must not decide
        nearest = (unit @ unit[..., destinations, :].mT).argmax(-1)
        nearest[..., destinations] = torch.arange(self.landmarks, device=k.device)
        members = one_hot(nearest, self.landmarks, torch.promote_types(k.dtype, torch.float32))
        sizes = members.sum(-2)
        return members / sizes[..., None, :], sizes

    def _weights(self, q: Tensor, k: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        """Attention to the groups and the tokens' shares in them, both (B * nW, H, N, m)."""
        shares, sizes = self._groups(k, window)
        merged = (shares.mT @ at_least_float32(k)).to(q.dtype)
        logits = q @ merged.mT + sizes.log().to(q.dtype)[..., None, :]
        return logits.softmax(-1), shares

    def forward(self, q: Tensor, k: Tensor, v: Tensor, window: Window) -> Tensor:
        weights, shares = self._weights(q, k, window)
        return weights @ (shares.mT @ at_least_float32(v)).to(v.dtype)

    def matrix(self, q: Tensor, k: Tensor, window: Window) -> Tensor:
        weights, shares = self._weights(q, k, window)
        return weights @ shares.mT.to(q.dtype)

    def flops(self, windows: int, heads: int, tokens: int, dim: int, dim_v: int) -> int:
        matching, merging, attending = dim, dim + dim_v, dim + dim_v
        return 2 * windows * heads * tokens * self.landmarks * (matching + merging + attending)
