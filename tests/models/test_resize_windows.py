"""SwinIR in other windows than it was trained in, with the bias interpolated or dropped."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from attention_references import exact, relative_error

from nystra_bench.attention.base import Attention
from nystra_bench.attention.exact import ExactAttention
from nystra_bench.models import swinir, windows
from nystra_bench.models.swinir import SwinIR
from nystra_bench.models.windows import attention_sites, plug, relative_position_index, resize_bias_table

SIZES = ((1, 1), (5, 3), (19, 27), (33, 40), (64, 32))


class Recorder(Attention):
    """Exact attention that keeps what it was given and what it gave."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, q, k, v, window):
        out = ExactAttention()(q, k, v, window)
        self.calls.append((q, k, v, window, window.bias(), window.regions(), out))
        return out


def recorded(model, image) -> list:
    recorder = Recorder()
    with torch.inference_mode():
        plug(model, recorder)(image)
    return recorder.calls


def test_interpolation_at_the_native_window_changes_nothing(small_model, image):
    before = small_model(image)
    assert small_model.resize_windows(8, "interpolate") is small_model
    assert torch.equal(small_model(image), before)


def test_dropping_at_the_native_window_does_change_the_output(small_model, image):
    before = small_model(image)
    after = small_model.resize_windows(8, "drop")(image)
    assert relative_error(after, before) > 1e-3


@pytest.mark.parametrize("position_bias", ("interpolate", "drop"))
@pytest.mark.parametrize("window", (4, 12, 32))
@torch.inference_mode()
def test_any_image_size_works_in_any_window(small_model, window, position_bias):
    model = small_model.resize_windows(window, position_bias)
    assert model.window_size == window
    for height, width in SIZES:
        out = model(torch.rand(1, 3, height, width))
        assert out.shape == (1, 3, height, width)
        assert out.isfinite().all()


@torch.inference_mode()
def test_super_resolution_keeps_its_scale_in_an_enlarged_window(small_spec, randomised):
    model = randomised(SwinIR(replace(small_spec, upsampler="pixelshuffle", scale=3, mask_size=16)))
    assert model.resize_windows(32, "interpolate")(torch.rand(1, 3, 9, 35)).shape == (1, 3, 27, 105)


def test_every_layer_attends_in_the_new_window(small_model, image):
    calls = recorded(small_model.resize_windows(16, "interpolate"), image)
    assert len(calls) == 4
    for q, _, _, window, bias, _, _ in calls:
        assert (window.height, window.width) == (16, 16)
        assert q.shape[0] == 2 * 2 * 2 and q.shape[2] == 256  # two images of 32 x 32
        assert bias.shape == (q.shape[1], 256, 256)


def test_a_model_tells_its_windows(small_model):
    assert small_model.windows(8, 100, 3) == [8] and small_model.windows(32, 1, 1) == [32]


def test_interpolation_uses_the_stretched_table_and_keeps_the_shift_mask(small_model, image):
    tables = [site.relative_position_bias_table.clone() for site in attention_sites(small_model)]
    calls = recorded(small_model.resize_windows(16, "interpolate"), image)
    for i, (table, (*qkv, _, bias, regions, out)) in enumerate(zip(tables, calls, strict=True)):
        expected = resize_bias_table(table, 8, 16)[relative_position_index(16)].permute(2, 0, 1)
        assert torch.equal(bias, expected)
        assert (regions is not None) == (i % 2 == 1)
        assert relative_error(out, exact(*qkv, expected, regions)) < 1e-5


def test_drop_attends_without_bias_and_mask_and_still_shifts(small_model, image):
    calls = recorded(small_model.resize_windows(16, "drop"), image)
    for *qkv, window, bias, regions, out in calls:
        assert not window.has_bias and bias is None and regions is None
        assert relative_error(out, exact(*qkv)) < 1e-5
    assert [block.shifted for block in small_model.modules() if isinstance(block, swinir.SwinBlock)] == [0, 1, 0, 1]


def test_drop_never_makes_the_bias_or_the_regions(small_model, image, monkeypatch):
    def untouchable(*_):
        raise AssertionError("asked for")

    model = small_model.resize_windows(16, "drop")
    monkeypatch.setattr(swinir.ShiftWindowAttention, "position_bias", untouchable)
    monkeypatch.setattr(windows, "shift_regions", untouchable)
    assert model(image).isfinite().all()


def test_interpolation_does_make_both(small_model, image, monkeypatch):
    """So that the test above can fail."""
    asked = []
    bias, regions = swinir.ShiftWindowAttention.position_bias, windows.shift_regions
    monkeypatch.setattr(swinir.ShiftWindowAttention, "position_bias", lambda *a: asked.append("bias") or bias(*a))
    monkeypatch.setattr(windows, "shift_regions", lambda *a: asked.append("regions") or regions(*a))
    small_model.resize_windows(16, "interpolate")(image)
    assert asked.count("bias") == 4
    assert asked.count("regions") == 1, "the regions are made once a forward pass"


@torch.inference_mode()
def test_drop_equals_a_native_model_of_that_window_whose_bias_is_zero(small_spec, randomised, image):
    """With one block a group nothing is shifted, so that no mask distinguishes the two."""
    spec = replace(small_spec, depths=(1, 1))
    dropped = randomised(SwinIR(spec))
    native = SwinIR(replace(spec, window=16)).eval()
    state = {key: value for key, value in dropped.state_dict().items() if "relative_position" not in key}
    zeros = {key: torch.zeros_like(value) for key, value in native.state_dict().items() if key.endswith("bias_table")}
    native.load_state_dict({**native.state_dict(), **state, **zeros})
    torch.testing.assert_close(dropped.resize_windows(16, "drop")(image), native(image))


def test_a_plugged_attention_stays_and_its_cache_is_emptied(small_model, image):
    computed = []

    class Caches(ExactAttention):
        def forward(self, q, k, v, window):
            if "size" not in window.cache:
                computed.append(window.height)
            assert window.cache.setdefault("size", window.height) == window.height
            return super().forward(q, k, v, window)

    plug(small_model, Caches())
    small_model(image)
    small_model.resize_windows(16, "interpolate")(image)
    assert computed == [8] * 4 + [16] * 4


def test_windows_can_be_resized_more_than_once(small_model, image):
    small_model.resize_windows(16, "interpolate")
    assert small_model.resize_windows(12, "drop")(image).shape == image.shape
