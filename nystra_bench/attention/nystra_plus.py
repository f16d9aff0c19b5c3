"""nystra_plus: attention to clusters of keys, corrected by a Nyström step; bias and mask ride along as features."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nystra_bench.attention.base import Attention, Window
from nystra_bench.attention.calibration import choose
from nystra_bench.attention.folding import bias_factors, cached, mask_factors
from nystra_bench.attention.landmarks import central_tokens, pooled_landmarks, refuses_landmarks
from nystra_bench.attention.nystra import check_counts
from nystra_bench.attention.pinv import razavi_pinv

CALIBRATION_IMAGES = 2
LANDMARKS = (4, 8, 16, 32, 64)
BIAS_RANKS = (2, 8, 24)
"""What a target deviation chooses from."""


class NystraPlusAttention(Attention):
    """Ours: ``out = L (V' + P (U V - A V'))``; O(N m) time and memory a window.

    The tokens of a window and head are put into m clusters by their keys; Q', K', V' are the clusters' means, n their
    sizes. With ``L = softmax(QK'^T + log n)``, ``A = softmax(Q'K'^T + log n)`` and ``U = softmax(Q'K^T)``,

    - ``L V'`` is attention to the clusters, each standing for n equal keys;
    - ``U V`` is exact attention at the m mean queries, so ``U V - A V'`` is what the clusters get wrong there;
    - P, the pseudo-inverse of A by Razavi's iteration, spreads that over all queries. It is the Nyström step of
      PnP-Nystra (arXiv 2506.08520) with softmax factors, as in Nyströmformer (arXiv 2102.03902).

    Whatever P is, the rows of the whole sum to one: neither guard nor division is needed. With all tokens as landmarks
    it is exact attention. Position bias and shift mask are folded into the features, so that clusters, landmarks and
    factors all know them; the factors of the bias are made once a layer and window size.

    Args:
        landmarks: m, the number of clusters.
        iterations: steps of the pseudo-inverse's iteration.
        bias_rank: r, the number of features that stand for the position bias; 0 leaves it out.
        clustering: steps of Lloyd's k-means on the keys, from the tokens in the middle of a grid's cells; 0 takes the
            cells themselves, as PnP-Nystra does.

        target_deviation: PSNR in dB that the output is to keep with that of exact attention. Landmarks and rank are
            then chosen for each layer on a few images (``calibration.choose``), the other parameters as they are.

    Raises:
        ValueError: a parameter is out of its range.
    """

    version = "2"
    uses_bias = True
    uses_mask = True
    rows_sum_to_one = True
    exact_with_all_landmarks = True

    def __init__(
        self,
        landmarks: int = 16,
        iterations: int = 6,
        bias_rank: int = 8,
        clustering: int = 1,
        target_deviation: float | None = None,
    ):
        super().__init__()
        check_counts(landmarks=(landmarks, 1), iterations=(iterations, 0))
        check_counts(bias_rank=(bias_rank, 0), clustering=(clustering, 0))
        self.landmarks = landmarks
        self.iterations = iterations
        self.bias_rank = bias_rank
        self.clustering = clustering
        if target_deviation is not None and not 0 < target_deviation < 200:
            raise ValueError(f"target_deviation={target_deviation} is out of range: accepted are 0 to 200 dB, or null")
        self.target_deviation = target_deviation
        self.calibration_images = 0 if target_deviation is None else CALIBRATION_IMAGES
        self._by_layer: dict[str, Attention] = {}

    def refuses(self, height: int, width: int) -> str | None:
        return refuses_landmarks(self.landmarks, height, width) if self.target_deviation is None else None

    def calibrate(self, sites, restore, images) -> dict:
        if self.target_deviation is None:
            return {}
        candidates = {
            f"landmarks={landmarks} bias_rank={rank}": NystraPlusAttention(
                landmarks, self.iterations, rank, self.clustering
            )
            for landmarks in LANDMARKS
            for rank in BIAS_RANKS
        }
        choice = choose(sites, restore, images, candidates, self.target_deviation)
        self._by_layer = choice.by_layer
        return choice.record

    def at_layer(self, name: str) -> Attention:
        if self.target_deviation is None:
            return self
        if name not in self._by_layer:
            raise ValueError(f"target_deviation={self.target_deviation} needs the method to be calibrated first")
        return self._by_layer[name]

    def forward(self, q: Tensor, k: Tensor, v: Tensor, window: Window) -> Tensor:
        features = self._features(q, k, v, window)
        shares = self._clusters(features, window)  # (b, m, N): of each cluster's mean, by token
        means = features.like(shares @ features.all)
        largest = shares.amax(-1, keepdim=True)
        log_sizes = (-largest.log()).masked_fill(largest == 0, float("-inf"))  # nobody attends to an empty cluster

        # The column of ones between keys and queries takes the clusters' sizes, and nothing at U.
        k_marks = torch.cat([log_sizes, means.k], -1).transpose(-2, -1)
        q_marks = torch.cat([means.q, torch.zeros_like(log_sizes)], -1)
        correct = (q_marks @ features.k_one.transpose(-2, -1)).softmax(-1) @ features.v

        ones = torch.ones_like(log_sizes)
        kernel = (torch.cat([ones, means.q], -1).float() @ k_marks.float()).softmax(-1)
        residual = correct.float() - kernel @ means.v.float()
        values = means.v + (razavi_pinv(kernel, self.iterations) @ residual).to(v.dtype)

        # softmax(logits) @ values in place, the sums as one more column: as much memory is moved as need be.
        logits = features.one_q @ k_marks
        weights = logits.sub_(logits.detach().amax(-1, keepdim=True)).exp_()
        out = weights @ torch.cat([values, ones], -1)
        return (out[..., :-1] / out[..., -1:]).view(v.shape)

    def matrix(self, q: Tensor, k: Tensor, window: Window) -> Tensor:
        eye = torch.eye(window.tokens, dtype=q.dtype, device=q.device)
        return self.forward(q, k, eye.expand(*q.shape[:-2], -1, -1), window)

    def _features(self, q: Tensor, k: Tensor, v: Tensor, window: Window) -> Features:
        """Values, keys and queries of the windows' tokens side by side, the latter two with bias and mask."""
        keys, queries = [v, k], [q]
        if window.has_bias and self.bias_rank:
            f, g = cached(window, ("factors", self.bias_rank), lambda: bias_factors(window.bias(), self.bias_rank))
            queries.append(f.to(q.dtype))
            keys.append(g.to(q.dtype))
        regions = window.regions()
        if regions is not None:
            images = q.shape[0] // regions.shape[0]
            of_query, of_key = (x.repeat(images, 1, 1)[:, None] for x in mask_factors(regions, q.dtype))
            queries.append(of_query)
            keys.append(of_key)
        columns = [*keys, q.new_ones(()).expand(1, 1, 1, 1), *queries]
        columns = [x.expand(*q.shape[:-1], x.shape[-1]) for x in columns]
        masked = 0 if regions is None else of_key.shape[-1]
        return Features(torch.cat(columns, -1).flatten(0, 1), v.shape[-1], masked)

    @torch.no_grad()
    def _clusters(self, features: Features, window: Window) -> Tensor:
        """(b, m, N): rows that sum to one, equal for all tokens of a cluster and zero for the others."""
        height, width = window.height, window.width
        if not self.clustering:
            cells = cached(window, "cells", lambda: _cell_shares(self.landmarks, height, width))
            return cells.to(features.all).expand(len(features.all), -1, -1)
        centres = features.like(features.all[:, central_tokens(self.landmarks, height, width)])
        shares = None
        for _ in range(self.clustering):
            centres = centres if shares is None else features.like(shares @ features.all)
            # k.c - |c|^2 / 2 is largest at the nearest centre; one of another region is 100 farther.
            nearness = features.k_one @ centres.nearness().transpose(-2, -1)
            members = nearness.eq_(nearness.amax(-1, keepdim=True))  # a tie counts for both
            shares = members.div_(members.sum(-2, keepdim=True).clamp_(min=1)).transpose(-2, -1)
        return shares

    def flops(self, windows: int, heads: int, tokens: int, dim: int, dim_v: int) -> int:
        """Those of windows with a bias and without a mask."""
        m, n, dim = self.landmarks, tokens, dim + min(self.bias_rank, tokens)
        columns = dim_v + 2 * dim + 1
        clustering = self.clustering * n * m * (dim + 1) + max(self.clustering - 1, 0) * n * m * columns
        factors = n * m * (columns + 2 * (dim + 1) + 2 * dim_v + 1)
        inverse = m * m * (dim + 1 + 2 * dim_v) + 4 * self.iterations * m**3
        return 2 * windows * heads * (clustering + factors + inverse)


class Features(NamedTuple):
    """Tokens, or means of tokens, as rows (b, N, C): values, keys, a one and queries."""

    all: Tensor
    dim_v: int
    masked: int
    """Columns at the end of keys and of queries that hold the mask."""

    def like(self, rows: Tensor) -> Features:
        return self._replace(all=rows)

    @property
    def one(self) -> int:
        """The column of ones: as many columns of keys stand before it as of queries behind it."""
        return (self.all.shape[-1] + self.dim_v) // 2

    @property
    def v(self) -> Tensor:
        return self.all[..., : self.dim_v]

    @property
    def k(self) -> Tensor:
        return self.all[..., self.dim_v : self.one]

    @property
    def k_one(self) -> Tensor:
        return self.all[..., self.dim_v : self.one + 1]

    @property
    def one_q(self) -> Tensor:
        return self.all[..., self.one :]

    @property
    def q(self) -> Tensor:
        return self.all[..., self.one + 1 :]

    def nearness(self) -> Tensor:
        """What ``k_one`` is multiplied by for a token's nearness to these rows."""
        seen = self.k.shape[-1] - self.masked
        keys, regions = self.k[..., :seen], self.q[..., seen:]
        return torch.cat([keys, regions, -0.5 * keys.square().sum(-1, keepdim=True)], -1)


def _cell_shares(landmarks: int, height: int, width: int) -> Tensor:
    """(m, N): the means over the cells of the landmark grid as a matrix."""
    return pooled_landmarks(torch.eye(height * width), height, width, landmarks)
