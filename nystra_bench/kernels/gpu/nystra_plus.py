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

SPLIT_FROM = 4097
"""Tokens from which the passes are launches of their own."""

PART = 1024
"""Tokens of a window and head that a program works on there."""

APART = tl.constexpr(-1e4)
"""Logit between different regions."""

NOTHING = tl.constexpr(-1e30)
"""As good as the logarithm of nothing; other than minus infinity, its difference to itself is 0."""


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
def _rows(base, rows, here, row_stride, column_stride, WIDTH: tl.constexpr, TILE: tl.constexpr):
    """Rows of a matrix as float32 (rows, TILE), 0 beyond it."""
    columns = tl.arange(0, TILE)
    places = base + rows[:, None] * row_stride + columns[None, :] * column_stride
    return tl.load(places, mask=here[:, None] & (columns < WIDTH)[None, :], other=0.0).to(tl.float32)


@triton.jit
def _features(base, head, rows, here, tokens, RANK: tl.constexpr, R: tl.constexpr):
    return _rows(base + head * tokens * RANK, rows, here, RANK, 1, RANK, R)


@triton.jit
def _logits(rows, features, tokens, token_features, RANK: tl.constexpr, PRECISION: tl.constexpr):
    """(a, b) of rows (a, D) and tokens (b, D), with what their features add."""
    logits = tl.dot(rows, tl.trans(tokens), input_precision=PRECISION)
    if RANK > 0:
        logits += tl.dot(features, tl.trans(token_features), input_precision=PRECISION)
    return logits


@triton.jit
def _apart(logits, of_rows, of_columns):
    return logits + tl.where(of_rows[:, None] != of_columns[None, :], APART, 0.0)


@triton.jit
def _regions(regions, window, maps, tokens, rows, here, MASKED: tl.constexpr):
    if MASKED:
        return tl.load(regions + (window % maps) * tokens + rows, mask=here, other=-1)
    else:
        return rows


@triton.jit
def _starts(
    k, g, centres, window, head, kw, kh, kt, kd, tokens, DIM: tl.constexpr, RANK: tl.constexpr, MARKS:
    tl.constexpr, D: tl.constexpr, R: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """The tokens that clusters start from: numbers, keys, features, and minus half their squares."""
    mark = tl.arange(0, M)
    here = mark < MARKS
    centre = tl.load(centres + mark, mask=here, other=0)
    keys = _rows(k + window * kw + head * kh, centre, here, kt, kd, DIM, D)
    features = _features(g, head, centre, here, tokens, RANK, R)
    half = -0.5 * (tl.sum(keys * keys, 1) + tl.sum(features * features, 1))
    return centre, keys, features, tl.where(here, half, NOTHING)


@triton.jit
def _members(
    keys, features, half, of_marks, tokens, token_features, of_tokens, here, RANK: tl.constexpr, MASKED:
    tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(M, BLOCK): 1 where a token is in a cluster, which is the nearest, or one of those that are as near."""
    near = _logits(keys, features, tokens, token_features, RANK, PRECISION) + half[:, None]
    if MASKED:
        near = _apart(near, of_marks, of_tokens)
    return ((near == tl.max(near, 0)[None, :]) & here[None, :]).to(tl.float32)


@triton.jit
def _sum_members(
    q, k, v, f, g, centres, regions, window, head, qw, qh, qt, qd, kw, kh, kt, kd, vw, vh, vt, vd, tokens, maps,
    first, last, DIM: tl.constexpr, DIM_V: tl.constexpr, RANK: tl.constexpr, MARKS: tl.constexpr, D: tl.constexpr,
    DV: tl.constexpr, R: tl.constexpr, M: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr, PRECISION:
    tl.constexpr,
):  # fmt: skip
    """Sizes (M,) of the clusters among tokens ``first`` to ``last``, and sums of their q, k, v, F, G."""
    centre, keys, features, half = _starts(
        k, g, centres, window, head, kw, kh, kt, kd, tokens, DIM, RANK, MARKS, D, R, M
    )
    of_marks = _regions(regions, window, maps, tokens, centre, centre < tokens, MASKED)
    sizes = tl.zeros((M,), tl.float32)
    q_sum, k_sum = tl.zeros((M, D), tl.float32), tl.zeros((M, D), tl.float32)
    v_sum = tl.zeros((M, DV), tl.float32)
    f_sum, g_sum = tl.zeros((M, R), tl.float32), tl.zeros((M, R), tl.float32)
    for start in range(first, last, BLOCK):
        rows = start + tl.arange(0, BLOCK)
        here = rows < last
        its_keys = _rows(k + window * kw + head * kh, rows, here, kt, kd, DIM, D)
        its_g = _features(g, head, rows, here, tokens, RANK, R)
        of_tokens = _regions(regions, window, maps, tokens, rows, here, MASKED)
        member = _members(keys, features, half, of_marks, its_keys, its_g, of_tokens, here, RANK, MASKED, PRECISION)
        sizes += tl.sum(member, 1)
        k_sum += tl.dot(member, its_keys, input_precision=PRECISION)
        its_queries = _rows(q + window * qw + head * qh, rows, here, qt, qd, DIM, D)
        q_sum += tl.dot(member, its_queries, input_precision=PRECISION)
        its_values = _rows(v + window * vw + head * vh, rows, here, vt, vd, DIM_V, DV)
        v_sum += tl.dot(member, its_values, input_precision=PRECISION)
        if RANK > 0:
            g_sum += tl.dot(member, its_g, input_precision=PRECISION)
            its_f = _features(f, head, rows, here, tokens, RANK, R)
            f_sum += tl.dot(member, its_f, input_precision=PRECISION)
    return sizes, q_sum, k_sum, v_sum, f_sum, g_sum


@triton.jit
def _gather(
    q_marks, f_marks, k, v, g, centres, regions, window, head, kw, kh, kt, kd, vw, vh, vt, vd, tokens, maps,
    first, last, DIM: tl.constexpr, DIM_V: tl.constexpr, RANK: tl.constexpr, MARKS: tl.constexpr, D: tl.constexpr,
    DV: tl.constexpr, R: tl.constexpr, M: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr, PRECISION:
    tl.constexpr,
):  # fmt: skip
    """Attention of the mean queries to tokens ``first`` to ``last``.

    Returns largest logits (M,), sums of weights, and weighted sums of values.
    """
    mark = tl.arange(0, M)
    centre = tl.load(centres + mark, mask=mark < MARKS, other=0)
    of_marks = _regions(regions, window, maps, tokens, centre, centre < tokens, MASKED)
    top = tl.full((M,), NOTHING, tl.float32)
    total, gathered = tl.zeros((M,), tl.float32), tl.zeros((M, DV), tl.float32)
    for start in range(first, last, BLOCK):
        rows = start + tl.arange(0, BLOCK)
        here = rows < last
        keys = _rows(k + window * kw + head * kh, rows, here, kt, kd, DIM, D)
        its_g = _features(g, head, rows, here, tokens, RANK, R)
        logits = _logits(q_marks, f_marks, keys, its_g, RANK, PRECISION)
        if MASKED:
            logits = _apart(logits, of_marks, _regions(regions, window, maps, tokens, rows, here, MASKED))
        logits = tl.where(here[None, :], logits, NOTHING)
        higher = tl.maximum(top, tl.max(logits, 1))
        kept, weights = tl.exp(top - higher), tl.exp(logits - higher[:, None])
        values = _rows(v + window * vw + head * vh, rows, here, vt, vd, DIM_V, DV)
        total = total * kept + tl.sum(weights, 1)
        gathered = gathered * kept[:, None] + tl.dot(weights, values, input_precision=PRECISION)
        top = higher
    return top, total, gathered


@triton.jit
def _write(
    k_marks, g_marks, values, log_sizes, share, q, k, v, f, g, diagonal, centres, regions, out, window, head, qw,
    qh, qt, qd, kw, kh, kt, kd, vw, vh, vt, vd, ow, oh, ot, od, tokens, maps, first, last, DIM: tl.constexpr,
    DIM_V: tl.constexpr, RANK: tl.constexpr, MARKS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, R:
    tl.constexpr, M: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
    EXACT_DIAGONAL: tl.constexpr,
):  # fmt: skip
    """Outputs of tokens ``first`` to ``last``: of the clusters, and of themselves beyond their part in those."""
    centre, start_keys, start_g, half = _starts(
        k, g, centres, window, head, kw, kh, kt, kd, tokens, DIM, RANK, MARKS, D, R, M
    )
    of_marks = _regions(regions, window, maps, tokens, centre, centre < tokens, MASKED)
    columns = tl.arange(0, DV)
    for start in range(first, last, BLOCK):
        rows = start + tl.arange(0, BLOCK)
        here = rows < last
        queries = _rows(q + window * qw + head * qh, rows, here, qt, qd, DIM, D)
        its_f = _features(f, head, rows, here, tokens, RANK, R)
        of_tokens = _regions(regions, window, maps, tokens, rows, here, MASKED)
        logits = _logits(queries, its_f, k_marks, g_marks, RANK, PRECISION) + log_sizes[None, :]
        if MASKED:
            logits = _apart(logits, of_tokens, of_marks)
        top = tl.max(logits, 1)
        if EXACT_DIAGONAL:
            keys = _rows(k + window * kw + head * kh, rows, here, kt, kd, DIM, D)
            its_g = _features(g, head, rows, here, tokens, RANK, R)
            own = tl.sum(queries * keys, 1) + tl.load(diagonal + head * tokens + rows, mask=here, other=0.0)
            top = tl.maximum(top, own)
            weights = tl.exp(logits - top[:, None])
            member = _members(
                start_keys, start_g, half, of_marks, keys, its_g, of_tokens, here, RANK, MASKED, PRECISION
            )
            within = tl.sum(weights * tl.trans(member * share[:, None]), 1)
            beyond = tl.exp(own - top) - within
            its_values = _rows(v + window * vw + head * vh, rows, here, vt, vd, DIM_V, DV)
            given = tl.dot(weights, values, input_precision=PRECISION) + beyond[:, None] * its_values
            given = given / (tl.sum(weights, 1) + beyond)[:, None]
        else:
            weights = tl.exp(logits - top[:, None])
            given = tl.dot(weights, values, input_precision=PRECISION) / tl.sum(weights, 1)[:, None]
        places = out + window * ow + head * oh + rows[:, None] * ot + columns[None, :] * od
        tl.store(places, given.to(out.dtype.element_ty), mask=here[:, None] & (columns < DIM_V)[None, :])


@triton.jit
def _pseudo_inverse(kernel, iterations):
    """Razavi's iteration (attention/pinv.py) from the transpose over the product of norms."""
    norms = tl.max(tl.sum(tl.abs(kernel), 0), 0) * tl.max(tl.sum(tl.abs(kernel), 1), 0)
    z = tl.trans(kernel) / (norms + 1e-15)
    for _ in range(iterations):
        az = tl.dot(kernel, z, input_precision="ieee")
        step = 7 * az - tl.dot(az, az, input_precision="ieee")
        step = 15 * az - tl.dot(az, step, input_precision="ieee")
        z = 3.25 * z - 0.25 * tl.dot(z, step, input_precision="ieee")
    return z


@triton.jit
def _whole(
    q, k, v, f, g, diagonal, centres, regions, qw, qh, qt, qd, kw, kh, kt, kd, vw, vh, vt, vd, heads, tokens,
    maps, out, ow, oh, ot, od, iterations, DIM: tl.constexpr, DIM_V: tl.constexpr, RANK: tl.constexpr, MARKS:
    tl.constexpr, D: tl.constexpr, DV: tl.constexpr, R: tl.constexpr, M: tl.constexpr, BLOCK: tl.constexpr,
    MASKED: tl.constexpr, PRECISION: tl.constexpr, EXACT_DIAGONAL: tl.constexpr,
):  # fmt: skip
    """All passes over one window and head."""
    window, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    sizes, q_marks, k_marks, v_marks, f_marks, g_marks = _sum_members(
        q, k, v, f, g, centres, regions, window, head, qw, qh, qt, qd, kw, kh, kt, kd, vw, vh, vt, vd, tokens, maps,
        0, tokens, DIM, DIM_V, RANK, MARKS, D, DV, R, M, BLOCK, MASKED, PRECISION,
    )  # fmt: skip
    share = 1 / tl.maximum(sizes, 1.0)
    log_sizes = tl.where(sizes > 0, tl.log(tl.maximum(sizes, 1.0)), NOTHING)
    q_marks, k_marks, v_marks = q_marks * share[:, None], k_marks * share[:, None], v_marks * share[:, None]
    f_marks, g_marks = f_marks * share[:, None], g_marks * share[:, None]

    _, total, gathered = _gather(
        q_marks, f_marks, k, v, g, centres, regions, window, head, kw, kh, kt, kd, vw, vh, vt, vd, tokens, maps,
        0, tokens, DIM, DIM_V, RANK, MARKS, D, DV, R, M, BLOCK, MASKED, PRECISION,
    )  # fmt: skip

    mark = tl.arange(0, M)
    here = mark < MARKS
    logits = _logits(q_marks, f_marks, k_marks, g_marks, RANK, "ieee") + log_sizes[None, :]
    if MASKED:
        centre = tl.load(centres + mark, mask=here, other=0)
        of_marks = _regions(regions, window, maps, tokens, centre, centre < tokens, MASKED)
        logits = _apart(logits, of_marks, of_marks)
    kernel = tl.exp(logits - tl.max(logits, 1)[:, None])
    kernel = tl.where(here[:, None], kernel / tl.sum(kernel, 1)[:, None], 0.0)
    residual = gathered / total[:, None] - tl.dot(kernel, v_marks, input_precision="ieee")
    residual = tl.where(here[:, None], residual, 0.0)
    values = v_marks + tl.dot(_pseudo_inverse(kernel, iterations), residual, input_precision="ieee")
    _write(
        k_marks, g_marks, values, log_sizes, share, q, k, v, f, g, diagonal, centres, regions, out, window, head,
        qw, qh, qt, qd, kw, kh, kt, kd, vw, vh, vt, vd, ow, oh, ot, od, tokens, maps, 0, tokens,
        DIM, DIM_V, RANK, MARKS, D, DV, R, M, BLOCK, MASKED, PRECISION, EXACT_DIAGONAL,
    )  # fmt: skip


@triton.jit
def _matrix(base, place, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Places of the matrix of that number in an array of (ROWS, COLUMNS)."""
    rows, columns = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    return base + place * ROWS * COLUMNS + rows[:, None] * COLUMNS + columns[None, :]


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
    sizes, q_sum, k_sum, v_sum, f_sum, g_sum = _sum_members(
        q, k, v, f, g, centres, regions, window, head, qw, qh, qt, qd, kw, kh, kt, kd, vw, vh, vt, vd, tokens, maps,
        first, tl.minimum(first + PART, tokens), DIM, DIM_V, RANK, MARKS, D, DV, R, M, BLOCK, MASKED, PRECISION,
    )  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    tl.store(members + place * M + tl.arange(0, M), sizes)
    tl.store(_matrix(q_sums, place, M, D), q_sum)
    tl.store(_matrix(k_sums, place, M, D), k_sum)
    tl.store(_matrix(v_sums, place, M, DV), v_sum)
    tl.store(_matrix(f_sums, place, M, R), f_sum)
    tl.store(_matrix(g_sums, place, M, R), g_sum)


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
    top, total, gathered = _gather(
        tl.load(_matrix(q_marks, sequence, M, D)), tl.load(_matrix(f_marks, sequence, M, R)), k, v, g, centres, regions,
        window, head, kw, kh, kt, kd, vw, vh, vt, vd, tokens, maps, first, tl.minimum(first + PART, tokens),
        DIM, DIM_V, RANK, MARKS, D, DV, R, M, BLOCK, MASKED, PRECISION,
    )  # fmt: skip
    place = sequence * tl.num_programs(1) + tl.program_id(1)
    tl.store(tops + place * M + tl.arange(0, M), top)
    tl.store(totals + place * M + tl.arange(0, M), total)
    tl.store(_matrix(sums, place, M, DV), gathered)


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
    _write(
        tl.load(_matrix(k_marks, sequence, M, D)), tl.load(_matrix(g_marks, sequence, M, R)),
        tl.load(_matrix(values, sequence, M, DV)), tl.load(log_sizes + of_marks), tl.load(share + of_marks),
        q, k, v, f, g, diagonal, centres, regions, out, window, head,
        qw, qh, qt, qd, kw, kh, kt, kd, vw, vh, vt, vd, ow, oh, ot, od, tokens, maps,
        first, tl.minimum(first + PART, tokens),
        DIM, DIM_V, RANK, MARKS, D, DV, R, M, BLOCK, MASKED, PRECISION, EXACT_DIAGONAL,
    )  # fmt: skip
