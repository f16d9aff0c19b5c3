"""nystra_plus (attention/nystra_plus.py, version 4.1) in Triton, one window and head at a time.

Three passes over the tokens in blocks: they join clusters, whose means are formed; attention of the mean queries;
attention to the clusters, which writes the output. Nothing that has both N and m for sides is ever written to memory.

* Short sequences: one program makes all three passes (``_whole``), with everything of the clusters in registers.
* Long ones (``SPLIT_FROM`` tokens): three launches, each with several programs a window and head, so that a few large
  windows fill a GPU, too. What the programs found is put together between them by PyTorch, m rows at a time.

Sums over a cluster are products with its members, 0 and 1: a GPU multiplies matrices faster than it scatters rows.
All arithmetic is float32. Products of float32 numbers keep all their bits; those of half-precision ones take the tensor
cores' TF32, which has as many bits as float16.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from nystra_bench.attention.pinv import razavi_pinv
from nystra_bench.kernels.gpu.passes import (
    APART,
    NOTHING,
    gather,
    keep_apart,
    logits_of,
    matrix_at,
    pseudo_inverse,
    regions_of_marks,
    sum_members,
    write,
)

SPLIT_FROM = 4097
"""Tokens from which the passes are launches of their own."""

PART = 1024
"""Tokens of a window and head that a program works on there."""


class Given(NamedTuple):
    """What the kernels read of one call, beside queries, keys and values."""

    f: Tensor
    """Features of the queries for the position bias, (H, N, r) float32, contiguous"""
    g: Tensor
    """Features of the keys alike"""
    diagonal: Tensor
    """Bias of the tokens to themselves, (H, N) float32"""
    centres: Tensor
    """Tokens that clusters start from, (m,) int64"""
    regions: Tensor | None
    """Regions of the tokens of an image's windows, (nW, N) int64; None where no window is masked"""


@torch.library.custom_op("nystra_bench::nystra_plus_gpu", mutates_args=())
def nystra_plus(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    f: Tensor,
    g: Tensor,
    diagonal: Tensor,
    centres: Tensor,
    regions: Tensor | None,
    iterations: int,
    exact_diagonal: bool,
) -> Tensor:
    """Attention to clusters and oneself with a Nyström step.

    Args:
        q, k, v: (B * nW, H, N, d), v with d_v; float32, float16 or bfloat16, any strides.
        f, g, diagonal, centres, regions: see ``Given``.
        iterations: of the pseudo-inverse.
        exact_diagonal: whether what a token is to itself is computed exactly.

    Returns:
        (B * nW, H, N, d_v) of v's dtype, in memory (B * nW, N, H, d_v).
    """
    out = _empty_like(v)
    given = Given(f, g, diagonal, centres, regions)
    form = _split if q.shape[2] >= SPLIT_FROM else _in_one
    form(q, k, v, out, given, iterations, exact_diagonal)
    return out


@nystra_plus.register_fake
def _(q, k, v, f, g, diagonal, centres, regions, iterations, exact_diagonal):
    return _empty_like(v)


def _empty_like(v: Tensor) -> Tensor:
    windows, heads, tokens, width = v.shape
    return v.new_empty(windows, tokens, heads, width).transpose(1, 2)


def _in_one(q: Tensor, k: Tensor, v: Tensor, out: Tensor, given: Given, iterations: int, exact_diagonal: bool) -> None:
    windows, heads = q.shape[:2]
    arguments, sizes = _arguments(q, k, v, given), _sizes(q, v, given)
    _whole[(windows * heads,)](*arguments, out, *out.stride(), iterations, **sizes, EXACT_DIAGONAL=exact_diagonal)


def _split(q: Tensor, k: Tensor, v: Tensor, out: Tensor, given: Given, iterations: int, exact_diagonal: bool) -> None:
    """The three passes as launches; what stands between them is small."""
    (windows, heads, tokens, _), sizes = q.shape, _sizes(q, v, given)
    marks, parts, sequences = sizes["M"], triton.cdiv(tokens, PART), windows * heads
    grid, arguments = (sequences, parts), _arguments(q, k, v, given)

    def empty(*shape: int) -> Tensor:
        return torch.empty(sequences, parts, *shape, device=q.device, dtype=torch.float32)

    members, widths = empty(marks), [sizes[name] for name in ("D", "D", "DV", "R", "R")]
    sums = [empty(marks, width) for width in widths]
    _join[grid](*arguments, members, *sums, PART=PART, **sizes)
    counts = members.sum(1)
    share = 1 / counts.clamp(min=1)
    q_marks, k_marks, v_marks, f_marks, g_marks = (x.sum(1).mul_(share[..., None]) for x in sums)
    log_sizes = torch.where(counts > 0, counts.log(), counts.new_full((), NOTHING.value))

    tops, totals, gathered = empty(marks), empty(marks), empty(marks, sizes["DV"])
    _from_means[grid](*arguments, q_marks, f_marks, tops, totals, gathered, PART=PART, **sizes)
    factors = (tops - tops.amax(1, keepdim=True)).exp_()
    correct = (gathered * factors[..., None]).sum(1) / (totals * factors).sum(1)[..., None]

    here = slice(0, len(given.centres))
    logits = torch.baddbmm(log_sizes[:, None, here], q_marks[:, here], k_marks[:, here].mT)
    logits = logits.baddbmm_(f_marks[:, here], g_marks[:, here].mT)
    if given.regions is not None:
        of_marks = given.regions[:, given.centres]
        apart = (of_marks[:, :, None] != of_marks[:, None]).to(logits.dtype) * APART.value
        logits.view(-1, len(apart), heads, *logits.shape[1:]).add_(apart[:, None])
    kernel = logits.softmax(-1)
    residual = torch.baddbmm(correct[:, here], kernel, v_marks[:, here], alpha=-1)
    values = v_marks.clone()
    values[:, here] = torch.baddbmm(v_marks[:, here], razavi_pinv(kernel, iterations), residual)
    _to_means[grid](
        *arguments, k_marks, g_marks, values, log_sizes, share, out, *out.stride(), PART=PART, **sizes,
        EXACT_DIAGONAL=exact_diagonal,
    )  # fmt: skip


def _arguments(q: Tensor, k: Tensor, v: Tensor, given: Given) -> tuple:
    """What all kernels take first."""
    regions = given.centres if given.regions is None else given.regions  # a pointer that is not read
    maps = 1 if given.regions is None else len(given.regions)
    features = given.f.contiguous(), given.g.contiguous(), given.diagonal.contiguous()
    strides = (*q.stride(), *k.stride(), *v.stride())
    return q, k, v, *features, given.centres, regions.contiguous(), *strides, q.shape[1], q.shape[2], maps


def _sizes(q: Tensor, v: Tensor, given: Given) -> dict:
    """What kernels are compiled for: the true widths, and those of tiles, powers of two from 16 on."""
    dim, dim_v, rank, marks = q.shape[-1], v.shape[-1], given.f.shape[-1], len(given.centres)
    tiles = dict(zip(("D", "DV", "R", "M"), map(_tile, (dim, dim_v, rank, marks)), strict=True))
    exact = q.dtype == torch.float32 and not torch.backends.cuda.matmul.allow_tf32
    return {
        "DIM": dim, "DIM_V": dim_v, "RANK": rank, "MARKS": marks, **tiles, "BLOCK": 64 if tiles["M"] <= 64 else 32,
        "MASKED": given.regions is not None, "PRECISION": "ieee" if exact else "tf32",
    }  # fmt: skip


def _tile(width: int) -> int:
    return max(16, triton.next_power_of_2(width))


@triton.jit
def _whole(
    q, k, v, f, g, diagonal, centres, regions, qw, qh, qt, qd, kw, kh, kt, kd, vw, vh, vt, vd, heads, tokens,
    maps, out, ow, oh, ot, od, iterations, DIM: tl.constexpr, DIM_V: tl.constexpr, RANK: tl.constexpr, MARKS:
    tl.constexpr, D: tl.constexpr, DV: tl.constexpr, R: tl.constexpr, M: tl.constexpr, BLOCK: tl.constexpr,
    MASKED: tl.constexpr, PRECISION: tl.constexpr, EXACT_DIAGONAL: tl.constexpr,
):  # fmt: skip
    """All passes over one window and head."""
    window, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    sizes, q_marks, k_marks, v_marks, f_marks, g_marks = sum_members(
        q, k, v, f, g, centres, regions, window, head, qw, qh, qt, qd, kw, kh, kt, kd, vw, vh, vt, vd, tokens, maps,
        0, tokens, DIM, DIM_V, RANK, MARKS, D, DV, R, M, BLOCK, MASKED, PRECISION,
    )  # fmt: skip
    share = 1 / tl.maximum(sizes, 1.0)
    log_sizes = tl.where(sizes > 0, tl.log(tl.maximum(sizes, 1.0)), NOTHING)
    q_marks, k_marks, v_marks = q_marks * share[:, None], k_marks * share[:, None], v_marks * share[:, None]
    f_marks, g_marks = f_marks * share[:, None], g_marks * share[:, None]

    _, total, gathered = gather(
        q_marks, f_marks, k, v, g, centres, regions, window, head, kw, kh, kt, kd, vw, vh, vt, vd, tokens, maps,
        0, tokens, DIM, DIM_V, RANK, MARKS, D, DV, R, M, BLOCK, MASKED, PRECISION,
    )  # fmt: skip

    here = tl.arange(0, M) < MARKS
    logits = logits_of(q_marks, f_marks, k_marks, g_marks, RANK, "ieee") + log_sizes[None, :]
    if MASKED:
        of_marks = regions_of_marks(regions, centres, window, maps, tokens, MARKS, M, MASKED)
        logits = keep_apart(logits, of_marks, of_marks)
    kernel = tl.exp(logits - tl.max(logits, 1)[:, None])
    kernel = tl.where(here[:, None], kernel / tl.sum(kernel, 1)[:, None], 0.0)
    residual = gathered / total[:, None] - tl.dot(kernel, v_marks, input_precision="ieee")
    residual = tl.where(here[:, None], residual, 0.0)
    values = v_marks + tl.dot(pseudo_inverse(kernel, iterations), residual, input_precision="ieee")
    write(
        k_marks, g_marks, values, log_sizes, share, q, k, v, f, g, diagonal, centres, regions, out, window, head,
        qw, qh, qt, qd, kw, kh, kt, kd, vw, vh, vt, vd, ow, oh, ot, od, tokens, maps, 0, tokens,
        DIM, DIM_V, RANK, MARKS, D, DV, R, M, BLOCK, MASKED, PRECISION, EXACT_DIAGONAL,
    )  # fmt: skip


@triton.jit
def _join(
    q, k, v, f, g, diagonal, centres, regions, qw, qh, qt, qd, kw, kh, kt, kd, vw, vh, vt, vd, heads, tokens,
    maps, members, q_sums, k_sums, v_sums, f_sums, g_sums, PART: tl.constexpr, DIM: tl.constexpr, DIM_V:
    tl.constexpr, RANK: tl.constexpr, MARKS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, R: tl.constexpr, M:
    tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The first pass over a part of a window and head."""
    window, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    first = tl.program_id(1) * PART
    sizes, q_sum, k_sum, v_sum, f_sum, g_sum = sum_members(
        q, k, v, f, g, centres, regions, window, head, qw, qh, qt, qd, kw, kh, kt, kd, vw, vh, vt, vd, tokens, maps,
        first, tl.minimum(first + PART, tokens), DIM, DIM_V, RANK, MARKS, D, DV, R, M, BLOCK, MASKED, PRECISION,
    )  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    tl.store(members + place * M + tl.arange(0, M), sizes)
    tl.store(matrix_at(q_sums, place, M, D), q_sum)
    tl.store(matrix_at(k_sums, place, M, D), k_sum)
    tl.store(matrix_at(v_sums, place, M, DV), v_sum)
    tl.store(matrix_at(f_sums, place, M, R), f_sum)
    tl.store(matrix_at(g_sums, place, M, R), g_sum)


@triton.jit
def _from_means(
    q, k, v, f, g, diagonal, centres, regions, qw, qh, qt, qd, kw, kh, kt, kd, vw, vh, vt, vd, heads, tokens,
    maps, q_marks, f_marks, tops, totals, sums, PART: tl.constexpr, DIM: tl.constexpr, DIM_V: tl.constexpr, RANK:
    tl.constexpr, MARKS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, R: tl.constexpr, M: tl.constexpr, BLOCK:
    tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The second pass over a part of a window and head."""
    sequence = tl.program_id(0).to(tl.int64)
    window, head, first = sequence // heads, sequence % heads, tl.program_id(1) * PART
    top, total, gathered = gather(
        tl.load(matrix_at(q_marks, sequence, M, D)), tl.load(matrix_at(f_marks, sequence, M, R)),
        k, v, g, centres, regions, window, head, kw, kh, kt, kd, vw, vh, vt, vd, tokens, maps,
        first, tl.minimum(first + PART, tokens),
        DIM, DIM_V, RANK, MARKS, D, DV, R, M, BLOCK, MASKED, PRECISION,
    )  # fmt: skip
    place = sequence * tl.num_programs(1) + tl.program_id(1)
    tl.store(tops + place * M + tl.arange(0, M), top)
    tl.store(totals + place * M + tl.arange(0, M), total)
    tl.store(matrix_at(sums, place, M, DV), gathered)


@triton.jit
def _to_means(
    q, k, v, f, g, diagonal, centres, regions, qw, qh, qt, qd, kw, kh, kt, kd, vw, vh, vt, vd, heads, tokens,
    maps, k_marks, g_marks, values, log_sizes, share, out, ow, oh, ot, od, PART: tl.constexpr, DIM: tl.constexpr,
    DIM_V: tl.constexpr, RANK: tl.constexpr, MARKS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, R:
    tl.constexpr, M: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
    EXACT_DIAGONAL: tl.constexpr,
):  # fmt: skip
    """The last pass over a part of a window and head."""
    sequence = tl.program_id(0).to(tl.int64)
    window, head, first = sequence // heads, sequence % heads, tl.program_id(1) * PART
    of_marks = sequence * M + tl.arange(0, M)
    write(
        tl.load(matrix_at(k_marks, sequence, M, D)), tl.load(matrix_at(g_marks, sequence, M, R)),
        tl.load(matrix_at(values, sequence, M, DV)), tl.load(log_sizes + of_marks), tl.load(share + of_marks),
        q, k, v, f, g, diagonal, centres, regions, out, window, head,
        qw, qh, qt, qd, kw, kh, kt, kd, vw, vh, vt, vd, ow, oh, ot, od, tokens, maps,
        first, tl.minimum(first + PART, tokens),
        DIM, DIM_V, RANK, MARKS, D, DV, R, M, BLOCK, MASKED, PRECISION, EXACT_DIAGONAL,
    )  # fmt: skip
