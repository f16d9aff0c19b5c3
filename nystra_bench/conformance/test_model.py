"""What every model keeps to; models whose weights are not on this machine are skipped, with the reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from nystra_bench.attention.base import Attention
from nystra_bench.attention.exact import ExactAttention
from nystra_bench.attention.identity import IdentityAttention
from nystra_bench.conformance.references import relative_error
from nystra_bench.models import load_configured
from nystra_bench.models.windows import WindowedModel, attention_sites, plug, unplug
from nystra_bench.sizes import Size, plain

MODES = ("interpolate", "drop")
USUAL = 8
"""Side of windows that stands for those of a model whose own are no squares."""


class Recorder(Attention):
    """Exact attention that keeps what a model tells it: (B * nW, H, N), the window's size, bias and regions."""

    def __init__(self):
        super().__init__()
        self.exact_attention = ExactAttention()
        self.calls: list[tuple[tuple[int, int, int], Size, object, object]] = []

    def forward(self, q, k, v, window):
        assert q.shape == k.shape and q.shape[:3] == v.shape[:3]
        assert window.tokens == q.shape[2]
        size = plain((window.height, window.width))
        self.calls.append((tuple(q.shape[:3]), size, window.bias(), window.regions()))
        return self.exact_attention(q, k, v, window)


@torch.inference_mode()
def recorded(model: nn.Module, image: torch.Tensor) -> list:
    recorder = Recorder()
    plug(model, recorder)(image)
    unplug(model)
    return recorder.calls


def picture(model: WindowedModel, height: int, width: int, count: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height + width)
    return torch.rand(count, model.channels, height, width, generator=generator)


@torch.inference_mode()
def output(model: nn.Module, image: torch.Tensor) -> torch.Tensor:
    return model(image)


@pytest.fixture
def model(subject) -> nn.Module:
    return load_configured(subject.config)


def side(model: Any) -> int:
    """Side of its windows; of a usual one where its own are no squares."""
    return model.window_size if isinstance(model.window_size, int) else USUAL


def other_windows(model: Any) -> int:
    """A larger window, where the model takes one."""
    if not model.resizable:
        pytest.skip("the model works in its own windows alone")
    return 2 * model.window_size


@pytest.fixture
def image(model) -> torch.Tensor:
    """An image whose sides are odd, one below and one above the window's."""
    return picture(model, side(model) - 1, 2 * side(model) + 3)


def test_it_says_what_it_is(model):
    assert isinstance(model, nn.Module) and not any(module.training for module in model.modules())
    for number in (side(model), model.scale, model.channels):
        assert isinstance(number, int) and not isinstance(number, bool) and number >= 1
    assert isinstance(model.window_size, int) or not model.resizable
    assert isinstance(model.version, str) and model.version
    assert attention_sites(model), "no layer is derived from WindowAttention"
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_output_is_scale_times_the_input_whatever_its_size(model):
    for height, width in ((1, 1), (5, 3), (side(model) + 1, 3 * side(model) - 1)):
        out = output(model, picture(model, height, width))
        assert out.shape[0] == 1 and out.shape[2:] == (model.scale * height, model.scale * width)
        assert out.dtype == torch.float32 and out.isfinite().all()


def test_it_is_loaded_the_same_again_and_leaves_its_input_as_it_was(subject, model, image):
    before = image.clone()
    first = output(model, image)
    assert torch.equal(image, before)
    assert torch.equal(output(model, image), first)
    assert torch.equal(output(load_configured(subject.config), image), first)


def test_images_of_a_batch_do_not_influence_one_another(model):
    images = picture(model, side(model), side(model) + 1, count=2)
    together = output(model, images)
    for n in range(2):
        assert relative_error(output(model, images[n : n + 1]), together[n : n + 1]) < 1e-4


def test_plugged_attentions_are_used_and_unplugging_gives_the_original_output(model, image):
    before = output(model, image)
    assert plug(model, IdentityAttention()) is model
    assert relative_error(output(model, image), before) > 1e-6
    assert torch.equal(output(unplug(model), image), before)


def test_a_plugged_attention_computes_what_its_own_does(model, image):
    """So the model puts nothing else in its place, and hands over q that is scaled already."""
    before = output(model, image)
    plug(model, Recorder())
    assert relative_error(output(model, image), before) < 1e-5


@pytest.mark.parametrize("position_bias", (None, *MODES))
@pytest.mark.parametrize("size", ((5, 3), (41, 70)))
def test_the_windows_that_it_tells_are_those_that_are_attended_in(model, position_bias, size):
    if position_bias:
        model.resize_windows(other_windows(model), position_bias)
    seen = {window for _, window, _, _ in recorded(model, picture(model, *size))}
    assert seen == set(map(plain, model.windows(model.window_size, *size)))


def test_it_tells_the_windows_of_another_size_before_it_is_resized(model):
    larger = other_windows(model)
    before = set(model.windows(larger, 41, 70))
    assert before == set(model.resize_windows(larger, "drop").windows(larger, 41, 70))


@pytest.mark.parametrize("position_bias", MODES)
def test_larger_windows_work(model, image, position_bias):
    larger, before = other_windows(model), output(model, image)
    assert model.resize_windows(larger, position_bias) is model
    assert model.window_size == larger
    out = output(model, image)
    assert out.shape == before.shape and out.isfinite().all()


def test_interpolation_at_the_native_window_changes_nothing(model, image):
    before = output(model, image)
    assert torch.equal(output(model.resize_windows(model.window_size, "interpolate"), image), before)


def test_bias_and_regions_have_the_shapes_of_the_contract(model, image):
    for (batch, heads, tokens), _, bias, regions in recorded(model, image):
        assert bias is None or bias.shape == (heads, tokens, tokens)
        if regions is not None:
            assert regions.dtype == torch.int64 and regions.shape[1] == tokens
            assert batch % regions.shape[0] == 0, "the windows of one image stand together"


def test_drop_leaves_out_bias_and_mask(model, image):
    window = 2 * model.window_size if model.resizable else model.window_size
    calls = recorded(model.resize_windows(window, "drop"), image)
    assert calls and all(bias is None and regions is None for _, _, bias, regions in calls)
