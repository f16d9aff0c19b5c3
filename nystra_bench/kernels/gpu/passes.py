"""Parts of the kernels in ``nystra_plus.py``: the passes over tokens of one window and head, in Triton."""

import triton
import triton.language as tl

APART = tl.constexpr(-1e4)
"""Logit between different regions."""

NOTHING = tl.constexpr(-1e30)
"""As good as the logarithm of nothing; other than minus infinity, its difference to itself is 0."""


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
def logits_of(rows, features, tokens, token_features, RANK: tl.constexpr, PRECISION: tl.constexpr):
    """(a, b) of rows (a, D) and tokens (b, D), with what their features add."""
    logits = tl.dot(rows, tl.trans(tokens), input_precision=PRECISION)
    if RANK > 0:
        logits += tl.dot(features, tl.trans(token_features), input_precision=PRECISION)
    return logits


@triton.jit
def keep_apart(logits, of_rows, of_columns):
    return logits + tl.where(of_rows[:, None] != of_columns[None, :], APART, 0.0)


@triton.jit
def _regions(regions, window, maps, tokens, rows, here, MASKED: tl.constexpr):
    if MASKED:
        return tl.load(regions + (window % maps) * tokens + rows, mask=here, other=-1)
    else:
        return rows


@triton.jit
def _centres(centres, MARKS: tl.constexpr, M: tl.constexpr):
    """The tokens that clusters start from; token 0 beyond the last."""
    mark = tl.arange(0, M)
    return tl.load(centres + mark, mask=mark < MARKS, other=0)


@triton.jit
def regions_of_marks(
    regions, centres, window, maps, tokens, MARKS: tl.constexpr, M: tl.constexpr, MASKED: tl.constexpr
):
    """Regions (M,) of the clusters, which are those of the tokens that they start from."""
    centre = _centres(centres, MARKS, M)
    return _regions(regions, window, maps, tokens, centre, centre < tokens, MASKED)


@triton.jit
def _starts(
    k, g, centres, regions, window, head, kw, kh, kt, kd, tokens, maps, DIM: tl.constexpr, RANK: tl.constexpr, MARKS:
    tl.constexpr, D: tl.constexpr, R: tl.constexpr, M: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """What clusters start from: keys, features, minus half their squares, and regions."""
    centre, here = _centres(centres, MARKS, M), tl.arange(0, M) < MARKS
    keys = _rows(k + window * kw + head * kh, centre, here, kt, kd, DIM, D)
    features = _features(g, head, centre, here, tokens, RANK, R)
    half = tl.where(here, -0.5 * (tl.sum(keys * keys, 1) + tl.sum(features * features, 1)), NOTHING)
    return keys, features, half, regions_of_marks(regions, centres, window, maps, tokens, MARKS, M, MASKED)


@triton.jit
def _members(
    keys, features, half, of_marks, tokens, token_features, of_tokens, here, RANK: tl.constexpr, MASKED:
    tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(M, BLOCK): 1 where a token is in a cluster, which is the nearest, or one of those that are as near."""
    near = logits_of(keys, features, tokens, token_features, RANK, PRECISION) + half[:, None]
    if MASKED:
        near = keep_apart(near, of_marks, of_tokens)
    return ((near == tl.max(near, 0)[None, :]) & here[None, :]).to(tl.float32)


@triton.jit
def sum_members(
    q, k, v, f, g, centres, regions, window, head, qw, qh, qt, qd, kw, kh, kt, kd, vw, vh, vt, vd, tokens, maps,
    first, last, DIM: tl.constexpr, DIM_V: tl.constexpr, RANK: tl.constexpr, MARKS: tl.constexpr, D: tl.constexpr,
    DV: tl.constexpr, R: tl.constexpr, M: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr, PRECISION:
    tl.constexpr,
):  # fmt: skip
    """Sizes (M,) of the clusters among tokens ``first`` to ``last``, and sums of their q, k, v, F, G."""
    keys, features, half, of_marks = _starts(
        k, g, centres, regions, window, head, kw, kh, kt, kd, tokens, maps, DIM, RANK, MARKS, D, R, M, MASKED
    )
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
def gather(
    q_marks, f_marks, k, v, g, centres, regions, window, head, kw, kh, kt, kd, vw, vh, vt, vd, tokens, maps,
    first, last, DIM: tl.constexpr, DIM_V: tl.constexpr, RANK: tl.constexpr, MARKS: tl.constexpr, D: tl.constexpr,
    DV: tl.constexpr, R: tl.constexpr, M: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr, PRECISION:
    tl.constexpr,
):  # fmt: skip
    """Attention of the mean queries to tokens ``first`` to ``last``.

    Returns largest logits (M,), sums of weights, and weighted sums of values.
    """
    of_marks = regions_of_marks(regions, centres, window, maps, tokens, MARKS, M, MASKED)
    top = tl.full((M,), NOTHING, tl.float32)
    total, gathered = tl.zeros((M,), tl.float32), tl.zeros((M, DV), tl.float32)
    for start in range(first, last, BLOCK):
        rows = start + tl.arange(0, BLOCK)
        here = rows < last
        keys = _rows(k + window * kw + head * kh, rows, here, kt, kd, DIM, D)
        its_g = _features(g, head, rows, here, tokens, RANK, R)
        logits = logits_of(q_marks, f_marks, keys, its_g, RANK, PRECISION)
        if MASKED:
            logits = keep_apart(logits, of_marks, _regions(regions, window, maps, tokens, rows, here, MASKED))
        logits = tl.where(here[None, :], logits, NOTHING)
        higher = tl.maximum(top, tl.max(logits, 1))
        kept, weights = tl.exp(top - higher), tl.exp(logits - higher[:, None])
        values = _rows(v + window * vw + head * vh, rows, here, vt, vd, DIM_V, DV)
        total = total * kept + tl.sum(weights, 1)
        gathered = gathered * kept[:, None] + tl.dot(weights, values, input_precision=PRECISION)
        top = higher
    return top, total, gathered


@triton.jit
def write(
    k_marks, g_marks, values, log_sizes, share, q, k, v, f, g, diagonal, centres, regions, out, window, head, qw,
    qh, qt, qd, kw, kh, kt, kd, vw, vh, vt, vd, ow, oh, ot, od, tokens, maps, first, last, DIM: tl.constexpr,
    DIM_V: tl.constexpr, RANK: tl.constexpr, MARKS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, R:
    tl.constexpr, M: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
    EXACT_DIAGONAL: tl.constexpr,
):  # fmt: skip
    """Outputs of tokens ``first`` to ``last``: of the clusters, and of themselves beyond their part in those."""
    start_keys, start_g, half, of_marks = _starts(
        k, g, centres, regions, window, head, kw, kh, kt, kd, tokens, maps, DIM, RANK, MARKS, D, R, M, MASKED
    )
    columns = tl.arange(0, DV)
    for start in range(first, last, BLOCK):
        rows = start + tl.arange(0, BLOCK)
        here = rows < last
        queries = _rows(q + window * qw + head * qh, rows, here, qt, qd, DIM, D)
        its_f = _features(f, head, rows, here, tokens, RANK, R)
        of_tokens = _regions(regions, window, maps, tokens, rows, here, MASKED)
        logits = logits_of(queries, its_f, k_marks, g_marks, RANK, PRECISION) + log_sizes[None, :]
        if MASKED:
            logits = keep_apart(logits, of_tokens, of_marks)
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
def pseudo_inverse(kernel, iterations):
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
def matrix_at(base, place, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Places of the matrix of that number in an array of (ROWS, COLUMNS)."""
    rows, columns = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    return base + place * ROWS * COLUMNS + rows[:, None] * COLUMNS + columns[None, :]
