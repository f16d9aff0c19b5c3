"""flex_attention against the float64 reference: what it runs, and once what PyTorch's compiler makes of it."""

from __future__ import annotations

import shutil
from functools import partial

import pytest
import torch
from attention_references import exact, random_qkv, relative_error
from kernel_cases import HEADS, shifted, window_of

from nystra_bench.attention.base import Window
from nystra_bench.attention.flex import FlexAttention
from nystra_bench.errors import UserError

COMPILE = torch.compile


@pytest.fixture
def without_cpp(monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(COMPILE, backend="eager"))


@pytest.mark.usefixtures("without_cpp")
@pytest.mark.parametrize("masked", [False, True], ids=["unmasked", "shifted"])
@pytest.mark.parametrize("with_bias", [False, True], ids=["no bias", "bias"])
def test_it_is_exact_attention(masked, with_bias):
    regions = shifted(4, 8) if masked else None
    q, k, v = random_qkv(8, HEADS, 32, 16, 6)
    with torch.inference_mode():
        window = window_of(4, 8, with_bias, regions)
        found = FlexAttention()(q, k, v, window)
    assert relative_error(found, exact(q, k, v, window.bias(), regions)) < 1e-5
    assert found.transpose(1, 2).is_contiguous(), "as the projection after it reads it"


def test_compiling_is_set_up_and_happens_once_a_shape(monkeypatch):
    happened = []

    def backend(graph, inputs):
        happened.append(inputs[0].shape)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(COMPILE, backend=backend))
    attention, window = FlexAttention(), Window(4, 6)
    with torch.inference_mode():
        for count in (2, 3, 2, 3):
            attention(*random_qkv(count, HEADS, 24, 4), window)
    assert [shape[0] for shape in happened] == [2, 3]
    assert len(window.cache.seconds) == 2 and window.cache.setup_s > 0


def test_what_cannot_be_compiled_is_told_in_one_sentence(monkeypatch):
    def broken(graph, inputs):
        raise ValueError("no luck\nwith details")

    monkeypatch.setattr(torch, "compile", partial(COMPILE, backend=broken))
    q, k, v = random_qkv(1, HEADS, 20, 4)
    with torch.inference_mode(), pytest.raises(UserError) as error:
        FlexAttention()(q, k, v, Window(4, 5))
    assert str(error.value) == (
        "flex_attention cannot be compiled for float32 on cpu (ValueError: no luck): accepted here is sdpa"
    )


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler, which Inductor needs")
def test_what_is_compiled_gives_the_same():
    regions = shifted(4, 8)
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in random_qkv(4, HEADS, 32, 16))
    with torch.inference_mode():
        window = window_of(4, 8, True, regions)
        found = FlexAttention()(q, k, v, window)
    assert relative_error(found, exact(q, k, v, window.bias(), regions)) < 1e-5
    assert found.transpose(1, 2).is_contiguous()
