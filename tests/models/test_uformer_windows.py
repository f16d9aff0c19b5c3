"""Uformer in other windows than it was trained in, with the bias interpolated or dropped, and on images of any size."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from attention_references import exact, relative_error

from nystra_bench.attention.base import Attention
from nystra_bench.attention.exact import ExactAttention
from nystra_bench.attention.identity import IdentityAttention
from nystra_bench.attention.nystra import NystraAttention
from nystra_bench.attention.sdpa import FusedAttention
from nystra_bench.models import windows
from nystra_bench.models.uformer import LeWinAttention, LeWinBlock, Uformer, UformerSpec, fitting_window
from nystra_bench.models.windows import attention_sites, plug, relative_position_index, resize_bias_table, unplug

SPEC = UformerSpec(embed_dim=4, depths=(2, 1, 1, 2, 2, 1, 1, 1, 2), heads=(1, 2, 4, 4, 8, 4, 4, 2, 2))
SITES = sum(SPEC.depths)


@pytest.fixture
def model(randomised):
    return randomised(Uformer(SPEC))


@pytest.fixture
def image():
    """Two images that fill no square; they are padded to 128 x 128."""
    return torch.rand(2, 3, 100, 60, generator=torch.Generator().manual_seed(3))


class Recorder(Attention):
    """Keeps what the model tells an attention; passes v through unless it is given something better."""

    def __init__(self, attention: Attention | None = None):
        super().__init__()
        self.attention = attention or IdentityAttention()
        self.calls = []

    def forward(self, q, k, v, window):
        out = self.attention(q, k, v, window)
        self.calls.append((q, k, v, window, out))
        return out

    @property
    def sides(self) -> list[int]:
        assert all(window.height == window.width for _, _, _, window, _ in self.calls)
        return [window.height for _, _, _, window, _ in self.calls]


@torch.inference_mode()
def recorded(model, image, attention=None) -> Recorder:
    recorder = Recorder(attention)
    plug(model, recorder)(image)
    return recorder


# --------------------------------------------------------------------------- the native window


@torch.inference_mode()
def test_interpolation_at_the_native_window_changes_nothing(model, image):
    before = model(image)
    assert model.resize_windows(8, "interpolate") is model
    assert torch.equal(model(image), before)
    assert torch.equal(model.resize_windows(32, "drop").resize_windows(8, "interpolate")(image), before)


@torch.inference_mode()
def test_dropping_at_the_native_window_does_change_the_output(model, image):
    before = model(image)
    assert relative_error(model.resize_windows(8, "drop")(image), before) > 1e-4


def test_native_layers_shift_every_other_window_but_in_the_bottleneck(model, image):
    calls = recorded(model, image).calls
    regions = [window.regions() for _, _, _, window, _ in calls]
    shifted = [i % 2 == 1 and layer != 4 for layer, depth in enumerate(SPEC.depths) for i in range(depth)]
    assert [region is not None for region in regions] == shifted
    assert all(window.height == 8 for _, _, _, window, _ in calls)


# --------------------------------------------------------------------------- enlarged windows


@pytest.mark.parametrize(
    "side, window, expected",
    ((128, 64, 64), (8, 64, 8), (24, 16, 12), (24, 7, 6), (40, 16, 10), (128, 12, 8), (384, 20, 16), (8, 3, 2)),
)
def test_the_largest_divisor_is_the_window(side, window, expected):
    assert fitting_window(side, window) == expected


@pytest.mark.parametrize(
    "window, height, width, expected",
    (
        (8, 1, 1, [8]),
        (8, 300, 500, [8]),
        (16, 128, 128, [16, 8]),
        (16, 70, 200, [16]),
        (64, 128, 100, [64, 32, 16, 8]),
        (64, 512, 512, [64, 32]),
        (20, 384, 10, [16, 12]),
    ),
)
def test_a_model_tells_the_windows_of_an_image(model, window, height, width, expected):
    assert model.windows(window, height, width) == expected


@pytest.mark.parametrize("position_bias", ("interpolate", "drop"))
@pytest.mark.parametrize("window, side", ((4, 128), (12, 120), (16, 128), (32, 200), (64, 128), (256, 1)))
def test_the_windows_told_are_those_that_are_attended_in(model, window, side, position_bias):
    sides = recorded(model.resize_windows(window, position_bias), torch.rand(1, 3, side, 7)).sides
    assert len(sides) == SITES
    assert list(dict.fromkeys(sides)) == model.windows(window, side, 7)
    assert model.window_size == window


@pytest.mark.parametrize("position_bias", ("interpolate", "drop"))
@pytest.mark.parametrize(
    "window, attention", ((16, ExactAttention()), (32, NystraAttention()), (64, NystraAttention(landmarks=32)))
)
@torch.inference_mode()
def test_any_image_size_works_in_any_window(model, window, attention, position_bias):
    plug(model.resize_windows(window, position_bias), attention)
    for height, width in ((1, 1), (70, 200), (128, 127)):
        out = model(torch.rand(1, 3, height, width))
        assert out.shape == (1, 3, height, width)
        assert out.isfinite().all()


def test_interpolation_uses_the_stretched_table_and_keeps_the_shift_mask(model, image):
    calls = recorded(model.resize_windows(16, "interpolate"), image[:1], ExactAttention()).calls
    for site, (*qkv, window, out) in zip(attention_sites(model), calls, strict=True):
        size = window.height
        table = resize_bias_table(site.relative_position_bias_table, 8, size)
        expected = table[relative_position_index(size)].permute(2, 0, 1)
        assert torch.equal(window.bias(), expected)
        if size == 8 or qkv[0].shape[0] == 1:  # the reference is slow
            assert relative_error(out, exact(*qkv, expected, window.regions())) < 1e-5


def test_a_window_that_covers_its_map_is_not_shifted(model, image):
    """At window 16 that is so for the maps of 16 x 16, and for the bottleneck."""
    calls = recorded(model.resize_windows(16, "interpolate"), image).calls
    regions = [window.regions() for _, _, _, window, _ in calls]
    assert [i for i, region in enumerate(regions) if region is not None] == [1, SITES - 1]
    assert regions[1].shape == (64, 256) and len(regions[1].unique()) == 9


def test_an_enlarged_window_is_shifted_by_half_of_it(model, image, monkeypatch):
    shifts = []
    cut = windows.in_windows
    monkeypatch.setattr(windows, "in_windows", lambda x, size, *a: shifts.append(a[0]) or cut(x, size, *a))
    recorded(model.resize_windows(32, "drop"), image)
    # The second block of the first and of the last resolution; 16 x 16 is covered by one window.
    assert shifts == [0, 16, *[0] * (SITES - 3), 16]


def test_drop_attends_without_bias_and_mask_and_still_shifts(model, image, monkeypatch):
    def untouchable(*_):
        raise AssertionError("asked for")

    model = model.resize_windows(16, "drop")
    monkeypatch.setattr(LeWinAttention, "position_bias", untouchable)
    monkeypatch.setattr(windows, "shift_regions", untouchable)
    for *_, window, _ in recorded(model, image[:1], ExactAttention()).calls:
        assert not window.has_bias and window.bias() is None and window.regions() is None


@pytest.mark.parametrize("attention, biases, regions", ((ExactAttention(), SITES, 2), (NystraAttention(), 0, 0)))
def test_what_is_made_of_bias_and_mask(model, image, monkeypatch, attention, biases, regions):
    """Every layer's bias where an attention asks for it; regions once for each of the two shifted resolutions."""
    asked = []
    bias, shift = LeWinAttention.position_bias, windows.shift_regions
    monkeypatch.setattr(LeWinAttention, "position_bias", lambda *a: asked.append("bias") or bias(*a))
    monkeypatch.setattr(windows, "shift_regions", lambda *a: asked.append("regions") or shift(*a))
    recorded(model, image, attention)
    assert asked.count("bias") == biases and asked.count("regions") == regions


@torch.inference_mode()
def test_regions_are_shared_by_encoder_and_decoder(randomised, image, monkeypatch):
    made = []
    shift = windows.shift_regions
    monkeypatch.setattr(windows, "shift_regions", lambda *a: made.append(a[0]) or shift(*a))
    randomised(Uformer(UformerSpec(embed_dim=2, depths=(4,) * 9, heads=(1,) * 9)))(image[:1])
    assert made == [128, 64, 32, 16]


def test_modulators_are_stretched_to_the_window(model):
    block = next(b for b in model.modules() if isinstance(b, LeWinBlock) and b.modulator is not None)
    weight = block.modulator.weight
    assert block.modulation(8) is weight
    grid = weight.reshape(8, 8, -1).permute(2, 0, 1)[None]
    expected = F.interpolate(grid, (32, 32), mode="bicubic")[0].permute(1, 2, 0).reshape(32 * 32, -1)
    torch.testing.assert_close(block.modulation(32), expected)


def test_the_parameters_stay_those_of_the_native_window(model, image):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    recorded(model.resize_windows(64, "interpolate"), image)
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[key], before[key]) for key in before)
    Uformer(SPEC).load_state_dict(after, strict=True)


@torch.inference_mode()
def test_an_attentions_cache_lives_by_window_size_until_the_windows_are_resized(model):
    computed = []

    class Caches(IdentityAttention):
        def forward(self, q, k, v, window):
            if "size" not in window.cache:
                computed.append(window.height)
            assert window.cache.setdefault("size", window.height) == window.height
            return super().forward(q, k, v, window)

    plug(model.resize_windows(16, "interpolate"), Caches())
    small, large = torch.rand(1, 3, 9, 9), torch.rand(1, 3, 200, 9)
    model(small), model(small)
    assert computed == [16] * 6 + [8] * 2 + [16] * 5  # the bottleneck alone is 8 x 8
    model(large), model(small)
    assert computed[13:] == [16] * 2
    model.resize_windows(16, "drop")(large)
    assert computed[15:] == [16] * SITES


# --------------------------------------------------------------------------- images, dtypes, attentions


@torch.inference_mode()
def test_a_batch_gives_what_its_images_give_alone(model, image):
    torch.testing.assert_close(model(image), torch.cat([model(one[None]) for one in image]), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_double_precision(model, image):
    single = model(image)
    double = model.double()(image.double())
    assert double.dtype == torch.float64
    assert relative_error(single, double) < 1e-5
    enlarged = model.resize_windows(16, "interpolate")(image.double())
    assert enlarged.dtype == torch.float64 and enlarged.isfinite().all()


METHODS = (ExactAttention(), FusedAttention(), IdentityAttention(), NystraAttention(landmarks=8))


@pytest.mark.parametrize("attention", METHODS, ids=lambda a: type(a).__name__)
@torch.inference_mode()
def test_plug_and_unplug(model, image, attention):
    before = model(image)
    assert len(attention_sites(model)) == SITES
    changed = plug(model, attention)(image)
    assert all(site.attention is attention for site in attention_sites(model))
    assert (relative_error(changed, before) < 1e-5) == attention.exact
    assert torch.equal(unplug(model)(image), before)


@torch.inference_mode()
def test_the_fused_form_is_exact_in_enlarged_windows(model, image):
    model.resize_windows(16, "interpolate")
    expected = model(image)
    assert relative_error(plug(model, FusedAttention())(image), expected) < 1e-5


def test_training_in_bfloat16_reaches_every_parameter(image):
    torch.manual_seed(0)
    model = Uformer(SPEC).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = (model(image) - image).abs().mean()
    loss.backward()
    assert loss.isfinite()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


# --------------------------------------------------------------------------- memory

MEASURE = """
import torch
from nystra_bench.attention.nystra import NystraAttention
from nystra_bench.instruments.memory import peak_memory
from nystra_bench.models.uformer import Uformer, UformerSpec
from nystra_bench.models.windows import plug

torch.set_num_threads(1)
model = Uformer(UformerSpec(embed_dim=16, depths=(1,) * 9)).eval().resize_windows(64, "interpolate")
plug(model, NystraAttention(landmarks=32, iterations=6))
image = torch.rand(1, 3, 512, 512)
with torch.inference_mode():
    print(peak_memory(lambda: model(image), "cpu")[0])
"""


def test_window_64_on_512_x_512_stays_below_two_gigabytes():
    """One N x N matrix a window and head would take 4.3 GB in the first layer already."""
    out = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, timeout=120, check=True)
    assert 50 < float(out.stdout) < 2000
