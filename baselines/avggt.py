"""AVGGT's attention: some tokens of a grid as keys, and besides them oneself and the mean of all others."""

from __future__ import annotations

import torch
from torch import Tensor

from nystra_bench.attention.cache import Cache
from nystra_bench.attention.landmarks import central_tokens, refuses_landmarks
from nystra_bench.attention.parameters import check_whole_numbers

from .regionwise import RegionwiseAttention, Shape


class AVGGTAttention(RegionwiseAttention):
    """The subsampled global attention of AVGGT (Sun et al., arXiv 2512.02541), in each head.

    Keys and values are subsampled on a grid; a query attends to the m tokens kept, to itself (the diagonal, which is
    preserved), and to the mean key and mean value of the tokens dropped (mean-fill), all in one softmax. AVGGT's other
    half, global layers that become attention within a frame, has no counterpart within a window.

    Left open by the paper's abstract, from which this is written, and chosen here: the tokens kept are those in the
    middle of a landmark grid's cells, where a stride would not give every m; the mean counts as often as there are
    tokens dropped (less the query itself), ``log n`` on its logit, since it stands for all of them; a token that is
    kept is not added to itself a second time.
    O(N m (d + d_v)) time, O(N m) memory. The matrix is row-stochastic. Position bias and shift mask as in
    ``RegionwiseAttention``. With as many landmarks as tokens it is softmax attention.

    Args:
        landmarks: m, the number of tokens kept; in a smaller region as many as a grid in it can have.
        bias_rank: r, the number of features that stand for the position bias; 0 leaves it out.

    Raises:
        ValueError: a parameter is out of its range.
    """

    rows_sum_to_one = True
    exact_with_all_landmarks = True

    def __init__(self, landmarks: int = 16, bias_rank: int = 8):
        super().__init__(bias_rank)
        check_whole_numbers(landmarks=(landmarks, 1))
        self.landmarks = landmarks

    def refuses(self, height: int, width: int) -> str | None:
        return refuses_landmarks(self.landmarks, height, width)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, size: Shape, cache: Cache) -> Tensor:
        kept, dropped, filled, own = self._sampled(size, q, cache)
        keys, values = (self._with_mean(x, kept, dropped) for x in (k, v))
        logits = q @ keys.mT + filled
        itself = (q * k).sum(-1, keepdim=True) + own
        weights = torch.cat([logits, itself], -1).softmax(-1)
        return weights[..., :-1] @ values + weights[..., -1:] * v

    @staticmethod
    def _with_mean(tokens: Tensor, kept: Tensor, dropped: Tensor) -> Tensor:
        """(n, H, m + 1, c): the tokens kept, and the mean of those dropped, where there are some."""
        some = tokens.index_select(-2, kept)
        if not len(dropped):
            return some
        return torch.cat([some, tokens.index_select(-2, dropped).mean(-2, keepdim=True)], -2)

    def _sampled(self, size: Shape, like: Tensor, cache: Cache) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The tokens kept (m,) and dropped (N - m,), and what is added to logits.

        That is (N, m + 1) for the tokens kept and the mean, 0 and log n, and (N, 1) for the token itself, 0 or minus
        infinity where it is kept anyway.
        """

        def make() -> tuple[Tensor, Tensor, Tensor, Tensor]:
            tokens = size[0] * size[1]
            most = min(self.landmarks, tokens)
            count = next(m for m in range(most, 0, -1) if refuses_landmarks(m, *size) is None)
            kept = central_tokens(count, *size)
            is_dropped = torch.ones(tokens, dtype=torch.bool).index_fill_(0, kept, False)
            dropped = is_dropped.nonzero()[:, 0]
            filled = torch.zeros(tokens, count + min(len(dropped), 1))
            if len(dropped):
                filled[:, -1] = (len(dropped) - is_dropped.float()).log()
            own = torch.zeros(tokens, 1).masked_fill_(~is_dropped[:, None], -torch.inf)
            return kept.to(like.device), dropped.to(like.device), filled.to(like), own.to(like)

        return cache.once(("sampled", size, like.dtype), make)

    def flops(self, windows: int, heads: int, tokens: int, dim: int, dim_v: int) -> int:
        keys = min(self.landmarks + 1, tokens)
        return 2 * windows * heads * tokens * keys * (self.width(tokens, dim) + dim_v)
