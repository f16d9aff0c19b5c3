"""nystra_plus, version 5: the method by loops, what it is exact for, and what it must never give."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from attention_references import random_qkv, relative_error, smooth_bias_of

from nystra_bench.attention.base import Window
from nystra_bench.attention.clusters import (
    PASSES,
    Clusters,
    along_a_path,
    between,
    farthest_points,
    fitting,
    squared_distances,
)
from nystra_bench.attention.exact import ExactAttention
from nystra_bench.attention.landmarks import central_tokens
from nystra_bench.attention.nystra_plus_v5 import NystraPlusV5Attention
from nystra_bench.models.windows import shift_regions

SIDE, HEADS, DIM = 16, 2, 16
TOKENS = SIDE * SIDE
smooth_bias = partial(smooth_bias_of, SIDE)


def with_bias(regions=None) -> Window:
    return Window(SIDE, SIDE, smooth_bias, None if regions is None else lambda: regions)


def smooth_qkv(windows, logits=6.0, seed=3):
    """Tokens of a smooth picture, whose queries look for keys like their own."""
    rng = torch.Generator().manual_seed(seed)
    small = torch.randn(2 * windows * HEADS, DIM, 5, 5, generator=rng)
    maps = torch.nn.functional.interpolate(small, size=(SIDE, SIDE), mode="bicubic").flatten(2).transpose(1, 2)
    k, v = maps.view(2, windows, HEADS, TOKENS, DIM)
    q = k + 0.3 * torch.randn(k.shape, generator=rng)
    scale = (logits / (q @ k.transpose(-2, -1)).std()) ** 0.5
    return q * scale, k * scale, v


def plain(q, k, v, landmarks, count, clustering, residual):
    """The method by loops, without bias and regions, for one window and head: q, k, v (N, d), float64."""
    tokens = len(k)
    among = k[central_tokens(4 * landmarks, SIDE, SIDE)] if 4 * landmarks < tokens else k
    chosen = [0]
    while len(chosen) < landmarks:
        chosen.append(int(torch.cdist(among, among[chosen]).min(1).values.argmax()))
    marks, path = among[chosen], [0]
    while len(path) < landmarks:  # from each to the nearest that is left
        left = [c for c in range(landmarks) if c not in path]
        path.append(min(left, key=lambda c: float(torch.dist(marks[c], marks[path[-1]]))))
    marks = marks[path]
    for _ in range(clustering):
        member = torch.cdist(k, marks).argmin(1)
        marks = torch.stack([k[member == c].mean(0) if (member == c).any() else marks[c] for c in range(landmarks)])
    member = torch.cdist(k, marks).argmin(1)
    groups = [(member == c).nonzero()[:, 0] for c in range(landmarks)]
    groups = {c: group for c, group in enumerate(groups) if len(group)}
    order = member.argsort(stable=True)
    out = torch.zeros_like(v)

    def attend(query, taken, itself=None):
        weights, values = [], []
        for c, group in groups.items():
            if c in taken:
                weights += [query @ k[j] for j in group]
                values += [v[j] for j in group]
                continue
            mean = k[group].mean(0)
            rest = [j for j in group.tolist() if j != itself]
            if rest:  # all of the cluster but oneself is its mean, and its values' mean is that of all
                weights.append(query @ mean + math.log(len(group)))
                values.append(v[group].mean(0))
        weights, values = torch.stack(weights).exp(), torch.stack(values)
        top, total = weights @ values, weights.sum()
        own = member[itself].item() if itself is not None else None
        if own is not None and own not in taken:
            group = groups[own]
            if len(group) > 1:
                beyond = (query @ k[itself]).exp() - (query @ k[group].mean(0)).exp()
            else:
                beyond = (query @ k[itself]).exp()
            top, total = top + beyond * v[itself], total + beyond
        return top / total

    size = -(-tokens // landmarks)
    for block in order.split(size):
        filled = torch.cat([block, block[-1:].expand(size - len(block))])  # the last one, by its last query
        shares = torch.zeros(landmarks, dtype=k.dtype)
        for i in filled:
            row = torch.stack([q[i] @ k[g].mean(0) + math.log(len(g)) for g in groups.values()])
            for c, weight in zip(groups, row.softmax(0), strict=True):
                shares[c] += weight
        spread = {c: (k[g] - k[g].mean(0)).square().sum(1).mean().sqrt() for c, g in groups.items()}
        gain = {c: float(shares[c] * spread[c] / len(g)) for c, g in groups.items()}
        ranked = [c for c in sorted(gain, key=lambda c: -gain[c]) if gain[c] > 0]
        taken, left = set(), count
        for _ in range(PASSES):
            free = left
            for c in ranked:
                if c in taken or len(groups[c]) > free:
                    continue
                if len(groups[c]) > left:
                    break
                taken.add(c)
                left -= len(groups[c])
        mean = q[filled].mean(0)
        wrong = (mean @ k.T).softmax(0) @ v - attend(mean, taken) if residual else 0
        for i in block:
            out[i] = attend(q[i], taken, int(i)) + wrong
    return out


@pytest.mark.parametrize(
    ("landmarks", "count", "clustering", "residual"),
    [(16, 64, 1, True), (8, 70, 0, True), (16, 0, 1, True), (24, 40, 2, False), (40, 50, 1, False)],
)
def test_it_is_the_method_by_loops(landmarks, count, clustering, residual):
    q, k, v = (x.double() for x in smooth_qkv(1))
    method = NystraPlusV5Attention(landmarks, count, 0, clustering, residual)
    expected = plain(q[0, 1], k[0, 1], v[0, 1], landmarks, count, clustering, residual)
    assert relative_error(method(q, k, v, Window(SIDE, SIDE))[0, 1], expected) < 1e-9


def test_more_exact_keys_come_closer_and_all_of_them_are_exact():
    q, k, v = smooth_qkv(2)
    exact = ExactAttention()(q, k, v, Window(SIDE, SIDE))
    errors = [
        relative_error(NystraPlusV5Attention(16, keys)(q, k, v, Window(SIDE, SIDE)), exact)
        for keys in (0, 64, 128, TOKENS)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 1e-3 and errors[-1] < 1e-5


def test_all_tokens_as_landmarks_are_exact_but_for_the_rank_of_the_bias():
    q, k, v = smooth_qkv(2)
    exact = ExactAttention()(q, k, v, with_bias())
    assert relative_error(NystraPlusV5Attention(TOKENS, 0, bias_rank=TOKENS)(q, k, v, with_bias()), exact) < 1e-4


def test_without_exact_keys_the_residual_is_what_is_left_at_the_mean_query():
    """Queries that are equal in a block get what exact attention gives, whatever the clusters are."""
    q, k, v = smooth_qkv(1)
    q = q.mean(-2, keepdim=True).expand_as(q)
    exact = ExactAttention()(q, k, v, Window(SIDE, SIDE))
    with_it, without = (
        relative_error(NystraPlusV5Attention(16, 0, 0, residual=residual)(q, k, v, Window(SIDE, SIDE)), exact)
        for residual in (True, False)
    )
    assert with_it < 0.5 * without


@pytest.mark.parametrize("landmarks", [1, 5, 16, 64])
@pytest.mark.parametrize("keys", [0, 64])
def test_tokens_do_not_see_other_regions(landmarks, keys):
    q, k, v = smooth_qkv(4, logits=20)
    regions = shift_regions(2 * SIDE, 2 * SIDE, SIDE, SIDE // 2)
    weights = NystraPlusV5Attention(landmarks, keys).matrix(q, k, with_bias(regions))
    across = (regions[:, :, None] != regions[:, None, :])[:, None].expand_as(weights)
    if landmarks >= 4:  # as many clusters as a window has regions, at least
        assert weights[across].abs().max() < 1e-6
    assert (weights.sum(-1) - 1).abs().max() < 1e-4


def test_windows_that_are_worked_off_in_parts_give_the_same(monkeypatch):
    q, k, v = smooth_qkv(3)
    whole = NystraPlusV5Attention()(q, k, v, with_bias())
    monkeypatch.setattr("nystra_bench.attention.nystra_plus_v5.SLAB", TOKENS * 150)
    assert relative_error(NystraPlusV5Attention()(q, k, v, with_bias()), whole) < 1e-6


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (3, 5), (7, 9), (13, 11), (2, 120)])
def test_any_window_has_weights_that_sum_to_one(height, width):
    q, k, v = random_qkv(2, HEADS, height * width, DIM)
    out = NystraPlusV5Attention()(q, k, torch.ones_like(v), Window(height, width))
    assert (out - 1).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1.0, 3e3])
def test_equal_keys_and_huge_logits_stay_finite(dtype, scale):
    q, k, v = (x.to(dtype) for x in random_qkv(2, HEADS, TOKENS, DIM))
    q, k = q * scale**0.5, k * scale**0.5  # logits of 10,000 and more
    out = NystraPlusV5Attention()(q, k, v, Window(SIDE, SIDE))
    assert out.dtype == dtype and out.isfinite().all()
    if scale == 0:
        assert (out.float() - v.float().mean(-2, keepdim=True)).abs().max() < 2e-2


def test_what_does_not_fit_is_refused():
    assert "exceed the 16 tokens of a 4x4 window" in NystraPlusV5Attention(17).refuses(4, 4)
    assert NystraPlusV5Attention().refuses(1, 1) is None
    for wrong in ({"landmarks": 0}, {"exact_keys": -1}, {"bias_rank": 1.5}, {"clustering": -1}, {"residual": "yes"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            NystraPlusV5Attention(**wrong)


def test_farthest_points_are_far_apart():
    points = torch.tensor([[0.0], [1.0], [10.0], [11.0], [5.0]])[None]
    assert farthest_points(squared_distances(points), 3).tolist() == [[0, 3, 4]]


def test_a_path_goes_from_each_point_to_the_nearest_that_is_left():
    points = torch.tensor([[[0.0], [10.0], [1.0], [5.0], [-2.0]], [[0.0]] * 5])
    assert along_a_path(squared_distances(points)).tolist() == [[0, 2, 4, 3, 1], [0, 1, 2, 3, 4]]
    distances = squared_distances(points)
    chosen = torch.tensor([[3, 0, 1], [0, 1, 2]])
    assert torch.equal(between(distances, chosen)[0], distances[0][chosen[0]][:, chosen[0]])


def test_clusters_are_selected_by_what_their_means_lose():
    """Three clusters of two, one and three members: weights equal, the one of one member loses nothing."""
    keys = torch.tensor([[0.0], [2.0], [5.0], [9.0], [9.1], [9.2]])[None]
    member = torch.tensor([[0, 0, 1, 2, 2, 2]])
    clusters = Clusters.of(member, keys, torch.ones(1, 6, 1), 3)
    assert clusters.sizes.tolist() == [[2, 1, 3]] and clusters.starts.tolist() == [[0, 2, 3]]
    assert clusters.spread[0].tolist() == pytest.approx([1.0, 0.0, (0.02 / 3) ** 0.5], abs=1e-2)
    selection = clusters.select(torch.full((1, 1, 3), 1 / 3), 4)
    assert selection.taken.tolist() == [[[True, False, False]]]
    assert selection.rows(6, 99).tolist() == [0, 1, 99, 99]
    assert clusters.select(torch.full((1, 1, 3), 1 / 3), 5).rows(6, 99).tolist() == [0, 1, 3, 4, 5]


def test_what_a_large_cluster_leaves_free_is_filled_up():
    sizes = torch.tensor([5, 9, 4, 3, 2, 1, 1])
    assert fitting(sizes, 10).tolist() == [5, 0, 4, 0, 0, 1, 0]
    assert fitting(sizes, 0).tolist() == [0] * 7
