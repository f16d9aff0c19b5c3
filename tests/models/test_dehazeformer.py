"""DehazeFormer: the released checkpoint against an independent evaluation, and what holds for every size of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from nystra_bench.attention.base import Attention
from nystra_bench.attention.nystra import NystraAttention
from nystra_bench.errors import UserError
from nystra_bench.metrics.base import Convention
from nystra_bench.metrics.psnr import Psnr
from nystra_bench.models.dehazeformer import DehazeFormer, DehazeFormerSpec, infer_spec, load_dehazeformer
from nystra_bench.models.windows import attention_sites, plug, unplug

SHARED = Path(__file__).resolve().parents[3] / "shared"
RELEASED = SHARED / "weights" / "dehazeformer_outdoor" / "dehazeformer-t.pth"
SETS = SHARED / "data" / "testsets"
needs_released = pytest.mark.skipif(not RELEASED.exists(), reason="../shared with the released checkpoint is absent")

TINY = DehazeFormerSpec(
    dims=(8, 16, 24, 16, 8), depths=(2, 3, 2, 1, 1), heads=(1, 2, 3, 1, 1), attended=(0, 2, 2, 0, 0)
)
WITH_ATTENTION_EVERYWHERE = replace(TINY, attended=(1, 2, 2, 1, 1), heads=(2, 2, 3, 2, 2))
VARIANTS = {
    "depthwise": TINY,
    "full convolutions": replace(TINY, convolutions=("Conv",) * 5),
    "attention in every stage": WITH_ATTENTION_EVERYWHERE,
    "attention alone": replace(TINY, depths=(1, 2, 2, 1, 1), attended=(1, 2, 2, 1, 1), convolutions=("",) * 5),
    "normalised MLP": replace(TINY, mlp_norm=True),
    "window 4": replace(TINY, window=4),
    "one channel": replace(TINY, channels=1),
}
T, S, B, D = (
    DehazeFormerSpec(depths=(n, n, n, n // 2, n // 2), attended=attended)
    for n, attended in ((4, (0, 2, 4, 0, 0)), (8, (2, 4, 6, 0, 0)), (16, (4, 8, 12, 0, 0)), (32, (8, 16, 24, 0, 0)))
)
M = replace(S, depths=(12, 12, 12, 6, 6), attended=(3, 6, 9, 0, 0), convolutions=("Conv",) * 5)
WIDE = (48, 96, 192, 96, 48)
OFFICIAL = {
    "T": T,
    "S": S,
    "B": B,
    "D": D,
    "M": M,
    "W": replace(B, dims=WIDE),
    "L": replace(B, dims=WIDE, depths=(16, 16, 16, 12, 12), convolutions=("Conv",) * 5),
}
PARAMETERS = {"T": 0.686e6, "S": 1.283e6, "B": 2.514e6, "M": 4.634e6, "L": 25.44e6}
"""As the paper's table 1 gives them."""


def make(spec, seed=0) -> DehazeFormer:
    torch.manual_seed(seed)
    model = DehazeFormer(spec)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def picture(height, width, batch=1, channels=3, seed=0):
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))


@needs_released
@pytest.mark.parametrize(
    ("folder", "image", "expected"),
    [
        ("SOTS_outdoor", "0001_0.8_0.2.jpg", 37.43),
        ("SOTS_outdoor", "0002_0.8_0.08.jpg", 32.02),
        ("SOTS_indoor", "1400_2.png", 28.40),
        ("SOTS_indoor", "1410_4.png", 20.26),
        ("SOTS_indoor", "1420_6.png", 22.48),
        ("SOTS_indoor", "1430_8.png", 18.74),
        ("SOTS_indoor", "1440_10.png", 14.74),
    ],
)
def test_the_released_checkpoint_gives_the_psnr_of_an_independent_evaluation(folder, image, expected):
    hazy = np.asarray(Image.open(SETS / folder / "lq" / image).convert("RGB"), np.float32) / 255
    clean = np.asarray(Image.open(SETS / folder / "gt" / f"{image[:4]}.png").convert("RGB"), np.float32) / 255
    with torch.inference_mode():
        out = load_dehazeformer(str(RELEASED))(torch.from_numpy(hazy).permute(2, 0, 1)[None])
    restored = out[0].permute(1, 2, 0).clamp(0, 1).numpy()
    assert Psnr()(restored, clean, Convention(rounded=False)) == pytest.approx(expected, abs=0.05)


@needs_released
def test_the_bias_is_that_of_the_released_table_of_positions():
    model = load_dehazeformer(str(RELEASED))
    state = model.state_dict()
    for name, site in model.named_modules():
        if site in attention_sites(model):
            stored = site.meta(state[f"{name}.relative_positions"]).permute(2, 0, 1)
            torch.testing.assert_close(site.position_bias(8), stored, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OFFICIAL)
def test_released_sizes_are_read_off_their_state_dicts(name):
    spec = OFFICIAL[name]
    with torch.device("meta"):
        model = DehazeFormer(spec)
    assert DehazeFormer.__module__ in type(model).__module__
    inferred = infer_spec(model.state_dict())
    # Heads of a stage without attention leave no trace.
    heads = tuple(h if attended else 1 for h, attended in zip(spec.heads, spec.attended, strict=True))
    assert inferred == replace(spec, heads=heads)
    if name in PARAMETERS:
        assert sum(p.numel() for p in model.parameters()) == pytest.approx(PARAMETERS[name], rel=0.005)


@pytest.mark.parametrize("name", VARIANTS)
def test_weights_survive_a_file(name, tmp_path):
    model = make(VARIANTS[name])
    save_file(model.state_dict(), tmp_path / "it.safetensors")
    loaded = load_dehazeformer(str(tmp_path / "it.safetensors"))
    x = picture(24, 20, channels=model.channels)
    torch.testing.assert_close(loaded(x), model(x))


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (31, 9), (64, 64), (70, 45)])
def test_any_size_is_restored_and_images_of_a_batch_do_not_meet(size):
    model, x = make(WITH_ATTENTION_EVERYWHERE), picture(*size, batch=2)
    out = model(x)
    assert out.shape == x.shape and out.isfinite().all()
    torch.testing.assert_close(out[1:], model(x[1:]), rtol=1e-4, atol=1e-5)


def test_double_precision_agrees_with_single():
    model, x = make(TINY), picture(40, 33)
    torch.testing.assert_close(model(x), model.double()(x.double()).float(), rtol=1e-4, atol=1e-5)


def reference_attention(model, mixer, x, size, shift):
    """A shifted windowed attention of one mixer, window by window, in numpy's reflection and plain softmax."""
    qk, v = mixer.QK(x)[0].double(), mixer.V(x)[0].double()
    qkv = torch.cat([qk, v]).numpy()
    height, width = x.shape[-2:]
    dim, heads = v.shape[0], mixer.attn.heads
    after = [(-side - shift) % size for side in (height, width)]
    padded = np.pad(qkv, ((0, 0), (shift, after[0]), (shift, after[1])), mode="reflect")
    out = np.zeros((dim, *padded.shape[1:]))
    bias = mixer.attn.position_bias(size).double().numpy()
    for y in range(0, padded.shape[1], size):
        for left in range(0, padded.shape[2], size):
            tokens = padded[:, y : y + size, left : left + size].reshape(3, heads, dim // heads, size * size)
            q, k, value = tokens
            logits = np.einsum("hdn,hdm->hnm", q, k) * (dim // heads) ** -0.5 + bias
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            mixed = np.einsum("hnm,hdm->hdn", weights, value)
            out[:, y : y + size, left : left + size] = mixed.reshape(dim, size, size)
    return out[:, shift : shift + height, shift : shift + width]


@pytest.mark.parametrize("size", [8, 16])
@pytest.mark.parametrize("shifted", [False, True])
def test_windowed_attention_agrees_with_a_loop_over_windows(size, shifted):
    model = make(TINY).resize_windows(size, "interpolate")
    mixer = model.layer3.blocks[1 if shifted else 0].attn
    assert mixer.shifted is shifted
    x = torch.randn(1, 24, 21, 30, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = mixer._attend(torch.cat([mixer.QK(x), mixer.V(x)], 1))[0]
        reference = reference_attention(model, mixer, x, size, size // 2 if shifted else 0)
    np.testing.assert_allclose(ours.numpy(), reference, rtol=1e-4, atol=1e-5)


def test_the_native_window_again_changes_nothing():
    model, x = make(TINY), picture(40, 40)
    before = model(x)
    torch.testing.assert_close(model.resize_windows(8, "interpolate")(x), before)


def test_a_larger_window_keeps_the_bias_of_every_distance():
    model = make(TINY)
    site = attention_sites(model)[0]
    small, large = site.position_bias(8), site.position_bias(16)
    # The first token of a window sees the offsets of the smaller window's first token.
    torch.testing.assert_close(large[:, 0].view(-1, 16, 16)[:, :8, :8], small[:, 0].view(-1, 8, 8))


def test_dropping_the_bias_changes_the_output_and_no_bias_is_made():
    model, x = make(TINY), picture(40, 40)
    before = model(x)
    dropped = model.resize_windows(16, "drop")
    assert not any(site.has_position_bias for site in attention_sites(dropped))
    assert (dropped(x) - before).abs().max() > 1e-4


def test_nothing_of_the_size_of_a_window_squared_is_made_for_a_method_that_does_not_ask(monkeypatch):
    model = make(TINY).resize_windows(64, "interpolate")

    def asked(size):
        raise AssertionError("the bias was asked for")

    for site in attention_sites(model):
        monkeypatch.setattr(site, "position_bias", asked)
    plug(model, NystraAttention())(picture(64, 64))
    assert all(buffer.numel() < 64**4 for buffer in model.buffers())


def test_attentions_are_replaced_and_given_back():
    class Zero(Attention):
        def forward(self, q, k, v, window):
            return v * 0

    model, x = make(TINY), picture(24, 24)
    before = model(x)
    assert (plug(model, Zero())(x) - before).abs().max() > 1e-4
    assert len(attention_sites(model)) == 4
    torch.testing.assert_close(unplug(model)(x), before)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    save_file({"conv_first.weight": torch.zeros(1)}, tmp_path / "it.safetensors")
    with pytest.raises(UserError, match="not of the architecture DehazeFormer"):
        load_dehazeformer(str(tmp_path / "it.safetensors"))


@pytest.mark.parametrize(
    "wrong", [{"dims": (8, 16, 24, 12, 8)}, {"heads": (1, 3, 3, 1, 1)}, {"convolutions": ("Dense",) * 5}]
)
def test_specs_that_make_no_model_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(TINY, **wrong)
