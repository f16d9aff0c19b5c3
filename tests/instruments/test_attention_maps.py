"""Attention maps: rows against loops over pixels, with shift, mask, padding and the layers' resolutions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from nystra_bench.attention.exact import ExactAttention
from nystra_bench.attention.identity import IdentityAttention
from nystra_bench.attention.nystra import NystraAttention
from nystra_bench.attention.nystra_plus import NystraPlusAttention
from nystra_bench.errors import UserError
from nystra_bench.instruments import memory
from nystra_bench.instruments.attention_maps import attention_maps
from nystra_bench.models import attention_sites, plug
from nystra_bench.models.dehazeformer import DehazeFormer, DehazeFormerSpec
from nystra_bench.models.swinir import SwinIR, SwinIRSpec
from nystra_bench.models.uformer import Uformer, UformerSpec

HEIGHT, WIDTH = 22, 30
SIZE = 4


@dataclass
class Layer:
    """What one attention works on, in numpy: maps of queries and keys, (rows, columns, heads, d), before windows.

    Attributes:
        bias: gives (heads,) for the offsets of a query from a key.
        reflects: whether the map is padded by reflection instead of rolled.
        stride, top, left: of a token in pixels, and where the map begins on the image.
        masked: whether a mask keeps apart what the shift brings together.
    """

    q: np.ndarray
    k: np.ndarray
    bias: object
    shift: int
    reflects: bool = False
    stride: int = 1
    top: int = 0
    left: int = 0
    masked: bool = True


def brute_force(layer: Layer, pixel: tuple[int, int], head: int) -> tuple[dict, float]:
    """The weight of each token on the image that is shown, by its first pixel, and the sum of all others."""
    sides = layer.q.shape[:2]
    own = [(p - start) // layer.stride for p, start in zip(pixel, (layer.top, layer.left), strict=True)]
    lines = []
    for side, position in zip(sides, own, strict=True):
        moved = position + layer.shift if layer.reflects else (position - layer.shift) % side
        first = moved - moved % SIZE
        back = -layer.shift if layer.reflects else layer.shift
        lines.append([first + i + back for i in range(SIZE)])
    mine = [line.index(p if p in line else p + n) for line, p, n in zip(lines, own, sides, strict=True)]
    logits, places = [], []
    for i, y in enumerate(lines[0]):
        for j, x in enumerate(lines[1]):
            source = [reflected(p, n) if layer.reflects else p % n for p, n in zip((y, x), sides, strict=True)]
            logit = float(layer.q[own[0], own[1], head] @ layer.k[source[0], source[1], head])
            logit += layer.bias(mine[0] - i, mine[1] - j)[head]
            same = all(
                (p >= n) == (lines[a][mine[a]] >= n) for a, (p, n) in enumerate(zip((y, x), sides, strict=True))
            )
            logits.append(logit if same or layer.reflects or not layer.masked else logit - 100)
            places.append((y, x) if same or layer.reflects else None)
    weights = np.exp(np.array(logits) - max(logits))
    weights /= weights.sum()
    shown, outside = {}, 0.0
    for place, weight in zip(places, weights, strict=True):
        corner = place and pixel_of(layer, place)
        if corner and all(-layer.stride < c < n for c, n in zip(corner, (HEIGHT, WIDTH), strict=True)):
            shown[corner] = weight
        else:
            outside += weight
    return shown, outside


def pixel_of(layer: Layer, place: tuple[int, int]) -> tuple[int, int]:
    rows, columns = layer.q.shape[:2]
    y, x = place if layer.reflects else (place[0] % rows, place[1] % columns)
    return y * layer.stride + layer.top, x * layer.stride + layer.left


def reflected(position: int, side: int) -> int:
    return int(np.pad(np.arange(side), (64, 64), "reflect")[position + 64])


# ---------------------------------------------------------------- models with random weights, and their layers


def randomised(model: nn.Module) -> nn.Module:
    """Weights such that logits are of the order of one, and position biases are felt."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            plain = parameter.ndim == 1 or "table" in name or "modulator" in name
            parameter.copy_(noise if plain else 1.5 * noise / math.sqrt(parameter[0].numel()))
    return model.double().eval().requires_grad_(False)


def watched(model: nn.Module, modules: dict[str, nn.Module], x: torch.Tensor) -> dict[str, torch.Tensor]:
    """What these modules give while the model runs."""
    seen = {}
    hooks = [m.register_forward_hook(lambda _, __, out, n=n: seen.__setitem__(n, out)) for n, m in modules.items()]
    model(x)
    for hook in hooks:
        hook.remove()
    return seen


def as_heads(tokens: torch.Tensor, heads: int) -> np.ndarray:
    """(rows, columns, C) -> (rows, columns, heads, d)"""
    return tokens.unflatten(-1, (heads, -1)).numpy()


def from_table(table: torch.Tensor):
    return lambda dy, dx: table[(dy + SIZE - 1) * (2 * SIZE - 1) + dx + SIZE - 1].numpy()


def swinir(x):
    model = randomised(SwinIR(SwinIRSpec(dim=8, depths=(2,), heads=(2,), window=SIZE, mlp_ratio=1.0)))
    blocks = {f"layers.0.residual_group.blocks.{i}": b for i, b in enumerate(model.layers[0].residual_group.blocks)}
    seen, layers = watched(model, {name: block.norm1 for name, block in blocks.items()}, x), {}
    for i, (name, block) in enumerate(blocks.items()):
        q, k, _ = block.attn.qkv(seen[name][0]).chunk(3, -1)
        table = from_table(block.attn.relative_position_bias_table)
        layers[f"{name}.attn"] = Layer(as_heads(q / 2, 2), as_heads(k, 2), table, SIZE // 2 * (i % 2))
    return model, layers


def uformer(x):
    spec = UformerSpec(embed_dim=4, depths=(2, 1, 2, 1, 1, 1, 1, 2, 1), heads=(1, 2, 2, 2, 2, 2, 2, 2, 2), window=SIZE)
    model = randomised(Uformer(spec))
    chosen = {"encoderlayer_0.blocks.1": 0, "encoderlayer_2.blocks.0": 2, "encoderlayer_2.blocks.1": 2}
    chosen |= {"conv.blocks.0": 4, "decoderlayer_2.blocks.1": 1}
    blocks = {name: model.get_submodule(name) for name in chosen}
    seen, layers = watched(model, {name: block.norm1 for name, block in blocks.items()}, x), {}
    for name, level in chosen.items():
        block, tokens = blocks[name], seen[name][0]
        side, heads = len(tokens), block.attn.qkv.heads
        shift = SIZE // 2 if block.shifted else 0
        if block.modulator is not None:
            row, column = ((torch.arange(side) - shift) % SIZE for _ in range(2))
            tokens = tokens + block.modulator.weight[SIZE * row[:, None] + column]
        q, k = block.attn.qkv.to_q(tokens), block.attn.qkv.to_kv(tokens).chunk(2, -1)[0]
        table = from_table(block.attn.relative_position_bias_table)
        layers[f"{name}.attn"] = Layer(
            as_heads(q * (q.shape[-1] // heads) ** -0.5, heads), as_heads(k, heads), table, shift, False, 1 << level,
            -((64 - HEIGHT) // 2), -((64 - WIDTH) // 2),
        )  # fmt: skip
    return model, layers


def dehazeformer(x):
    spec = DehazeFormerSpec(
        dims=(4, 8, 12, 8, 4), depths=(1, 2, 2, 1, 1), heads=(1, 2, 3, 1, 1), attended=(0, 2, 2, 0, 0), window=SIZE
    )
    model = randomised(DehazeFormer(spec))
    mixers = {f"layer{stage}.blocks.{i}.attn": 2 ** (stage - 1) for stage in (2, 3) for i in range(2)}
    seen, layers = watched(model, {name: model.get_submodule(name).QK for name in mixers}, x), {}
    for name, stride in mixers.items():
        mixer = model.get_submodule(name)
        q, k = seen[name][0].permute(1, 2, 0).chunk(2, -1)
        heads = mixer.attn.heads

        def bias(dy, dx, meta=mixer.attn.meta):
            offsets = [math.copysign(math.log(1 + abs(d)), d) for d in (dy, dx)]
            return meta(torch.tensor(offsets, dtype=torch.float32).double()).numpy()

        layers[f"{name}.attn"] = Layer(
            as_heads(q * (q.shape[-1] // heads) ** -0.5, heads), as_heads(k, heads), bias, SIZE // 2 * int(name[-6]),
            True, stride,
        )  # fmt: skip
    return model, layers


@pytest.fixture(scope="module")
def image():
    return torch.rand(1, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


QUERIES = [(0, 0), (9, 14), (HEIGHT - 1, WIDTH - 1), (HEIGHT - 1, 3), (5, WIDTH - 2)]


@pytest.mark.parametrize("make", [swinir, uformer, dehazeformer])
def test_rows_are_those_of_loops_over_pixels(make, image):
    model, layers = make(image)
    found = attention_maps(model, image, {}, QUERIES, list(layers))
    heads = [range(layer.q.shape[2]) for layer in layers.values()]
    assert len(found) == len(QUERIES) * sum(map(len, heads))
    for m in found:
        layer = layers[m.layer]
        shown, outside = brute_force(layer, m.query, m.head)
        assert painted(m, layer.stride) == pytest.approx(shown, abs=1e-6)
        assert m.outside == pytest.approx(outside, abs=1e-6)
        assert m.attention == "exact" and m.values.dtype == np.float32


def painted(m, stride: int) -> dict[tuple[int, int], float]:
    """The weights of a map by the first pixel of their tokens."""
    top, left, height, width = m.box
    assert (height, width) == tuple(stride * n for n in m.values.shape)
    return {(top + stride * i, left + stride * j): float(w) for (i, j), w in np.ndenumerate(m.values)}


def test_without_a_mask_the_opposite_borders_count_as_outside(image):
    model, layers = swinir(image)
    model.resize_windows(SIZE, "drop")
    (name,) = (name for name, layer in layers.items() if layer.shift)
    block = model.layers[0].residual_group.blocks[1]
    q, k, _ = block.attn.qkv(watched(model, {name: block.norm1}, image)[name][0]).chunk(3, -1)
    layer = Layer(as_heads(q / 2, 2), as_heads(k, 2), lambda *_: np.zeros(2), SIZE // 2, masked=False)
    for m in attention_maps(model, image, {}, [(0, 0), (9, 14)], [name]):
        shown, outside = brute_force(layer, m.query, m.head)
        assert painted(m, 1) == pytest.approx(shown, abs=1e-6)
        assert m.outside == pytest.approx(outside, abs=1e-6)
        assert (m.outside > 0.1) == (m.query == (0, 0))


def test_methods_are_given_the_queries_and_keys_of_the_exact_model(image):
    model, layers = swinir(image)
    name = list(layers)[0]
    calls = []

    class Recorder(ExactAttention):
        def forward(self, q, k, v, window):
            calls.append((q, k, window))
            return super().forward(q, k, v, window)

    model(image)
    attention = NystraAttention(landmarks=4, iterations=3)  # its iteration starts from all windows
    plug(model, Recorder())(image)
    plug(model, IdentityAttention())  # whatever is in place, the features are the exact model's
    expected = attention.matrix(*calls[0])
    found = attention_maps(model, image, {"mine": attention}, [(1, 2)], [name], heads=[1])
    exact, mine = found
    assert [m.attention for m in found] == ["exact", "mine"]
    np.testing.assert_allclose(mine.values.ravel(), expected[0, 1, 1 * SIZE + 2], atol=1e-6)
    assert abs(mine.values - exact.values).max() > 1e-3
    assert all(isinstance(site.attention, IdentityAttention) for site in attention_sites(model))


def test_a_query_of_identity_attends_to_itself(image):
    model, layers = dehazeformer(image)
    for m in attention_maps(model, image, {"identity": IdentityAttention()}, QUERIES, list(layers), [0]):
        if m.attention == "identity":
            ((row, column),) = np.argwhere(m.values)
            stride = m.box[2] // len(m.values)
            assert (m.query[0] - m.box[0]) // stride == row and (m.query[1] - m.box[1]) // stride == column
            assert m.outside == 0


def test_row_stochastic_methods_lose_nothing(image):
    model, layers = swinir(image)
    for m in attention_maps(model, image, {"plus": NystraPlusAttention(4)}, QUERIES, list(layers)):
        assert m.values.sum() + m.outside == pytest.approx(1, abs=1e-5)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"layers": ["layers.0.nothing"]}, "layer=layers.0.nothing is unknown.*accepted are layers.0.residual"),
        ({"heads": [2]}, "head=2 does not exist in layer layers.0.*: accepted are 0 to 1"),
        ({"heads": [-1]}, "head=-1 does not exist"),
        ({"queries": [(22, 0)]}, r"query=\[22,0\] lies outside .* rows 0 to 21 and columns 0 to 29"),
        ({"queries": [(0, -1)]}, r"query=\[0,-1\] lies outside"),
        ({"attentions": {"n": NystraAttention(17)}}, "NystraAttention cannot work here: landmarks=17 exceed the 16"),
    ],
)
def test_what_does_not_exist_is_told_in_a_sentence(changes, sentence, image):
    model, layers = swinir(image)
    before = attention_sites(model)[0].attention
    arguments = {"attentions": {}, "queries": [(0, 0)], "layers": list(layers)[:1]} | changes
    with pytest.raises(UserError, match=sentence) as error:
        attention_maps(model, image, **arguments)
    assert "\n" not in str(error.value)
    assert attention_sites(model)[0].attention is before


def test_models_without_attention_or_geometry_are_named(image):
    with pytest.raises(UserError, match="Conv2d has no attention to look at: accepted are models"):
        attention_maps(nn.Conv2d(3, 3, 1).double(), image, {}, [(0, 0)], ["any"])
    model, layers = swinir(image)
    with pytest.raises(UserError, match="Sequential does not tell where its windows lie"):
        attention_maps(nn.Sequential(model), image, {}, [(0, 0)], [f"0.{list(layers)[0]}"])


def test_windows_that_do_not_fit_the_memory_are_refused(image, monkeypatch):
    model, layers = swinir(image)
    monkeypatch.setattr(memory, "free_memory", lambda device: 10.0)
    with pytest.raises(MemoryError, match="attention matrices of 4x4 tokens and 2 heads need .*: accepted are smaller"):
        attention_maps(model, image, {}, [(0, 0)], list(layers)[:1])
