"""nystra_plus, version 5: the method by loops, what it is exact for, and what it must never give."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from attention_references import random_qkv, relative_error, smooth_bias_of

from nystra_bench.attention.base import Window
from nystra_bench.attention.blocks import Sizes
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
from nystra_bench.attention.nystra_plus_v5 import NystraPlusV5Attention, row_of
from nystra_bench.models.windows import shift_regions

SIDE, HEADS, DIM = 16, 2, 16
TOKENS = SIDE * SIDE
smooth_bias = partial(smooth_bias_of, SIDE)
by_clusters = partial(NystraPlusV5Attention, exact_up_to=0)  # whatever the window


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


def clusters_of(k, landmarks, clustering):
    """The tokens of each cluster, by loops, for keys (N, d)."""
    among = k[central_tokens(4 * landmarks, SIDE, SIDE)] if 4 * landmarks < len(k) else k
    chosen = [0]
    while len(chosen) < landmarks:
        chosen.append(int(torch.cdist(among, among[chosen]).min(1).values.argmax()))
    marks, path = among[chosen], [0]
    while len(path) < landmarks:  # from each to the nearest that is left
        left = [c for c in range(landmarks) if c not in path]
        path.append(min(left, key=lambda c: float(torch.dist(marks[c], marks[path[-1]]))))
    marks, some = marks[path], k[2::4]
    for _ in range(clustering):
        member = torch.cdist(some, marks).argmin(1)
        marks = torch.stack([some[member == c].mean(0) if (member == c).any() else marks[c] for c in range(landmarks)])
    member = torch.cdist(k, marks).argmin(1)
    return [group for c in range(landmarks) if len(group := (member == c).nonzero()[:, 0])]


def chosen_by(probes, k, groups, block, count):
    """Which clusters a block attends to one by one, by loops."""
    means = torch.stack([k[group].mean(0) for group in groups])
    numbers = torch.tensor([float(len(group)) for group in groups])
    shares = (probes @ means.T + numbers.log()).softmax(-1).sum(0)
    spread = torch.stack([(k[group] - k[group].mean(0)).square().sum(1).mean().sqrt() for group in groups])
    gain = shares * spread / numbers
    rests = [sum(j not in block for j in group.tolist()) for group in groups]
    ranked = [c for c in gain.argsort(descending=True).tolist() if len(groups[c]) > 1]
    taken, left = set(), count
    for _ in range(PASSES):
        free = left
        for c in ranked:
            if c in taken or rests[c] > free:
                continue
            if rests[c] > left:
                break
            taken.add(c)
            left -= rests[c]
    return taken


def plain(q, k, v, landmarks, count, clustering, residual):
    """The method by loops, without bias and regions, for one window and head: q, k, v (N, d), float64."""
    groups = clusters_of(k, landmarks, clustering)
    size = 8 * math.ceil(max(32, len(k) / landmarks) / 8)
    means_a_block = 4 if 4 * len(k) <= size * landmarks else 2 if 2 * len(k) <= size * landmarks else 1
    out = torch.zeros_like(v)

    def attend(query, block, taken):
        weights, values = [query @ k[j] for j in block], [v[j] for j in block]
        for c, group in enumerate(groups):
            rest = [j for j in group.tolist() if j not in block]
            if c in taken:
                weights += [query @ k[j] for j in rest]
                values += [v[j] for j in rest]
            elif rest:
                weights.append(query @ k[rest].mean(0) + math.log(len(rest)))
                values.append(v[rest].mean(0))
        return torch.stack(weights).softmax(0) @ torch.stack(values)

    for block in torch.cat(groups).split(size):
        filled = torch.cat([block, block[-1:].expand(size - len(block))])  # the last one, by its last query
        own = set(block.tolist())
        taken = chosen_by(torch.stack([q[part].mean(0) for part in filled.split(8)]), k, groups, own, count)
        wrong = [torch.zeros_like(v[0])] * means_a_block
        if residual:
            means = [q[part].mean(0) for part in filled.view(means_a_block, -1)]
            wrong = [(mean @ k.T).softmax(0) @ v - attend(mean, own, taken) for mean in means]
        for place, i in enumerate(block):
            out[i] = attend(q[i], own, taken) + wrong[place * means_a_block // size]
    return out


@pytest.mark.parametrize(
    ("landmarks", "count", "clustering", "residual"),
    [
        (16, 64, 1, True),
        (8, 70, 0, True),
        (7, 60, 1, True),
        (5, 30, 1, True),
        (16, 0, 1, True),
        (24, 40, 2, False),
        (60, 50, 1, True),
    ],
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


@pytest.mark.parametrize("bias", ["by offset", "any"])
def test_what_is_attended_one_by_one_has_its_own_bias(bias):
    """With all keys near nothing is left to the features, whatever their number."""
    q, k, v = smooth_qkv(2)
    by_chance = torch.randn(HEADS, TOKENS, TOKENS, generator=torch.Generator().manual_seed(0))
    whole = 3 * (smooth_bias() if bias == "by offset" else by_chance)
    window, exact = (make(SIDE, SIDE, lambda: whole) for make in (Window, Window))
    expected = ExactAttention()(q, k, v, exact)
    assert relative_error(NystraPlusV5Attention(16, TOKENS, 1, residual=False)(q, k, v, window), expected) < 1e-5


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
    whole = by_clusters()(q, k, v, with_bias())
    monkeypatch.setattr("nystra_bench.attention.nystra_plus_v5.SLAB", TOKENS * 150)
    monkeypatch.setattr("nystra_bench.attention.blocks.GATHERED", 15_000)
    assert relative_error(by_clusters()(q, k, v, with_bias()), whole) < 1e-6


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 2), (1, 7), (3, 5), (7, 9), (13, 11), (2, 120), (17, 19)])
@pytest.mark.parametrize("make", [by_clusters, partial(NystraPlusV5Attention, 1, 3), NystraPlusV5Attention])
def test_any_window_has_weights_that_sum_to_one(make, height, width):
    q, k, v = random_qkv(2, HEADS, height * width, DIM)
    out = make()(q, k, torch.ones_like(v), Window(height, width))
    assert (out - 1).abs().max() < 1e-5


@pytest.mark.parametrize("side", [4, 13])
def test_tokens_that_are_a_region_each_keep_their_values(side):
    """As the mask of 100 has it for logits of a few units."""
    q, k, v = random_qkv(2, HEADS, side * side, DIM)
    window = Window(side, side, None, lambda: torch.arange(side * side)[None])
    assert relative_error(by_clusters(side * side, 0)(q, k, v, window), v) < 1e-5
    assert by_clusters()(q, k, v, window).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1.0, 3e3])
def test_equal_keys_and_huge_logits_stay_finite(dtype, scale):
    q, k, v = (x.to(dtype) for x in random_qkv(2, HEADS, TOKENS, DIM))
    q, k = q * scale**0.5, k * scale**0.5  # logits of 10,000 and more
    out = by_clusters()(q, k, v, Window(SIDE, SIDE))
    assert out.dtype == dtype and out.isfinite().all()
    if scale == 0:
        assert (out.float() - v.float().mean(-2, keepdim=True)).abs().max() < 2e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("logit", [-1e4, 1e4])
def test_logits_that_are_all_huge_are_those_of_equal_keys(dtype, logit):
    """Minus 10,000 for all is no mask: what stands for nothing has to be less."""
    _, _, v = random_qkv(2, HEADS, 1000, DIM)
    q = torch.zeros_like(v)
    q[..., 0] = 100
    k = q * logit / 1e4
    out = by_clusters()(q.to(dtype), k.to(dtype), v.to(dtype), Window(25, 40)).float()
    assert (out - v.mean(-2, keepdim=True)).abs().max() < 1e-3


def test_small_windows_are_attended_exactly_unless_clusters_are_asked_for():
    q, k, v = smooth_qkv(2)
    exact = ExactAttention()(q, k, v, with_bias())
    default, asked = NystraPlusV5Attention(), NystraPlusV5Attention(landmarks=32)
    assert relative_error(default(q, k, v, with_bias()), exact) < 1e-5
    assert relative_error(asked(q, k, v, with_bias()), exact) > 1e-3
    assert default.about() == {"kernel": "exact"} and asked.about() == {"kernel": "clusters"}
    assert default.flops(1, 1, TOKENS, DIM, DIM) == 4 * TOKENS**2 * DIM
    assert not default.is_exact(2304) and NystraPlusV5Attention(exact_up_to=2304).is_exact(2304)
    left_out = NystraPlusV5Attention(bias_rank=0)(q, k, v, with_bias())
    assert relative_error(left_out, ExactAttention()(q, k, v, Window(SIDE, SIDE))) < 1e-5


def test_gradients_are_those_of_exact_attention_where_it_is_exact():
    q, k, v = (x.double().requires_grad_() for x in smooth_qkv(1))
    found, expected = (
        torch.autograd.grad(attention(q, k, v, Window(SIDE, SIDE)).square().sum(), (q, k, v))
        for attention in (NystraPlusV5Attention(16, TOKENS), ExactAttention())
    )
    for ours, exact in zip(found, expected, strict=True):
        assert relative_error(ours, exact) < 1e-6


@pytest.mark.parametrize("tokens", [1, 100, 1000, 1024, 4096, 11664, 16384])
def test_blocks_hold_all_tokens_and_mean_queries_are_about_as_many_as_landmarks(tokens):
    sizes = NystraPlusV5Attention().sizes(tokens)
    assert sizes.block % 8 == 0 and (sizes.block // 8) % sizes.groups == 0
    assert tokens <= sizes.blocks * sizes.block < tokens + sizes.block
    assert sizes.blocks * sizes.groups <= sizes.landmarks + 4
    assert Sizes(tokens, 1, 0).blocks == 1


def test_what_does_not_fit_is_refused():
    assert "exceed the 16 tokens of a 4x4 window" in NystraPlusV5Attention(17).refuses(4, 4)
    assert NystraPlusV5Attention().refuses(1, 1) is None
    wrong = {"landmarks": 0, "exact_keys": -1, "bias_rank": 1.5, "clustering": -1, "residual": "yes", "exact_up_to": -1}
    for name, value in (wrong | {"target_deviation": 0}).items():
        with pytest.raises(ValueError, match=f"{name}={value}"):
            NystraPlusV5Attention(**{name: value})


def test_farthest_points_are_far_apart():
    points = torch.tensor([[0.0], [1.0], [10.0], [11.0], [5.0]])[None]
    distances = squared_distances(points)
    assert farthest_points(lambda last: row_of(distances, last), 3, points).tolist() == [[0, 3, 4]]


def test_a_path_goes_from_each_point_to_the_nearest_that_is_left():
    points = torch.tensor([[[0.0], [10.0], [1.0], [5.0], [-2.0]], [[0.0]] * 5])
    assert along_a_path(squared_distances(points)).tolist() == [[0, 2, 4, 3, 1], [0, 1, 2, 3, 4]]
    distances = squared_distances(points)
    chosen = torch.tensor([[3, 0, 1], [0, 1, 2]])
    assert torch.equal(between(distances, chosen)[0], distances[0][chosen[0]][:, chosen[0]])


def test_clusters_are_selected_by_what_their_means_lose():
    """Three clusters of two, one and three members: weights equal, the one of one member loses nothing."""
    rows = torch.tensor([[0.0, 1], [2.0, 3], [5.0, 5], [9.0, 1], [9.1, 2], [9.2, 3]])[None]
    member = torch.tensor([[0, 0, 1, 2, 2, 2]])
    clusters = Clusters.of(member, rows, 1, 4)
    assert clusters.sizes.tolist() == [[2, 1, 3, 0]] and clusters.starts.tolist() == [[0, 2, 3, 6]]
    assert clusters.spread[0].tolist() == pytest.approx([1.0, 0.0, (0.02 / 3) ** 0.5, 0.0], abs=1e-2)
    assert clusters.means[0, :, 1].tolist() == [2, 5, 2, 0]
    begin, weights = torch.tensor([6]), torch.full((1, 1, 4), 1 / 4)
    nothing = clusters.overlaps(begin, begin)
    selection = clusters.select(weights, 4, nothing, begin)
    assert selection.taken.tolist() == [[[True, False, False, False]]]
    assert selection.places[selection.there].tolist() == [0, 1]
    selection = clusters.select(weights, 5, nothing, begin)
    assert selection.places[selection.there].tolist() == [0, 1, 3, 4, 5]


def test_what_a_block_has_itself_is_no_part_of_the_selection():
    rows = torch.tensor([[0.0], [2.0], [5.0], [9.0], [9.1], [9.2]])[None]
    clusters = Clusters.of(torch.tensor([[0, 0, 1, 2, 2, 2]]), rows, 1, 3)
    begin, end = torch.tensor([1, 4]), torch.tensor([4, 5])
    own = clusters.overlaps(begin, end)
    assert own.tolist() == [[[1, 1, 1], [0, 0, 1]]]
    selection = clusters.select(torch.full((1, 2, 3), 1 / 3), 4, own, begin)
    assert [selection.places[0, i][selection.there[0, i]].tolist() for i in (0, 1)] == [[0, 4, 5], [0, 1, 3, 5]]


def test_what_a_large_cluster_leaves_free_is_filled_up():
    sizes = torch.tensor([5, 9, 4, 3, 2, 1, 1])
    assert fitting(sizes, 10).tolist() == [5, 0, 4, 0, 0, 1, 0]
    assert fitting(sizes, 0).tolist() == [0] * 7
