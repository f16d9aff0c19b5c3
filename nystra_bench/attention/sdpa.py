"""Exact attention by PyTorch's fused kernel: what a user who only wants speed would try first."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nystra_bench.attention.base import Attention, Window, add_bias_and_mask
from nystra_bench.attention.groups import groups_of


class FusedAttention(Attention):
    """softmax(QK^T + B + M) V by ``scaled_dot_product_attention``, without an N x N matrix of logits.

    Windows with the same mask go through the kernel together, in at most four calls for a shifted map, with the one
    (H, N, N) bias that they share, so that no (nW, H, N, N) tensor is made for them. The bias is made once a layer, the
    masks once for all layers; their sum is formed for one group at a time, and not kept. PyTorch's fused CPU kernel
    serves d_v = d without gradients; elsewhere PyTorch itself falls back to separate operations.
    """

    exact = True
    rows_sum_to_one = True
    permutation_equivariant = True
    uses_bias = True
    uses_mask = True

    def __init__(self):
        super().__init__()
        self._kernels: dict[tuple, str] = {}  # by what PyTorch decides from
        self._last: set[str] = set()

    def about(self) -> dict[str, str]:
        """``kernel``: what PyTorch took in the last call, ``flash``, ``efficient``, ``cudnn`` or ``math``.

        Where calls with and without a mask took different ones, both, joined by ``+``. ``unknown`` where PyTorch
        cannot be asked.
        """
        return {"kernel": "+".join(sorted(self._last))} if self._last else {}

    def forward(self, q: Tensor, k: Tensor, v: Tensor, window: Window) -> Tensor:
        return self.attend(q, k, v, window.kept_bias(q.dtype), window)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, window: Window) -> Tensor:
        """Attention with a bias (H, N, N), or None, and the window's mask."""
        dim_v = v.shape[-1]
        q, k, v = (_pad(t, kernel_width(t.shape[-1], t.dtype, t.device.type)) for t in (q, k, v))
        self._last = set()
        out: Tensor | None = None
        for group in groups_of(window, len(q), q.dtype):
            part = self._fused(group.take(q), group.take(k), group.take(v), _sum(bias, group.mask))
            if group.windows is None:
                out = part.clone() if part.requires_grad else part  # the kernel's backward pass needs it as it was
                continue
            if out is None:
                out = v.new_empty(len(v), *part.transpose(1, 2).shape[1:]).transpose(1, 2)
            group.put(part, out)
        assert out is not None  # there is always a group
        return out[..., :dim_v]

    def _fused(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        """Attention of q, which is already scaled; ``bias`` (1, H or 1, N, N) is shared by all windows."""
        if bias is not None:
            bias = bias.expand(len(q), q.shape[1], -1, -1)
        case = q.shape, v.shape[-1], q.dtype, q.device, bias is None, q.requires_grad
        if case not in self._kernels:
            self._kernels[case] = chosen_kernel(q, k, v, bias)
        self._last.add(self._kernels[case])
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)

    def matrix(self, q: Tensor, k: Tensor, window: Window) -> Tensor:
        return add_bias_and_mask(q @ k.transpose(-2, -1), window.bias(), window.mask()).softmax(-1)

    def flops(self, windows: int, heads: int, tokens: int, dim: int, dim_v: int) -> int:
        return 2 * windows * heads * tokens * tokens * (dim + dim_v)


def kernel_width(width: int, dtype: torch.dtype, device: str) -> int:
    """Channels a head to which q, k and v are filled up with zeros, which change nothing.

    On CUDA the memory-efficient kernel, the one that takes a bias, reads 16 bytes at once: 8 channels in 16 bits, 4 in
    float32; other widths fall back to separate operations. The CPU's kernel takes any width, and padding would only
    copy.
    """
    multiple = 16 // dtype.itemsize if device == "cuda" else 1
    return width + -width % multiple


KERNELS = {0: "math", 1: "flash", 2: "efficient", 3: "cudnn"}
"""Names of ``torch.nn.attention.SDPBackend``."""


def chosen_kernel(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> str:
    """Which kernel ``scaled_dot_product_attention`` takes for these; ``unknown`` where PyTorch has no such answer."""
    try:
        choice = torch._fused_sdp_choice(q, k, v, bias, 0.0, False, scale=1.0)
    except (AttributeError, RuntimeError, TypeError):
        return "unknown"
    return KERNELS.get(int(choice), "unknown")


def _pad(tokens: Tensor, width: int) -> Tensor:
    return tokens if tokens.shape[-1] == width else F.pad(tokens, (0, width - tokens.shape[-1]))


def _sum(bias: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """Bias (H, N, N) plus mask (1, 1, N, N), as (1, H or 1, N, N); None adds nothing."""
    if bias is None:
        return mask
    return bias[None] if mask is None else bias + mask
