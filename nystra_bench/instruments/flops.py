"""Counting floating point operations of a forward pass."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode


def _fused_attention_flops(query, key, value, *args, out_val=None, **kwargs) -> int:
    """QK^T and its product with V, from the tensors' shapes (B, H, N, d)."""
    b, h, n, d = query
    return 2 * b * h * n * key[-2] * (d + value[-1])


def _added_product_flops(added, left, right, *args, out_val=None, **kwargs) -> int:
    """Of ``added + left @ right``, from the shapes (..., m, n), (..., m, k) and (..., k, n)."""
    return 2 * math.prod(left) * right[-1]


def _mapping() -> dict:
    """What PyTorch leaves out: its fused attention for the CPU, and products that are added in place."""
    aten = torch.ops.aten
    fused = getattr(aten, "_scaled_dot_product_flash_attention_for_cpu", None)
    in_place = dict.fromkeys((aten.addmm_, aten.baddbmm_), _added_product_flops)
    return in_place if fused is None else in_place | {fused: _fused_attention_flops}


def count_flops(call: Callable[[], object]) -> int:
    """Floating point operations of matrix products, convolutions and fused attentions (a multiply-add is two)."""
    counter = FlopCounterMode(display=False, custom_mapping=_mapping())
    # Not in inference mode, in which composite operations are not taken apart and would go uncounted.
    with torch.no_grad(), counter:
        call()
    return counter.get_total_flops()
