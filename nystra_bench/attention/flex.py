"""Exact attention by PyTorch's ``flex_attention``, which reads position bias and regions inside its kernel."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from nystra_bench.attention.base import MASKED, Attention, Window, add_bias_and_mask
from nystra_bench.attention.sdpa import FusedAttention
from nystra_bench.errors import UserError, root_reason

CASES = 256
"""How many shapes and dtypes are compiled for before PyTorch gives up: each map and batch is one."""

INSTEAD = "accepted here is sdpa"


class FlexAttention(Attention):
    """softmax(QK^T + B + M) V by ``torch.nn.attention.flex_attention`` (arXiv 2412.05496), compiled for each shape.

    On a GPU a position bias keeps ``sdpa`` from its fastest kernel; this one reads a bias (H, N, N) and the regions of
    shifted windows as it goes, and needs no mask of N x N numbers. It is compiled at the first call of each shape,
    which ``setup_ms`` counts: by Triton for GPUs, by a C++ compiler for CPUs with AVX2, where it has no gradients.

    Raises:
        UserError: at a call: there is nothing to compile it with here, or it takes no such numbers.
    """

    exact = True
    rows_sum_to_one = True
    permutation_equivariant = True
    uses_bias = True
    uses_mask = True

    def forward(self, q: Tensor, k: Tensor, v: Tensor, window: Window) -> Tensor:
        if is_in_torch_dispatch_mode(include_infra_modes=False):
            # A FLOP counter looks on, within which PyTorch cannot compile: the same products by another kernel.
            return FusedAttention()(q, k, v, window)
        inputs = q, k, v, window.kept_bias(q.dtype), _regions(window, q.device)
        modes = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
        case = "compiled", *modes, *((x.shape, x.stride(), x.dtype) for x in (q, k, v))
        window.cache.once(case, lambda: _compile_for(inputs, *modes))
        return torch.ops.nystra_bench.flex(*inputs)

    def matrix(self, q: Tensor, k: Tensor, window: Window) -> Tensor:
        return add_bias_and_mask(q @ k.transpose(-2, -1), window.bias(), window.mask()).softmax(-1)

    def flops(self, windows: int, heads: int, tokens: int, dim: int, dim_v: int) -> int:
        return 2 * windows * heads * tokens * tokens * (dim + dim_v)


def _regions(window: Window, device: torch.device) -> Tensor | None:
    """Regions (nW, N); None where no window has more than one."""
    if not window.has_regions:
        return None

    def make() -> Tensor | None:
        regions = window.regions()
        return None if regions is None or (regions == regions[:, :1]).all() else regions.to(device)

    return window.shared.once("regions", make)


def _compile_for(inputs: tuple, inference: bool, gradients: bool) -> None:
    """Call it once, in the modes of the call that follows, so that it is compiled for exactly that.

    Raises:
        UserError: it cannot be.
    """
    q = inputs[0]
    try:
        with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
            torch.ops.nystra_bench.flex(*inputs)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        what = f"{str(q.dtype).removeprefix('torch.')} on {q.device.type}"
        raise UserError(f"flex_attention cannot be compiled for {what} ({root_reason(error)}): {INSTEAD}") from error


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, regions: Tensor | None) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    def with_bias_and_mask(score: Tensor, window: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        if bias is not None:
            score = score + bias[head, query, key]
        if regions is not None:
            here = window % len(regions)
            score = torch.where(regions[here, query] == regions[here, key], score, score + MASKED)
        return score

    return flex_attention(q, k, v, score_mod=with_bias_and_mask, scale=1.0)


@lru_cache(1)
def _compiled(compiler: Callable) -> Callable[..., Tensor]:
    """``_attend`` by ``torch.compile``, in whose place tests put what needs no C++."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, CASES)
    return compiler(_attend, fullgraph=True, dynamic=False)


SCHEMA = "(Tensor q, Tensor k, Tensor v, Tensor? bias, Tensor? regions) -> Tensor"


@torch.library.custom_op("nystra_bench::flex", mutates_args=(), schema=SCHEMA)
def _flex(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, regions: Tensor | None) -> Tensor:
    """One operation to the compiler of whole models, which cannot look into compiled code."""
    # In memory (B * nW, N, H, d_v), as it is given where queries are so: the projection after it reads that as it is.
    return _compiled(torch.compile)(q, k, v, bias, regions).transpose(1, 2).contiguous().transpose(1, 2)


@_flex.register_fake
def _shape(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, regions: Tensor | None) -> Tensor:
    return v.new_empty(v.transpose(1, 2).shape).transpose(1, 2)
