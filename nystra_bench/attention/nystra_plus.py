"""nystra_plus: attention to clusters of keys and to oneself, corrected by a Nyström step, the bias as features."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nystra_bench.attention.base import Attention, Window
from nystra_bench.attention.calibration import CalibratedAttention
from nystra_bench.attention.folding import bias_factors, centred
from nystra_bench.attention.landmarks import central_tokens, every_other_token, pooled_landmarks, refuses_landmarks
from nystra_bench.attention.parameters import check_truth, check_whole_numbers
from nystra_bench.attention.pinv import razavi_pinv
from nystra_bench.attention.precision import at_least_float32

LANDMARKS_FROM = ("clusters", "cells")

LANDMARKS = (4, 8, 16, 32, 64)
BIAS_RANKS = (2, 8, 24)
"""What a target deviation chooses from."""

APART = -1e4
"""Logit between tokens and clusters of different regions: as good as minus infinity, and finite in float16, too."""

FAINT = -60.0
"""Logits are raised to this, from the largest on: what smaller ones become in float32, subnormal numbers, is many times
slower on CPUs."""


class NystraPlusAttention(CalibratedAttention):
    """Ours: ``out = L (V' + P (U V - A V')) + D V``; O(N m) time and memory a window.

    The tokens of a window and head are put into m clusters by their keys; Q', K', V' are the clusters' means, n their
    sizes. With ``A = softmax(Q'K'^T + log n)`` and ``U = softmax(Q'K^T)``,

    - L is ``n exp(QK'^T)``, so ``L V'`` is attention to the clusters, each standing for n equal keys;
    - D is diagonal, ``exp(q k) - exp(q k')`` for each token's own key k and the mean k' of its cluster: what a token is
      to itself is computed exactly, since it is often most of a row, and what a mean of keys loses first;
    - the rows of L and D together are divided by their sum;
    - ``U V`` is exact attention at the m mean queries, so ``U V - A V'`` is what the clusters get wrong there;
    - P, the pseudo-inverse of A by Razavi's iteration, spreads that over all queries. It is the Nyström step of
      PnP-Nystra (arXiv 2506.08520) with softmax factors, as in Nyströmformer (arXiv 2102.03902).

    Whatever P is, the rows of the whole sum to one, and no guard is needed. With all tokens as landmarks it is exact
    attention. The position bias is folded into the features, ``[Q F][K G]^T = Q K^T + B``, so that clusters, landmarks
    and factors all know it, and its diagonal is kept for D; all are made once a layer and window size. In shifted
    windows each cluster lies in one region, that of the token it starts from, and is masked like it. A region in which
    no cluster starts is not kept apart; a grid of landmarks with at least two rows and two columns leaves none.

    Args:
        landmarks: m, the number of clusters.
        iterations: steps of the pseudo-inverse's iteration.
        bias_rank: r, the number of features that stand for the position bias; 0 leaves it out.
        landmarks_from: ``clusters`` of the keys with their features, or ``cells`` of a grid, as in PnP-Nystra.
        clustering: steps of Lloyd's k-means on every other row and column of tokens, from the tokens in the middle of a
            grid's cells, before all tokens join their nearest cluster.
        exact_diagonal: whether D is there.
        target_deviation: PSNR in dB that the output is to keep with that of exact attention. Landmarks and rank are
            then chosen for each layer on a few images (``calibration.choose``), the other parameters as they are.

    Raises:
        ValueError: a parameter is out of its range.
    """

    version = "4.1"
    uses_bias = True
    folds_bias = True
    uses_mask = True
    rows_sum_to_one = True
    exact_with_all_landmarks = True

    def __init__(
        self,
        landmarks: int = 16,
        iterations: int = 6,
        bias_rank: int = 8,
        landmarks_from: str = "clusters",
        clustering: int = 0,
        exact_diagonal: bool = True,
        target_deviation: float | None = None,
    ):
        super().__init__(target_deviation)
        check_whole_numbers(landmarks=(landmarks, 1), iterations=(iterations, 0))
        check_whole_numbers(bias_rank=(bias_rank, 0), clustering=(clustering, 0))
        self.landmarks = landmarks
        self.iterations = iterations
        self.bias_rank = bias_rank
        self.uses_bias = self.folds_bias = bias_rank > 0
        if landmarks_from not in LANDMARKS_FROM:
            accepted = ", ".join(LANDMARKS_FROM)
            raise ValueError(f"landmarks_from={landmarks_from} is unknown: accepted are {accepted}")
        self.landmarks_from = landmarks_from
        self.clustering = clustering
        check_truth(exact_diagonal=exact_diagonal)
        self.exact_diagonal = exact_diagonal

    def refuses(self, height: int, width: int) -> str | None:
        return refuses_landmarks(self.landmarks, height, width) if self.target_deviation is None else None

    def candidates(self) -> dict[str, Attention]:
        return {
            f"landmarks={landmarks} bias_rank={rank}": NystraPlusAttention(
                landmarks, self.iterations, rank, self.landmarks_from, self.clustering, self.exact_diagonal
            )
            for landmarks in LANDMARKS
            for rank in BIAS_RANKS
        }

    def forward(self, q: Tensor, k: Tensor, v: Tensor, window: Window) -> Tensor:
        batch, heads, _, d_v = v.shape
        # Heads first: all windows of a head share the bias, so its part of the logits is one matrix product a head.
        q, k, v = (x.transpose(0, 1).reshape(-1, *x.shape[-2:]) for x in (q, k, v))
        bias, masks = self._bias_features(window, heads, q), self._masks(window, q)

        shares, sizes = (x.to(k.dtype) for x in self._clusters(at_least_float32(k), window, heads))
        q_marks, k_marks, v_marks = (by_rows(shares, x) for x in (q, k, v))
        f_marks, g_marks = bias.means(shares)
        weights = sizes.log()  # nobody attends to an empty cluster

        correct = by_rows(logits(q_marks, f_marks, k, bias.keys, masks.tokens).softmax(-1), v)
        kernel = torch.baddbmm(weights.mT.float(), f_marks.float(), g_marks.float().mT)
        kernel = kernel.baddbmm_(q_marks.float(), k_marks.float().mT)
        kernel = add_mask(kernel, masks.centres).softmax(-1)
        residual = torch.baddbmm(correct.float(), kernel, v_marks.float(), alpha=-1)
        values = torch.baddbmm(v_marks.float(), razavi_pinv(kernel, self.iterations), residual).to(v.dtype)

        left = logits(k_marks, torch.cat([g_marks, weights], -1), q, bias.queries, masks.tokens)
        left, diagonal = softmax_over_rows(left, bias.own(q, k) if self.exact_diagonal else None, shares)
        if d_v % 4:
            values = F.pad(values, (0, -d_v % 4))  # twice as fast with 4 k columns
        out = torch.bmm(left.mT, values)[..., :d_v]
        if diagonal is not None:
            out = out.addcmul_(diagonal.mT, v)
        return out.view(heads, batch, -1, d_v).transpose(0, 1)

    def matrix(self, q: Tensor, k: Tensor, window: Window) -> Tensor:
        eye = torch.eye(window.tokens, dtype=q.dtype, device=q.device)
        return self.forward(q, k, eye.expand(*q.shape[:-2], -1, -1), window)

    def flops(self, windows: int, heads: int, tokens: int, dim: int, dim_v: int) -> int:
        m, n, dim = self.landmarks, tokens, dim + min(self.bias_rank, tokens)
        clustering = 0
        if self.landmarks_from == "clusters":
            side = math.isqrt(n)
            sample = (side // 2) * (n // side // 2)
            clustering = m * (self.clustering * sample * 2 * dim + n * (dim + 1))
        factors = n * m * (4 * dim + 3 * dim_v + 1 + -dim_v % 4)
        inverse = m * m * (dim + 2 * dim_v) + 4 * self.iterations * m**3
        return 2 * windows * heads * (clustering + factors + inverse)

    def _bias_features(self, window: Window, heads: int, like: Tensor) -> BiasFeatures:
        """Made once a layer and window size; of no columns but the ones where there is no bias."""

        def make() -> BiasFeatures:
            f, g, diagonal = (x.to(like) for x in self._factors(window, heads))
            ones = like.new_ones(heads, 1, window.tokens)
            sample = every_other_token(g, window.height, window.width)
            with_ones = torch.cat((f.mT, ones), 1), torch.cat((g.mT, ones), 1)
            both = torch.cat((f.mT, g.mT), 1)
            return BiasFeatures(*with_ones, both, g[:, self._centres(window, g.device)], sample, diagonal)

        return window.cache.once(("features", like.dtype), make)

    def _factors(self, window: Window, heads: int) -> tuple[Tensor, Tensor, Tensor]:
        """F and G (H, N, r) of the bias, and its diagonal (H, N), float32."""

        def make() -> tuple[Tensor, Tensor, Tensor]:
            if not (window.has_bias and self.bias_rank):
                nothing = torch.zeros(heads, window.tokens, 0)
                return nothing, nothing, torch.zeros(heads, window.tokens)
            bias = window.bias()
            assert bias is not None  # as has_bias says
            bias = centred(bias)
            return *bias_factors(bias, self.bias_rank), bias.diagonal(dim1=-2, dim2=-1).clone()

        return window.cache.once("factors", make)

    def _centres(self, window: Window, device: torch.device) -> Tensor:
        """The tokens (m,) that the clusters start from; their regions are the clusters' regions."""
        size = window.height, window.width
        return window.cache.once("centres", lambda: central_tokens(self.landmarks, *size).to(device))

    def _masks(self, window: Window, like: Tensor) -> Masks:
        """Made once for all layers of maps with the same regions."""
        if not window.has_regions:
            return NO_MASKS

        def make() -> Masks:
            regions = window.regions()
            if regions is None:
                return NO_MASKS
            regions = regions.to(like.dtype)
            clusters = regions.index_select(1, self._centres(window, regions.device))
            size = window.height, window.width
            sample = every_other_token(regions[..., None], *size)[..., 0] if self.clustering else None
            return Masks(*(None if x is None else _apart(clusters, x) for x in (regions, sample, clusters)))

        return window.shared.once(("masks", like.dtype), make)

    @torch.no_grad()
    def _clusters(self, k: Tensor, window: Window, heads: int) -> tuple[Tensor, Tensor]:
        """Shares (H * b, m, N) of the tokens in the clusters' means, and the clusters' sizes (H * b, m, 1).

        Of keys in float32 at least: what half precision loses would put many tokens into other clusters.
        """
        size = window.height, window.width
        if self.landmarks_from == "cells":
            shares = window.cache.once("cells", lambda: _cell_shares(self.landmarks, *size).to(k))
            sizes = (shares > 0).sum(-1, keepdim=True).to(shares.dtype)
            return tuple(x.repeat(len(k), 1, 1) for x in (shares, sizes))
        bias, masks = self._bias_features(window, heads, k), self._masks(window, k)
        marks = beside(k.index_select(1, self._centres(window, k.device)), bias.centres)
        if self.clustering:
            sample = beside(every_other_token(k, *size), bias.sample)
        for _ in range(self.clustering):
            nearness = torch.baddbmm(_half_square(marks), marks, sample.mT)
            shares, sizes = _members(add_mask(nearness, masks.sample))
            marks = torch.where(sizes > 0, by_rows(shares, sample), marks)
        rows, features = marks.tensor_split([k.shape[-1]], -1)
        features = torch.cat([features, _half_square(marks)], -1)
        return _members(logits(rows, features, k, bias.keys, masks.tokens))


@dataclass(frozen=True)
class BiasFeatures:
    """What stands for the position bias beside queries and keys, F and G."""

    queries: Tensor
    """F^T and a row of ones, (H, r + 1, N)"""
    keys: Tensor
    """G^T and a row of ones, (H, r + 1, N)"""
    both: Tensor
    """F^T and G^T, (H, 2 r, N)"""
    centres: Tensor
    """G of the tokens that clusters start from, (H, m, r)"""
    sample: Tensor
    """G of every other row and column of tokens, (H, n, r)"""
    diagonal: Tensor
    """The bias of each token to itself, (H, N)"""

    def means(self, shares: Tensor) -> tuple[Tensor, Tensor]:
        """F and G averaged with shares (H * b, m, N): (H * b, m, r) each."""
        by_head = shares.reshape(len(self.both), -1, shares.shape[-1])
        both = torch.bmm(self.both, by_head.mT).mT.reshape(*shares.shape[:2], -1)
        f, g = both.chunk(2, -1)
        return f, g

    def own(self, q: Tensor, k: Tensor) -> Tensor:
        """Logits (H * b, 1, N) of each token with itself."""
        products = torch.linalg.vecdot(q, k)
        return (products.view(len(self.diagonal), -1, q.shape[1]) + self.diagonal[:, None]).view(len(q), 1, -1)


@dataclass(frozen=True)
class Masks:
    """Logits between clusters, each of the region of the token it starts from, and others; 0 in one region.

    All are None where every token sees its whole window.
    """

    tokens: Tensor | None
    """(nW, m, N)"""
    sample: Tensor | None
    """(nW, m, n), every other row and column of tokens, where they are clustered first"""
    centres: Tensor | None
    """(nW, m, m), the clusters themselves"""


NO_MASKS = Masks(None, None, None)


def logits(marks: Tensor, features: Tensor, tokens: Tensor, token_features: Tensor, mask: Tensor | None) -> Tensor:
    """(H * b, m, N) of rows (H * b, m, d) with features (H * b, m, r) and tokens (H * b, N, d) with theirs, masked.

    The tokens' features (H, r + 1, N) have a row of ones for the last column, where the rows' have r + 1.
    """
    heads, rank = len(token_features), features.shape[-1]
    by_head = features.reshape(heads, marks[..., 0].numel() // heads, rank)
    both = torch.bmm(by_head, token_features[:, :rank]).view(*marks.shape[:2], -1)
    return add_mask(both, mask).baddbmm_(marks, tokens.mT)


def add_mask(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Add a mask (nW, m, n), or None, to logits (H * b, m, n), in place."""
    if mask is not None:
        logits.view(-1, *mask.shape).add_(mask)
    return logits


def beside(rows: Tensor, features: Tensor) -> Tensor:
    """Rows (H * b, n, d) and their features (H, n, r) side by side: (H * b, n, d + r)."""
    windows = len(rows) // len(features)
    return torch.cat([rows, features.repeat_interleave(windows, 0)], -1)


def _apart(clusters: Tensor, others: Tensor) -> Tensor:
    """0 or ``APART`` by the numbers of regions (nW, m) and (nW, n): (nW, m, n)."""
    return (clusters[:, :, None] - others[:, None]).abs_().clamp_(max=1).mul_(APART)


def _half_square(centres: Tensor) -> Tensor:
    """With it ``k.c - |c|^2 / 2`` is largest at the nearest centre c of a key k."""
    return centres.square().sum(-1, keepdim=True).mul_(-0.5)


def _members(nearness: Tensor) -> tuple[Tensor, Tensor]:
    """Each token joins the row of (b, m, N) that it is nearest to, or two where it ties; ``nearness`` is overwritten.

    Returns:
        (b, m, N), one over a row's number of tokens at its own and 0 elsewhere, and those numbers, (b, m, 1); a row
        may have none.
    """
    members = nearness.eq_(nearness.amax(1, keepdim=True))
    sizes = members.sum(-1, keepdim=True)
    return members.div_(sizes.clamp(min=1)), sizes


def softmax_over_rows(logits: Tensor, own: Tensor | None, shares: Tensor) -> tuple[Tensor, Tensor | None]:
    """Weights of the clusters, and of the tokens themselves beyond their part in those.

    Args:
        logits: (b, m, N) of the clusters, their sizes in it; overwritten where no gradient needs them.
        own: (b, 1, N) of the tokens with themselves; None to leave them to their clusters.
        shares: (b, m, N), of the tokens in the clusters' means; overwritten like the logits.

    Returns:
        (b, m, N) and (b, 1, N) that sum to one over all rows; weights below 1e-26 are as good as none.
    """
    top = logits.amax(1, keepdim=True)
    top = top if own is None else torch.maximum(top, own)
    keep = logits.requires_grad
    weights = (logits - top if keep else logits.sub_(top)).clamp_(min=FAINT).exp_()
    total, diagonal = weights.sum(1, keepdim=True), None
    if own is not None:
        within = (weights * shares if keep else shares.mul_(weights)).sum(1, keepdim=True)
        diagonal = (own - top).exp() - within
        total = total + diagonal
        diagonal = diagonal / total
    return (weights / total if keep else weights.div_(total)), diagonal


def by_rows(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right`` of (b, m, N) and (b, N, d): twice as fast in this order where d is small."""
    return torch.bmm(right.mT, left.mT).mT


def _cell_shares(landmarks: int, height: int, width: int) -> Tensor:
    """(m, N): the means over the cells of the landmark grid as a matrix."""
    return pooled_landmarks(torch.eye(height * width), height, width, landmarks)
