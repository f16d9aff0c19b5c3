"""FIWHN: the released state dict where it is at hand, and its strips against attention computed strip by strip."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shared_data import TESTSETS

from nystra_bench.attention.base import Attention
from nystra_bench.attention.exact import ExactAttention
from nystra_bench.attention.identity import IdentityAttention
from nystra_bench.attention.nystra import NystraAttention
from nystra_bench.errors import UserError
from nystra_bench.models.fiwhn import FIWHN, FIWHNSpec, StripAttention, infer_spec, load_fiwhn, shuffle
from nystra_bench.models.windows import attention_sites, plug

RELEASED = Path(__file__).resolve().parents[3] / "shared" / "weights" / "fiwhn" / "model_best_x4.pt"
needs_weights = pytest.mark.skipif(not RELEASED.is_file(), reason=f"needs {RELEASED}")


@pytest.fixture
def model(randomised):
    return randomised(FIWHN(FIWHNSpec(scale=2)))


def by_hand(site: StripAttention, x: torch.Tensor) -> torch.Tensor:
    """The same token by token: each attends to those of its own strip of the raster order."""
    batch, tokens, _ = x.shape
    q, k, v = site.qkv(site.reduce(x)).view(batch, tokens, 3, site.heads, -1).unbind(2)
    out = torch.empty_like(v)
    for token in range(tokens):
        length = tokens // 4
        strip = [other for other in range(tokens) if length and other // length == token // length]
        strip = strip or list(range(tokens))
        weights = torch.einsum("bhd,bnhd->bhn", q[:, token], k[:, strip]).mul(32**-0.5).softmax(-1)
        out[:, token] = torch.einsum("bhn,bnhd->bhd", weights, v[:, strip])
    return site.proj(out.flatten(2))


@pytest.mark.parametrize("height, width", [(8, 3), (4, 5), (6, 7), (5, 3), (1, 1), (3, 1)])
@torch.inference_mode()
def test_each_token_attends_to_its_own_quarter_of_the_raster_order(randomised, height, width):
    site = randomised(StripAttention(288, 9))
    x = torch.randn(2, height * width, 288, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(site(x, height, width), by_hand(site, x), rtol=1e-4, atol=1e-5)


def test_a_shuffle_interleaves_the_channels_of_its_groups():
    x = torch.arange(6.0).view(1, 6, 1, 1)
    assert shuffle(x, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5]


class Seen(Attention):
    def __init__(self):
        super().__init__()
        self.windows = []

    def forward(self, q, k, v, window):
        self.windows.append((window.height, window.width, q.shape[0]))
        assert window.bias() is None and window.regions() is None
        return ExactAttention()(q, k, v, window)


@pytest.mark.parametrize("size, window", [((8, 6), (2, 6)), ((6, 6), (1, 9)), ((5, 5), (1, 6))])
@torch.inference_mode()
def test_a_strip_is_a_rectangle_where_4_divides_the_height(model, size, window):
    seen = plug(model, Seen()).attention1.atten.attention
    model(torch.rand(2, 3, *size))
    assert seen.windows == 2 * [(*window, 2 * 4)]
    assert model.windows(model.window_size, *size) == [window]


def test_it_takes_no_other_windows(model):
    with pytest.raises(UserError, match="accepted is native"):
        model.resize_windows(8, "interpolate")
    assert model.resize_windows(model.window_size, "drop") is model


@torch.inference_mode()
def test_methods_with_landmarks_work_in_flat_strips_too(model):
    image = torch.rand(1, 3, 9, 11)
    exact = model(image)
    assert not torch.equal(plug(model, NystraAttention(landmarks=4, iterations=2))(image), exact)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_scale_is_read_off_the_state_dict(scale):
    assert infer_spec(FIWHN(FIWHNSpec(scale=scale)).state_dict()) == FIWHNSpec(scale=scale)


def test_an_image_in_0_to_1_goes_in_and_its_brightness_comes_out(model):
    """With all else zero, what is left is the mean that is taken off and added again."""
    for name, parameter in model.named_parameters():
        if not name.startswith(("Sub_mean", "Add_mean")):
            parameter.zero_()
    fresh = FIWHN(model.spec)
    model.Add_mean.load_state_dict(fresh.Add_mean.state_dict())
    out = model(torch.rand(1, 3, 4, 4))
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.tensor([0.4488, 0.4371, 0.4040]))


# ------------------------------------------------------------------ the released weights


@needs_weights
def test_another_size_than_expected_is_told():
    with pytest.raises(UserError, match="scale=4"):
        load_fiwhn(str(RELEASED), expect={"scale": 2})


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"), dtype=np.float32) / 255


def luma(image: np.ndarray) -> np.ndarray:
    """Y of BT.601 of the image rounded to 8 bits, without the outermost 4 pixels."""
    image = np.round(np.clip(image, 0, 1).astype(np.float64) * 255)[4:-4, 4:-4]
    return image @ np.array([65.481, 128.553, 24.966]) / 255 + 16


@needs_weights
@pytest.mark.skipif(not TESTSETS.is_dir(), reason="needs shared/data/testsets")
@torch.inference_mode()
def test_the_released_model_restores_as_published():
    """The butterfly of Set5, ×4, in dB; an attention that passes v through is 3 dB worse."""
    model = load_fiwhn(str(RELEASED))
    assert len(attention_sites(model)) == 2
    low = pixels(TESTSETS / "Set5" / "LR_bicubic" / "X4" / "butterflyx4.png")
    truth = luma(pixels(TESTSETS / "Set5" / "HR" / "butterfly.png"))

    def psnr() -> float:
        out = model(torch.from_numpy(low).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
        return 10 * math.log10(255**2 / ((luma(out) - truth) ** 2).mean())

    assert psnr() == pytest.approx(28.865, abs=0.005)
    plug(model, IdentityAttention())
    assert psnr() < 26.5
