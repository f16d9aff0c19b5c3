"""Every published baseline against its float64 reference, on tokens for which its parts matter."""

from __future__ import annotations

import baseline_references as reference
import numpy as np
import pytest
import torch
from attention_references import exact, pooled, random_qkv, relative_error, smooth_qkv

from nystra_bench.attention.base import Window
from nystra_bench.baselines.agent_attention import AgentAttention
from nystra_bench.baselines.clustered_attention import ClusteredAttention
from nystra_bench.baselines.common import gaussian_directions
from nystra_bench.baselines.efficient_attention import EfficientAttention
from nystra_bench.baselines.improved_clustered_attention import ImprovedClusteredAttention
from nystra_bench.baselines.kv_merging import MergedAttention
from nystra_bench.baselines.kv_pooling import PooledAttention
from nystra_bench.baselines.linear_attention import LinearAttention
from nystra_bench.baselines.nystromformer import NystromformerAttention
from nystra_bench.baselines.performer import PerformerAttention
from nystra_bench.baselines.rfa import RandomFeatureAttention
from nystra_bench.baselines.skyformer import SkyformerAttention
from nystra_bench.baselines.taylor import TaylorAttention
from nystra_bench.baselines.uniform import UniformAttention

SIZES = ((8, 8), (8, 16), (7, 9))


@pytest.fixture(params=SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def size(request):
    return request.param


@pytest.fixture(params=(1.0, 3.0), ids=lambda scale: f"logits x{scale:g}")
def qkv(size, request):
    q, k, v = smooth_qkv(2, 2, *size, 12, seed=3)
    return request.param * q, k, v[..., :5]


def agrees(attention, qkv, size, expected, tolerance=1e-5):
    with torch.inference_mode():
        actual = attention(*qkv, Window(*size))
    assert relative_error(actual, expected) < tolerance
    assert relative_error(expected, exact(*qkv)) > 1e-3, "the data does not tell it from softmax attention"


@pytest.mark.parametrize(
    "attention, formula",
    (
        (UniformAttention(), reference.uniform),
        (LinearAttention(), reference.linear_attention),
        (EfficientAttention(), reference.efficient_attention),
        (TaylorAttention(), reference.taylor),
    ),
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_methods_without_parameters(attention, formula, qkv, size):
    agrees(attention, qkv, size, reference.by_head(formula, *qkv))


@pytest.mark.parametrize("landmarks", (4, 6))
@pytest.mark.parametrize(
    "method, formula",
    ((AgentAttention, reference.agent_attention), (PooledAttention, reference.kv_pooling)),
    ids=lambda value: value.__name__,
)
def test_methods_with_pooled_landmarks(method, formula, landmarks, qkv, size):
    agrees(method(landmarks), qkv, size, reference.by_head(formula, *qkv, *size, landmarks))


@pytest.mark.parametrize("features", (12, 30))
def test_performer(features, qkv, size):
    directions = gaussian_directions(Window(*size), features, qkv[0], seed=5, orthogonal=True).double().numpy()
    expected = reference.by_head(reference.performer, *qkv, directions)
    agrees(PerformerAttention(features, seed=5), qkv, size, expected)


@pytest.mark.parametrize("unit_norm", (False, True))
@pytest.mark.parametrize("floor", (0.01, 0.3))
def test_rfa(unit_norm, floor, qkv, size):
    directions = gaussian_directions(Window(*size), 15, qkv[0], seed=5).double().numpy()
    expected = reference.by_head(reference.rfa, *qkv, directions, unit_norm, floor)
    agrees(RandomFeatureAttention(30, 5, unit_norm, floor), qkv, size, expected)


@pytest.mark.parametrize("iterations", (0, 1, 3, 6))
@pytest.mark.parametrize("landmarks_from", ("segments", "cells"))
@pytest.mark.parametrize("landmarks", (4, 6))
def test_nystromformer(landmarks, landmarks_from, iterations, qkv, size):
    def marks(tokens):
        if landmarks_from == "cells":
            return pooled(tokens, *size, landmarks)
        return reference.segments(tokens, landmarks)

    expected = reference.by_head(reference.nystromformer, *qkv, marks, marks, iterations)
    agrees(NystromformerAttention(landmarks, iterations, "matrix", landmarks_from), qkv, size, expected, 3e-5)


@pytest.mark.parametrize("landmarks", (1, 9, 16))
@pytest.mark.parametrize("gamma", (0.1, 1.0))
def test_skyformer(landmarks, gamma, qkv, size):
    """With iterations enough to converge."""
    attention = SkyformerAttention(landmarks, iterations=20, gamma=gamma, seed=2)
    q_places, k_places = attention._places(Window(*size), torch.device("cpu"))
    assert len(q_places) + len(k_places) == landmarks and len(q_places) - len(k_places) in (0, 1)
    expected = reference.by_head(reference.skyformer, *qkv, q_places.numpy(), k_places.numpy(), gamma)
    agrees(attention, qkv, size, expected)


def test_skyformer_with_all_tokens_as_landmarks_and_no_regularisation_is_kernelized_attention():
    q, k, v = random_qkv(1, 2, 16, 16, seed=4)
    q, k = 4 * q, 4 * k  # far apart, so that the kernel is well conditioned
    attention = SkyformerAttention(landmarks=32, iterations=25, gamma=0.0)
    distance = (q[..., :, None, :] * 4 - k[..., None, :, :]).double().square().sum(-1)
    expected = (-distance / 8).exp() @ v.double()
    assert relative_error(attention(q, k, v, Window(4, 4)), expected) < 1e-4


def test_kv_merging(qkv, size):
    """The destinations are the centres of 2 x 3 cells."""
    height, width = size
    rows, columns = (height // 4, 3 * height // 4), (width // 6, width // 2, 5 * width // 6)
    destinations = [y * width + x for y in rows for x in columns]
    expected = reference.by_head(reference.kv_merging, *qkv, destinations)
    agrees(MergedAttention(6), qkv, size, expected)


@pytest.fixture
def clusters(qkv, size):
    window = Window(*size)
    directions = gaussian_directions(window, 21, qkv[0], seed=7).double().numpy()
    offsets = gaussian_directions(window, 21, torch.empty(0, 1), seed=8).double().numpy()[:, 0]
    q = qkv[0].double().numpy()
    return [[reference.hamming_kmeans(q[b, h], directions, offsets, 6, 4) for h in range(2)] for b in range(2)]


PARAMETERS = dict(landmarks=6, iterations=4, bits=21, seed=7)


def test_clusters_are_those_of_k_means_on_hashes(clusters, qkv, size):
    actual = ClusteredAttention(**PARAMETERS).clusters(qkv[0], Window(*size))
    assert actual.tolist() == [[of_head.tolist() for of_head in of_window] for of_window in clusters]
    assert min(len(of_head.unique()) for of_head in actual.flatten(0, 1)) > 1, "the data does not cluster"


def test_clustered_attention(clusters, qkv, size):
    q, k, v = (t.double().numpy() for t in qkv)
    expected = [
        [reference.clustered_attention(q[b, h], k[b, h], v[b, h], clusters[b][h]) for h in range(2)] for b in range(2)
    ]
    agrees(ClusteredAttention(**PARAMETERS), qkv, size, np.array(expected))


@pytest.mark.parametrize("keys", (1, 5, 30))
def test_improved_clustered_attention(keys, clusters, qkv, size):
    q, k, v = (t.double().numpy() for t in qkv)
    expected = [
        [reference.improved_clustered_attention(q[b, h], k[b, h], v[b, h], clusters[b][h], keys) for h in range(2)]
        for b in range(2)
    ]
    agrees(ImprovedClusteredAttention(**PARAMETERS, keys=keys), qkv, size, np.array(expected))


def test_improved_clustered_attention_with_all_keys_is_softmax_attention(qkv, size):
    attention = ImprovedClusteredAttention(landmarks=4, keys=1000)
    with torch.inference_mode():
        assert relative_error(attention(*qkv, Window(*size)), exact(*qkv)) < 1e-5


# --------------------------------------------------------------------------- what the estimates converge to


@pytest.mark.parametrize(
    "method, parameters",
    ((PerformerAttention, {"epsilon": 1e-12}), (RandomFeatureAttention, {})),
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_random_features_converge_to_softmax_attention(method, parameters):
    """The error falls as the root of the number of features."""
    q, k, v = random_qkv(1, 4, 64, 8, seed=6)
    q, k = q / 2, k / 2
    outputs = [method(features=count, **parameters)(q, k, v, Window(8, 8)) for count in (64, 8192)]
    few, many = (relative_error(out, exact(q, k, v)) for out in outputs)
    assert many < 0.03
    assert few > 4 * many


def test_performers_published_epsilon_draws_it_to_uniform_attention():
    q, k, v = random_qkv(1, 4, 64, 8, seed=6)
    uniform = reference.by_head(reference.uniform, q, k, v)
    errors = []
    for scale in (1.0, 20.0):
        out = PerformerAttention(features=64)(scale * q, scale * k, v, Window(8, 8))
        errors.append(relative_error(out, uniform))
    assert errors[1] < 0.1 < errors[0]


def test_taylor_is_softmax_attention_for_small_logits():
    q, k, v = random_qkv(1, 2, 64, 8, seed=6)
    assert relative_error(TaylorAttention()(0.1 * q, k, v, Window(8, 8)), exact(0.1 * q, k, v)) < 3e-3


def test_orthogonal_directions_are_orthogonal_in_blocks_and_as_long_as_normal_vectors():
    like = torch.empty(0, 16)
    directions = gaussian_directions(Window(4, 4), 4000, like, seed=1, orthogonal=True)
    for block in directions.split(16)[:3]:
        unit = torch.nn.functional.normalize(block)
        torch.testing.assert_close(unit @ unit.T, torch.eye(16), rtol=0, atol=1e-5)
    assert directions.norm(dim=1).square().mean().item() == pytest.approx(16, rel=0.05)
    assert directions.mean(0).abs().max() < 0.1
    second_moment = directions.T @ directions / len(directions)
    torch.testing.assert_close(second_moment, torch.eye(16), rtol=0, atol=0.15)


def test_directions_depend_on_the_seed_alone_and_are_kept_in_the_layers_cache():
    like, window = torch.empty(0, 16), Window(4, 4)
    first = gaussian_directions(window, 10, like, seed=1)
    assert gaussian_directions(window, 10, like, seed=1) is first
    assert torch.equal(gaussian_directions(Window(8, 8), 10, like, seed=1), first)
    assert not torch.equal(gaussian_directions(window, 10, like, seed=2), first)
    assert gaussian_directions(window, 10, like.double(), seed=1).dtype == torch.float64


# --------------------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    "method, parameters, message",
    (
        (AgentAttention, dict(landmarks=0), "landmarks=0 is out of range: accepted are whole numbers from 1 on"),
        (PooledAttention, dict(landmarks=2.5), "landmarks=2.5 is out of range"),
        (MergedAttention, dict(landmarks=-1), "landmarks=-1 is out of range"),
        (NystromformerAttention, dict(iterations=-1), "iterations=-1 is out of range"),
        (NystromformerAttention, dict(init="zero"), "init=zero is unknown: accepted are global, matrix"),
        (NystromformerAttention, dict(landmarks_from="rows"), "accepted are segments, cells"),
        (SkyformerAttention, dict(gamma=-0.1), "gamma=-0.1 is out of range"),
        (PerformerAttention, dict(features=0), "features=0 is out of range"),
        (PerformerAttention, dict(epsilon=0), "epsilon=0 is out of range"),
        (PerformerAttention, dict(seed=-1), "seed=-1 is out of range"),
        (RandomFeatureAttention, dict(features=63), "features=63 is odd"),
        (RandomFeatureAttention, dict(floor=0), "floor=0 is out of range"),
        (ClusteredAttention, dict(bits=0), "bits=0 is out of range"),
        (ImprovedClusteredAttention, dict(keys=0), "keys=0 is out of range"),
        (ImprovedClusteredAttention, dict(landmarks=True), "landmarks=True is out of range"),
    ),
)
def test_parameters_out_of_range_are_named(method, parameters, message):
    with pytest.raises(ValueError, match=message):
        method(**parameters)


def test_refusals_name_the_numbers():
    assert NystromformerAttention(65).refuses(8, 8) == "landmarks=65 exceed the 64 tokens of a 8x8 window"
    assert NystromformerAttention(11).refuses(8, 8) is None
    assert NystromformerAttention(11, landmarks_from="cells").refuses(8, 8) is not None
    assert SkyformerAttention(33).refuses(4, 4) == "landmarks=33 exceed the 32 queries and keys of a 4x4 window"
    assert SkyformerAttention(32).refuses(4, 4) is None
