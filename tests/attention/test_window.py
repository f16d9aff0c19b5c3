"""The window's geometry, and that bias and regions are only made for those who ask."""

from __future__ import annotations

import time

import pytest
import torch
from attention_references import random_qkv

from nystra_bench.attention.base import MASKED, Attention, Cache, Window, add_bias_and_mask
from nystra_bench.attention.exact import ExactAttention
from nystra_bench.attention.identity import IdentityAttention
from nystra_bench.attention.nystra import NystraAttention
from nystra_bench.attention.sdpa import FusedAttention


class Asked(Exception):
    pass


def untouchable():
    raise Asked


@pytest.mark.parametrize("method", (IdentityAttention(), NystraAttention(landmarks=8)))
@pytest.mark.parametrize("call", ("forward", "matrix"))
def test_methods_without_bias_and_mask_never_ask_for_them(method, call):
    q, k, v = random_qkv(2, 2, 64, 16)
    window = Window(8, 8, untouchable, untouchable)
    out = method(q, k, v, window) if call == "forward" else method.matrix(q, k, window)
    assert out.isfinite().all()


@pytest.mark.parametrize("method", (ExactAttention(), FusedAttention()))
@pytest.mark.parametrize("asked", ("bias", "regions"))
def test_exact_methods_do_ask_for_both(method, asked):
    q, k, v = random_qkv(2, 2, 64, 16)
    with pytest.raises(Asked):
        method(q, k, v, Window(8, 8, **{asked: untouchable}))


def test_a_window_without_bias_and_shift_gives_none():
    window = Window(4, 8)
    assert window.tokens == 32
    assert not window.has_bias
    assert window.bias() is None and window.regions() is None and window.mask() is None


def test_asking_whether_there_is_a_bias_does_not_make_it():
    assert Window(8, 8, untouchable).has_bias


def test_regions_that_turn_out_to_be_none_mask_nothing():
    assert Window(2, 2, regions=lambda: None).mask() is None


def test_mask_keeps_regions_apart():
    mask = Window(1, 2, regions=lambda: torch.tensor([[0, 0], [0, 1]])).mask()
    assert mask.tolist() == [[[0, 0], [0, 0]], [[0, MASKED], [MASKED, 0]]]


def test_cache_belongs_to_the_caller():
    cache = Cache()
    Window(2, 2, cache=cache).cache["factors"] = 1
    assert cache == {"factors": 1}
    assert Window(2, 2).cache is not Window(2, 2).cache


def test_what_is_made_once_is_timed_once():
    cache, made = Cache(), []

    def inner():
        made.append("inner")
        time.sleep(0.02)
        return 1

    def outer():
        made.append("outer")
        time.sleep(0.02)
        return 1 + cache.once("inner", inner)

    started = time.perf_counter()
    assert [cache.once("outer", outer), cache.once("outer", outer), cache.once("inner", inner)] == [2, 2, 1]
    assert made == ["outer", "inner"]
    assert 0.04 <= cache.setup_s <= time.perf_counter() - started


def test_bias_and_mask_are_added_to_the_right_head_and_window():
    """The windows of one image stand together: window i of the batch is window i % nW of its image."""
    bias = torch.randn(3, 4, 4)
    regions = torch.tensor([[0, 0, 0, 0], [0, 0, 1, 1]])
    window = Window(2, 2, lambda: bias, lambda: regions)
    logits = add_bias_and_mask(torch.zeros(4, 3, 4, 4), window.bias(), window.mask())
    for i in range(4):
        for h in range(3):
            assert torch.equal(logits[i, h], bias[h] + window.mask()[i % 2])


def test_the_contract_refuses_no_window_unless_a_method_says_so():
    assert Attention().refuses(1, 1) is None
    for call in (lambda: Attention().flops(1, 1, 1, 1, 1), lambda: Attention()(None, None, None, None)):
        with pytest.raises(NotImplementedError):
            call()
