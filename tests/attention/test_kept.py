"""Whatever a method keeps is made by ``Cache.once``, so that its seconds are reported and it serves every mode."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from attention_references import random_qkv
from hydra.utils import instantiate
from omegaconf import OmegaConf

from nystra_bench.attention.base import Window
from nystra_bench.attention.cache import Cache, Caches
from nystra_bench.models.windows import shift_regions

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "attention").glob("*.yaml"))
KEEPS = {
    "avggt",
    "clustered_attention",
    "exact",
    "flex",
    "fna",
    "folded",
    "improved_clustered_attention",
    "nystra_fused",
    "nystra_plus",
    "nystra_plus_fused",
    "nystra_plus_v5",
    "nystra_plus_v5_fused",
    "performer",
    "pisa",
    "rfa",
    "sdpa",
    "skyformer",
    "thinformer",
    "wildcat",
}


def shifted(side=8, heads=2) -> Window:
    regions = shift_regions(2 * side, 2 * side, side, side // 2)
    bias = torch.randn(heads, side**2, side**2, generator=torch.Generator().manual_seed(1))
    return Window(side, side, lambda: bias, lambda: regions)


def tensors(kept):
    if isinstance(kept, torch.Tensor):
        yield kept
    elif isinstance(kept, (list, tuple)):
        for part in kept:
            yield from tensors(part)
    elif hasattr(kept, "__dataclass_fields__"):
        for name in kept.__dataclass_fields__:
            yield from tensors(getattr(kept, name))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_what_is_kept_is_timed_and_serves_calls_outside_of_inference_mode(path):
    window, attention = shifted(), instantiate(OmegaConf.load(path))
    with torch.inference_mode():
        attention(*random_qkv(4, 2, 64, 16), window)
    for cache in (window.cache, window.shared):
        assert set(cache) == set(cache.seconds), "kept without Cache.once"
        assert all(not t.is_inference() and not t.requires_grad for kept in cache.values() for t in tensors(kept))
    assert (window.cache.setup_s + window.shared.setup_s > 0) == (path.stem in KEEPS)


def test_what_all_attentions_share_is_made_once_and_counts_for_each():
    caches, made = Caches(), []
    attentions = [torch.nn.Module() for _ in range(3)]

    def make():
        made.append(1)
        return torch.zeros(1)

    kept = [caches.of(attention).once_for_all("mask", make) for attention in attentions[:2]]
    assert len(made) == 1 and kept[0] is kept[1]
    first, second, third = (caches.setup_seconds(attention) for attention in attentions)
    assert first == second > 0 == third
    caches.of(attentions[0], 16).once_for_all("mask", make)
    assert len(made) == 2, "another window size, another mask"
    caches.clear()
    caches.of(attentions[0]).once_for_all("mask", make)
    assert len(made) == 3


def test_an_attentions_cache_goes_with_it():
    caches, attention = Caches(), torch.nn.Module()
    caches.of(attention).once("x", lambda: 1)
    assert len(caches._own) == 1
    del attention
    assert len(caches._own) == 0


def test_a_cache_without_others_keeps_by_itself():
    cache = Cache()
    assert [cache.once_for_all("x", lambda value=value: value) for value in (1, 2)] == [1, 1]


def test_nothing_that_is_kept_has_a_gradient():
    weight = torch.ones(2, requires_grad=True)
    assert not Cache().once("x", lambda: 2 * weight).requires_grad
