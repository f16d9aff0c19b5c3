"""Compiling models with the attention that is in them: one graph or an error. In all tests but one PyTorch's backend
without C++ stands in for Inductor, which takes long."""

import shutil
from functools import partial

import pytest
import torch

from nystra_bench.attention.base import Attention
from nystra_bench.attention.exact import ExactAttention
from nystra_bench.attention.nystra_plus import NystraPlusAttention
from nystra_bench.errors import UserError
from nystra_bench.instruments import compiled as module
from nystra_bench.instruments.compiled import CompiledModels, compiled
from nystra_bench.instruments.forward import ForwardTimer
from nystra_bench.instruments.timer import Clock, Timing
from nystra_bench.models.swinir import SwinIR, SwinIRSpec
from nystra_bench.models.windows import plug

COMPILE = torch.compile


class Counting(Attention):
    """Counts how often Python comes by."""

    calls = 0

    def forward(self, q, k, v, window):
        self.calls += 1
        return v * window.cache.once("factor", lambda: torch.tensor(2.0))


@pytest.fixture(autouse=True)
def without_cpp(monkeypatch):
    monkeypatch.setattr(module.torch, "compile", partial(COMPILE, backend="aot_eager"))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SwinIR(SwinIRSpec(dim=8, depths=(2,), heads=(2,), window=4, mlp_ratio=1.0)).eval()


@pytest.fixture
def image():
    return torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("attention", [ExactAttention(), NystraPlusAttention(4, 6, 4)], ids=["exact", "nystra_plus"])
def test_the_output_is_that_of_the_eager_model_shifted_windows_included(model, image, attention):
    models = CompiledModels()
    with torch.inference_mode():
        expected = plug(model, attention)(image)
        found = models(model, image)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert models.seconds(model) > 0


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler, which Inductor needs")
def test_inductor_gives_the_same_numbers(monkeypatch):
    monkeypatch.setattr(module.torch, "compile", COMPILE)
    q, k, v = torch.randn(3, 2, 2, 16, 4, generator=torch.Generator().manual_seed(0)).unbind()

    def attend(q, k, v):
        return (q @ k.mT).softmax(-1) @ v

    form = compiled(attend, q, k, v, called="attention")
    torch.testing.assert_close(form.call(q, k, v), attend(q, k, v), rtol=1e-5, atol=1e-6)
    assert form.seconds > 0


def test_each_attention_and_shape_is_compiled_once(model, image):
    models, first, second = CompiledModels(), Counting(), Counting()
    with torch.inference_mode():
        for attention in (first, second, first, second):
            models(plug(model, attention), image)
        calls = first.calls
        for _ in range(3):
            models(plug(model, first), image)
        assert first.calls == calls == second.calls  # the graph runs, and no Python
        seconds = models.seconds(model)
        assert models(model, image[..., :8]).shape == (1, 3, 16, 8)
        assert first.calls > calls and models.seconds(model) > seconds
    plug(model, ExactAttention())
    assert models.seconds(model) == 0


def test_inputs_of_inference_mode_are_compiled_too(model):
    with torch.inference_mode():
        image = torch.rand(1, 3, 8, 8)
        torch.testing.assert_close(CompiledModels()(model, image), model(image), rtol=1e-5, atol=1e-6)


def test_what_depends_on_numbers_is_an_error_in_one_sentence():
    with pytest.raises(UserError, match="does not fit halving .its course depends on the numbers.*runtime=eager$"):
        compiled(lambda x: x / 2 if x.sum().item() > 0 else x, torch.ones(3), called="halving")


def test_what_the_compiler_says_is_told(monkeypatch):
    def broken(graph, inputs):
        raise ValueError("no luck\nwith details")

    monkeypatch.setattr(module.torch, "compile", partial(COMPILE, backend=broken))
    with pytest.raises(UserError, match=r"does not fit doubling \(ValueError: no luck\)"):
        compiled(lambda x: 2 * x, torch.ones(3), called="doubling")


def test_no_compiler_at_work_is_an_error_and_not_silently_eager(monkeypatch):
    monkeypatch.setattr(module.torch, "compile", lambda graph, **_: graph)
    with pytest.raises(UserError, match="made 0 graphs"):
        compiled(lambda x: 2 * x, torch.ones(3), called="doubling")


def test_out_of_memory_is_told_as_such(monkeypatch):
    def full(graph, **_):
        raise MemoryError("no room")

    monkeypatch.setattr(module.torch, "compile", full)
    with pytest.raises(MemoryError, match="no room"):
        compiled(lambda x: 2 * x, torch.ones(3), called="doubling")


def test_a_model_is_compiled_with_its_attention_before_its_first_call(model, image):
    happened = []

    def note(what, given):
        def noted(m):
            happened.append((what, type(m.layers[0].residual_group.blocks[0].attn.attention)))
            return given

        return noted

    timing = Timing(rounds=2, min_rounds=1, budget_s=1, warmup_s=0, min_sample_ms=0, again=False)
    timer = ForwardTimer(model, note("call", image), timing, Clock("cpu"), compile=note("compile", 7.5))
    for name, entry in timer.entries({}, {"exact": ExactAttention(), "counting": Counting()}).items():
        happened.clear()
        timer.warm_up(name, entry)
        kind = {"exact": ExactAttention, "counting": Counting}[name]
        assert happened[:2] == [("compile", kind), ("call", kind)]
        assert [what for what, _ in happened].count("compile") == 1
        assert entry.compile_ms == 7500 and entry.first_ms < 7500
