"""nystra_plus: a Nyström attention of softmax factors that keeps the position bias and the shift mask."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nystra_bench.attention.base import Attention, Window
from nystra_bench.attention.folding import bias_factors, cached, pooled_mask
from nystra_bench.attention.landmarks import pooled_landmarks, refuses_landmarks
from nystra_bench.attention.nystra import check_counts
from nystra_bench.attention.pinv import razavi_pinv


class NystraPlusAttention(Attention):
    """Ours: ``out = L P (U V)``; O(N m) time and memory a window.

    ``L = softmax(QK'^T + B_L)``, ``A = softmax(Q'K'^T + B_A)`` and ``U = softmax(Q'K^T + B_U)``, with landmarks Q', K'
    pooled from Q, K; P is the pseudo-inverse of A by Razavi's iteration.

    Against PnP-Nystra (arXiv 2506.08520): the factors are row-stochastic, so that no guard and no division are needed
    whatever the logits are (as in Nyströmformer, arXiv 2102.03902); the position bias is pooled to the landmarks
    together with the tokens, which costs one addition of (H, N, m) a call; the shift mask likewise. The pooled bias
    is made once a layer and window size.

    Args:
        landmarks: m, tokens averaged over the cells of a grid.
        iterations: steps of the pseudo-inverse's iteration.
        bias_rank: rank to which the bias is reduced before it is pooled; None keeps it whole, which is closer and no
            slower; 0 leaves it out.
        completion: add ``(1 - L P 1) * (L U V)``, which makes all rows sum to one whatever P is.

    Raises:
        ValueError: a parameter is out of its range.
    """

    uses_bias = True
    uses_mask = True
    exact_with_all_landmarks = True

    def __init__(
        self, landmarks: int = 16, iterations: int = 6, bias_rank: int | None = None, completion: bool = False
    ):
        super().__init__()
        check_counts(landmarks=(landmarks, 1), iterations=(iterations, 0))
        if bias_rank is not None:
            check_counts(bias_rank=(bias_rank, 0))
        self.landmarks = landmarks
        self.iterations = iterations
        self.bias_rank = bias_rank
        self.completion = self.rows_sum_to_one = completion

    def refuses(self, height: int, width: int) -> str | None:
        return refuses_landmarks(self.landmarks, height, width)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, window: Window) -> Tensor:
        q_marks, k_marks = self._pool(q, window), self._pool(k, window)
        left, middle, right = self._biases(q, window)
        inverse = self._inverse(q_marks, k_marks, middle)
        values = _attend(q_marks, k, v, right)
        out = inverse @ values.float()
        if not self.completion:
            return _attend(q, k_marks, out.to(v.dtype), left)
        sums = inverse.sum(-1, keepdim=True)
        both = _attend(q, k_marks, torch.cat([out + values, sums, values.float()], -1).to(v.dtype), left)
        out, sums, values = both.split([v.shape[-1], 1, v.shape[-1]], -1)
        return out - sums * values

    def matrix(self, q: Tensor, k: Tensor, window: Window) -> Tensor:
        q_marks, k_marks = self._pool(q, window), self._pool(k, window)
        left, middle, right = self._biases(q, window)
        inverse = self._inverse(q_marks, k_marks, middle).to(q.dtype)
        rows, columns = _weights(q, k_marks, left), _weights(q_marks, k, right)
        whole = rows @ inverse @ columns
        if not self.completion:
            return whole
        return whole + (1 - rows @ inverse.sum(-1, keepdim=True)) * (rows @ columns)

    def _pool(self, tokens: Tensor, window: Window) -> Tensor:
        return pooled_landmarks(tokens, window.height, window.width, self.landmarks)

    def _inverse(self, q_marks: Tensor, k_marks: Tensor, bias: Tensor | None) -> Tensor:
        """(B * nW, H, m, m) float32, whatever the tokens' dtype: the iteration would not converge in less."""
        with torch.autocast(q_marks.device.type, enabled=False):
            kernel = _weights(q_marks.float(), k_marks.float(), None if bias is None else bias.float())
            return razavi_pinv(kernel, self.iterations, init="matrix")

    def _biases(self, q: Tensor, window: Window) -> tuple[Tensor | None, ...]:
        """Added to the logits of L, A and U: bias and mask, pooled to the landmarks; None where there is none."""
        pooled = (None, None, None)
        if window.has_bias and self.bias_rank != 0:
            pooled = cached(window, ("pooled", q.dtype), lambda: self._pooled_bias(q, window))
        regions = window.regions()
        if regions is None:
            return pooled
        masks = pooled_mask(regions, lambda x: self._pool(x, window), q.dtype)
        both = (mask if part is None else part + mask for part, mask in zip(pooled, masks, strict=True))
        images = q.shape[0] // regions.shape[0]
        return tuple(mask.repeat(images, 1, 1, 1) for mask in both)

    def _pooled_bias(self, q: Tensor, window: Window) -> tuple[Tensor, ...]:
        """Means of the bias over cells of keys (1, H, N, m), of both (1, H, m, m) and of queries (1, H, m, N)."""
        bias = window.bias().float()
        if self.bias_rank is not None:
            f, g = bias_factors(bias, self.bias_rank)
            bias = f @ g.transpose(-2, -1)
        right = self._pool(bias, window)
        left = self._pool(bias.transpose(-2, -1), window).transpose(-2, -1)
        middle = self._pool(left, window)
        return tuple(part[None].to(q.dtype).contiguous() for part in (left, middle, right))

    def flops(self, windows: int, heads: int, tokens: int, dim: int, dim_v: int) -> int:
        m, n = self.landmarks, tokens
        columns = 2 * dim_v + 1 if self.completion else dim_v
        factors = n * m * (dim + dim_v) + n * m * (dim + columns) + m * m * dim
        inverse = 4 * self.iterations * m**3 + m * m * dim_v
        return 2 * windows * heads * (factors + inverse)


def _weights(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    logits = q @ k.transpose(-2, -1)
    return (logits if bias is None else logits + bias).softmax(-1)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(q k^T + bias) v by PyTorch's fused kernel."""
    if bias is not None:
        bias = bias.expand(q.shape[0], q.shape[1], -1, -1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
