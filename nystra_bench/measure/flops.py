"""Counting floating point operations of a forward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode


def _fused_attention_flops(query, key, value, *args, out_val=None, **kwargs) -> int:
    """QK^T and its product with V, from the tensors' shapes (B, H, N, d)."""
    b, h, n, d = query
    return 2 * b * h * n * key[-2] * (d + value[-1])


def _mapping() -> dict:
    """PyTorch counts its fused attentions on CUDA; the one for the CPU is added here."""
    fused = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
    return {} if fused is None else {fused: _fused_attention_flops}


def count_flops(call: Callable[[], object]) -> int:
    """Floating point operations of matrix products, convolutions and fused attentions (a multiply-add is two)."""
    counter = FlopCounterMode(display=False, custom_mapping=_mapping())
    # Not in inference mode, in which composite operations are not taken apart and would go uncounted.
    with torch.no_grad(), counter:
        call()
    return counter.get_total_flops()
