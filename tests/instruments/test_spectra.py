"""Spectra: against numpy's full decomposition on small models, on matrices of known spectrum, and at known extremes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from attention_references import exact_matrix, smooth_qkv
from torch import nn

from nystra_bench.attention.exact import ExactAttention
from nystra_bench.attention.identity import IdentityAttention
from nystra_bench.attention.nystra import NystraAttention
from nystra_bench.attention.nystra_plus import NystraPlusAttention
from nystra_bench.attention.sdpa import FusedAttention
from nystra_bench.errors import UserError
from nystra_bench.instruments import memory, spectra
from nystra_bench.instruments.spectra import (
    RECORDED,
    attention_spectra,
    effective_tokens,
    leading_singular_values,
    spectral_norms,
    spectrum_numbers,
)
from nystra_bench.models import attention_sites, plug
from nystra_bench.models.swinir import SwinIR, SwinIRSpec
from nystra_bench.models.windows import WindowAttention

WINDOW, TOKENS = 4, 16


@pytest.fixture
def model():
    """Two blocks of two heads, the second shifted, with logits and biases of the order of one; float64."""
    generator = torch.Generator().manual_seed(5)
    model = SwinIR(SwinIRSpec(dim=8, depths=(2,), heads=(2,), window=WINDOW, mlp_ratio=1.0))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_plain = parameter.ndim == 1 or "table" in name
            parameter.copy_(noise if is_plain else 2 * noise / math.sqrt(parameter[0].numel()))
    return model.double().eval().requires_grad_(False)


@pytest.fixture
def image():
    return torch.rand(1, 3, 12, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Recorder(ExactAttention):
    """Keeps what it is called with."""

    def forward(self, q, k, v, window):
        self.call = q, k, window
        return super().forward(q, k, v, window)


@pytest.fixture
def calls(model, image):
    """Queries, keys and window of each layer."""
    recorders = [Recorder() for _ in attention_sites(model)]
    for site, recorder in zip(attention_sites(model), recorders, strict=True):
        site.attention = recorder
    model(image)
    plug(model, ExactAttention())
    return [recorder.call for recorder in recorders]


def every_window(call) -> np.ndarray:
    """The exact matrices (nW, H, N, N) of a call."""
    q, k, window = call
    return exact_matrix(q, k, window.bias(), window.regions())


# ---------------------------------------------------------------- against numpy


def test_records_are_those_of_full_decompositions(model, image, calls):
    records = attention_spectra(model, image, {}, windows=100, values=10)
    assert [(r["layer"][-6], r["head"]) for r in records] == [("0", 0), ("0", 1), ("1", 0), ("1", 1)]
    for record in records:
        matrices = every_window(calls[int(record["layer"][-6])])[:, record["head"]]
        values = np.linalg.svd(matrices, compute_uv=False)
        shares = (values**2).cumsum(-1) / (values**2).sum(-1, keepdims=True)
        entropy = -(matrices * np.log(matrices.clip(1e-300))).sum(-1)
        expected = {
            "singular_values": values.mean(0)[:10],
            **{f"energy_{n}": shares[:, n - 1].mean() for n in (5, 10)},
            "energy_20": 1.0,
            **{f"rank_{p}": np.mean([np.argmax(s >= p / 100) + 1 for s in shares]) for p in (90, 95, 99)},
            "effective_tokens": np.exp(entropy).mean(),
            "self_mass": np.mean([np.trace(m) for m in matrices]) / TOKENS,
            "matrix_mse": 0,
            "spectral_error": 0,
        }
        for name, value in expected.items():
            np.testing.assert_allclose(record[name], value, rtol=2e-5, err_msg=name)
        assert record["tokens"] == TOKENS and record["attention"] == "exact"


def test_logits_are_those_between_which_there_is_no_mask(model, image, calls):
    records = attention_spectra(model, image, {}, windows=100)
    for record in records:
        q, k, window = calls[int(record["layer"][-6])]
        logits = (q @ k.mT + window.bias()).numpy()[:, record["head"]]
        regions = window.regions()
        allowed = np.ones_like(logits, bool) if regions is None else (regions[:, :, None] == regions[:, None]).numpy()
        assert record["logit_min"] == pytest.approx(logits[allowed].min(), rel=1e-5)
        assert record["logit_max"] == pytest.approx(logits[allowed].max(), rel=1e-5)
        spreads = [one[here].std() for one, here in zip(logits, allowed, strict=True)]
        assert record["logit_std"] == pytest.approx(np.mean(spreads), rel=1e-5)
        assert allowed.all() == (record["layer"][-6] == "0")


METHODS = [NystraAttention(4, 3), NystraAttention(4, 3, init="matrix"), NystraPlusAttention(4)]


@pytest.mark.parametrize("attention", METHODS)
def test_methods_are_compared_as_they_run(model, image, calls, attention):
    """Also where the iteration starts from all windows, and two are looked at."""
    few = attention_spectra(model, image, {"mine": attention}, windows=2)
    every = attention_spectra(model, image, {"mine": attention}, windows=100)
    assert [r["attention"] for r in few] == ["exact"] * 4 + ["mine"] * 4
    for record in every[4:]:
        call = calls[int(record["layer"][-6])]
        exact, own = (m[:, record["head"]] for m in (every_window(call), attention.matrix(*call).numpy()))
        difference = exact - own
        assert record["matrix_mse"] == pytest.approx((difference**2).mean(), rel=1e-5)
        norms = [np.linalg.norm(d, 2) / np.linalg.norm(e, 2) for d, e in zip(difference, exact, strict=True)]
        assert record["spectral_error"] == pytest.approx(np.mean(norms), rel=1e-5)
        values = np.linalg.svd(own, compute_uv=False).mean(0)
        np.testing.assert_allclose(record["singular_values"], values, rtol=1e-5, atol=1e-6)
        assert record["logit_std"] is None
    assert few != every


# ---------------------------------------------------------------- many tokens


def softmax_of(kind: str, tokens: int, scale: float = 3.0) -> torch.Tensor:
    """Attention of smooth features, whose spectrum falls steeply, and of noise, whose does not."""
    side = math.isqrt(tokens)
    q, k, _ = smooth_qkv(1, 1, side, tokens // side, 8, seed=2)
    if kind == "noise":
        q, k = torch.randn(2, 1, 1, tokens, 8, generator=torch.Generator().manual_seed(3))
    return (scale * q @ k.mT).softmax(-1)[0]


@pytest.mark.parametrize("kind", ["smooth", "noise"])
def test_leading_values_are_those_of_the_full_decomposition(kind, monkeypatch):
    monkeypatch.setattr(spectra, "LARGE", 1024)
    matrix = softmax_of(kind, 1024)
    found = leading_singular_values(matrix, 50)
    full = torch.linalg.svdvals(matrix)
    assert found.shape == (1, 50)
    np.testing.assert_allclose(found, full[:, :50], rtol=2e-3)
    assert torch.equal(found, leading_singular_values(matrix, 50))


@pytest.mark.parametrize("decay", [lambda n: 0.7**n, lambda n: 1 / (1 + n), lambda n: 1.0 * (n < 12)])
def test_leading_values_of_a_known_spectrum(decay):
    """Made of orthogonal bases; exponential, slow, and of low rank."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((spectra.LARGE, 200)))[0] for _ in range(2))
    values = decay(np.arange(200.0))
    matrix = torch.from_numpy(((left * values) @ right.T)[None])
    np.testing.assert_allclose(leading_singular_values(matrix, 50)[0], values[:50], rtol=1e-3, atol=1e-9)
    numbers = spectrum_numbers(leading_singular_values(matrix, 50), torch.tensor([(values**2).sum()]))
    share = (values[:20] ** 2).sum() / (values**2).sum()
    assert numbers["energy_20"].item() == pytest.approx(share, rel=1e-4)


def test_all_values_are_known_where_the_first_hold_too_little():
    flat, steep = softmax_of("noise", 576), softmax_of("smooth", 576, scale=0.5)
    assert leading_singular_values(flat, 50).shape == (1, 576)
    found, full = leading_singular_values(steep, 50), torch.linalg.svdvals(steep)
    assert found.shape == (1, 50)
    np.testing.assert_allclose(found, full[:, :50], rtol=1e-3, atol=1e-6)
    assert leading_singular_values(steep, 1).shape == (1, 576)


def test_a_rank_beyond_what_was_computed_is_infinite():
    numbers = spectrum_numbers(torch.tensor([[3.0, 1.0], [1.0, 1.0]]), torch.tensor([10.2, 8.0], dtype=torch.float64))
    assert numbers["rank_90"].tolist() == [2, math.inf] and numbers["rank_99"].tolist() == [math.inf, math.inf]
    assert numbers["energy_5"].tolist() == pytest.approx([10 / 10.2, 2 / 8])


@pytest.mark.parametrize("tokens", [64, 600])
def test_spectral_norms_are_numpys(tokens):
    matrix = torch.stack([softmax_of(kind, tokens)[0] for kind in ("smooth", "noise")])
    matrix = torch.cat([matrix, matrix[:1] - matrix[1:], torch.zeros(1, tokens, tokens)])
    expected = [np.linalg.norm(m, 2) for m in matrix.double().numpy()]
    np.testing.assert_allclose(spectral_norms(matrix), expected, rtol=1e-4)


# ---------------------------------------------------------------- known extremes


def test_identity_has_a_flat_spectrum_and_exact_forms_have_no_error(model, image):
    records = attention_spectra(model, image, {"identity": IdentityAttention(), "sdpa": FusedAttention()})
    assert all(list(record) == ["attention", "layer", "head", "tokens", *RECORDED] for record in records)
    for record in records:
        if record["attention"] == "identity":
            assert record["singular_values"] == [1.0] * TOKENS
            assert (record["energy_5"], record["rank_90"], record["rank_99"]) == (5 / TOKENS, 15, 16)
            assert record["effective_tokens"] == record["self_mass"] == 1
            assert record["matrix_mse"] > 1e-4 and record["spectral_error"] > 0.1
        else:
            assert record["matrix_mse"] < 1e-20 and record["spectral_error"] < 1e-9
            assert 0 < record["energy_5"] <= record["energy_10"] <= record["energy_20"] <= 1
            assert record["rank_90"] <= record["rank_95"] <= record["rank_99"] <= TOKENS
            assert record["singular_values"] == sorted(record["singular_values"], reverse=True)
            assert 1 <= record["effective_tokens"] <= TOKENS


def test_effective_tokens_of_uniform_single_and_negative_weights():
    uniform, single = torch.full((3, 8, 8), 1 / 8), torch.eye(8).expand(3, 8, 8)
    assert effective_tokens(uniform).tolist() == pytest.approx([8.0] * 3)
    assert effective_tokens(single).tolist() == [1.0] * 3
    assert effective_tokens(torch.cat([uniform[:1], uniform[:1] - 0.2])).isnan().tolist() == [False, True]


def test_windows_are_a_seeded_choice(model, image):
    first, again, other = (attention_spectra(model, image, {}, windows=1, seed=seed) for seed in (0, 0, 4))
    assert first == again != other


# ---------------------------------------------------------------- what goes wrong


class Broken(IdentityAttention):
    def matrix(self, q, k, window):
        raise ArithmeticError("no luck")


class Garbage(IdentityAttention):
    def matrix(self, q, k, window):
        return super().matrix(q, k, window) / 0


def test_a_method_that_fails_leaves_the_others(model, image):
    told, alive = {}, []
    methods = {"broken": Broken(), "identity": IdentityAttention(), "garbage": Garbage(), "large": NystraAttention(17)}
    own = attention_sites(model)[0].attention
    records = attention_spectra(
        model, image, methods, alive=lambda *progress: alive.append(progress), failed=lambda n, e: told.update({n: e})
    )
    assert {r["attention"] for r in records} == {"exact", "identity"} and len(records) == 2 * 2 * 2
    assert alive == [(1, 2), (2, 2)]
    assert isinstance(told["broken"], ArithmeticError) and set(told) == {"broken", "garbage", "large"}
    assert "NaN or infinite" in str(told["garbage"]) and "landmarks=17 exceed the 16" in str(told["large"])
    for name, error in {"broken": ArithmeticError, "garbage": FloatingPointError, "large": UserError}.items():
        with pytest.raises(error):
            attention_spectra(model, image, {name: methods[name]})
        assert attention_sites(model)[0].attention is own


def test_mistakes_are_told(model, image, monkeypatch):
    with pytest.raises(UserError, match="Conv2d has no attention to look at: accepted are models with windowed"):
        attention_spectra(nn.Conv2d(3, 3, 1), image, {})
    with pytest.raises(ValueError, match="windows=0"):
        attention_spectra(model, image, {}, windows=0)
    monkeypatch.setattr(memory, "free_memory", lambda device: 10.0)
    with pytest.raises(MemoryError, match="4x4 tokens and 2 heads need about 0 GB .*: accepted are smaller windows"):
        attention_spectra(model, image, {})


def test_nothing_is_kept_in_the_layers(model, image):
    attention_spectra(model, image, {"plus": NystraPlusAttention(4)})
    for site in attention_sites(model):
        assert isinstance(site, WindowAttention)
        kept = [entry for cache in site.caches._common.values() for entry in cache.values()]
        assert not kept
