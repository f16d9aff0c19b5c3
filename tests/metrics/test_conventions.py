"""Conventions against scikit-image and PyTorch, and by properties that hold for any image."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.color import rgb2ycbcr
from skimage.io import imread
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from nystra_bench.errors import UserError
from nystra_bench.metrics import conventions
from nystra_bench.metrics.conventions import CONVENTIONS, DEHAZE, GREY8, RAW, RGB8, Convention, luma, pool
from nystra_bench.metrics.psnr import Psnr
from nystra_bench.metrics.ssim import Ssim

SET5 = Path(__file__).resolve().parents[3] / "shared" / "data" / "testsets" / "Set5" / "HR"
GAUSSIAN = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}

images = arrays(np.float32, st.tuples(st.integers(17, 24), st.integers(17, 24), st.just(3)), elements=st.floats(
    -0.5, 1.5, width=32))  # fmt: skip


def pair(height=61, width=47, seed=0, sigma=0.08):
    """A smooth clean image and a noisy one beyond [0, 1] here and there, float32."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 20
    clean = np.stack([0.5 + 0.5 * np.sin(x + y), 0.5 + 0.5 * np.cos(x - y), np.full_like(x, 0.3)], -1)
    noisy = clean + rng.normal(0, sigma, clean.shape)
    return noisy.astype(np.float32), clean.astype(np.float32)


def eight_bits(image):
    return np.round(np.clip(image.astype(np.float64), 0, 1) * 255).astype(np.uint8)


# ---------------------------------------------------------------- oracles


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_super_resolution_is_psnr_and_ssim_of_scikit_images_y(scale):
    noisy, clean = pair()
    inside = slice(scale, -scale)
    y_noisy, y_clean = (rgb2ycbcr(eight_bits(image))[inside, inside, 0] for image in (noisy, clean))
    convention = conventions.super_resolution(scale)
    expected = peak_signal_noise_ratio(y_clean, y_noisy, data_range=255)
    assert Psnr()(noisy, clean, convention) == pytest.approx(expected, abs=1e-9)
    expected = structural_similarity(y_clean, y_noisy, data_range=255, **GAUSSIAN)
    assert Ssim()(noisy, clean, convention) == pytest.approx(expected, abs=1e-9)


def test_y_runs_from_16_to_235_and_is_not_rounded():
    corners = np.array([[[0, 0, 0], [1, 1, 1]], [[1, 0, 0], [0, 0, 1]]], np.float64)
    assert luma(corners)[..., 0] * 255 == pytest.approx(np.array([[16, 235], [81.481, 40.966]]), abs=1e-9)
    eighths = Convention(colour="y").prepare(np.full((2, 2, 3), 0.5, np.float32))
    assert eighths[0, 0, 0] * 255 == pytest.approx(16 + 219 * 128 / 255, abs=1e-9)


@pytest.mark.parametrize(("height", "width"), [(61, 47), (400, 450), (641, 700), (655, 901)])
def test_dehaze_is_ssim_on_pytorchs_adaptive_average(height, width):
    noisy, clean = pair(height, width)
    factor = max(1, round(min(height, width) / 256))
    pooled = []
    for image in (noisy, clean):
        planes = torch.from_numpy(image.clip(0, 1)).double().permute(2, 0, 1)
        cells = torch.nn.functional.adaptive_avg_pool2d(planes, (int(height / factor), int(width / factor)))
        pooled.append(cells.permute(1, 2, 0).numpy())
    expected = structural_similarity(*pooled, channel_axis=-1, data_range=1, **GAUSSIAN)
    assert Ssim()(noisy, clean, DEHAZE) == pytest.approx(expected, abs=1e-9)
    expected = 10 * np.log10(1 / np.mean((noisy.clip(0, 1).astype(np.float64) - clean) ** 2))
    assert Psnr()(noisy, clean, DEHAZE) == pytest.approx(expected, abs=1e-6)


def test_ssim_is_the_mean_over_windows_that_lie_in_the_image():
    """As in pytorch-msssim, which DehazeFormer's evaluation uses: convolution without padding."""
    noisy, clean = (torch.from_numpy(i.clip(0, 1)).double().permute(2, 0, 1)[:, None] for i in pair())
    taps = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2))
    window = torch.outer(taps, taps)[None, None] / taps.sum() ** 2
    mean_of = lambda x: torch.nn.functional.conv2d(x, window)  # noqa: E731
    mu1, mu2 = mean_of(noisy), mean_of(clean)
    v1, v2, cov = (mean_of(a * b) - m for a, b, m in ((noisy, noisy, mu1**2), (clean, clean, mu2**2), (
        noisy, clean, mu1 * mu2)))  # fmt: skip
    c1, c2 = 0.01**2, 0.03**2
    expected = ((2 * mu1 * mu2 + c1) * (2 * cov + c2) / ((mu1**2 + mu2**2 + c1) * (v1 + v2 + c2))).mean().item()
    assert Ssim()(*pair(), DEHAZE) == pytest.approx(expected, abs=1e-7)


@pytest.mark.skipif(not SET5.is_dir(), reason="the shared test sets are absent")
@pytest.mark.parametrize(("scale", "psnr", "ssim"), [(2, 33.66, 0.9299), (3, 30.39, 0.8682), (4, 28.42, 0.8104)])
def test_published_figures_of_bicubic_on_set5(scale, psnr, ssim):
    """The first column of nearly every table of super-resolution (Kim et al. 2016, VDSR, table 2 for one)."""
    from nystra_bench.tasks.super_resolution import SuperResolution

    task = SuperResolution(scale, images=str(SET5))
    convention = conventions.super_resolution(scale)
    pairs = [(task.as_output(sample.degraded), sample.clean) for sample in task.samples()]
    assert len(pairs) == 5
    assert np.mean([Psnr()(*both, convention) for both in pairs]) == pytest.approx(psnr, abs=0.02)
    assert np.mean([Ssim()(*both, convention) for both in pairs]) == pytest.approx(ssim, abs=0.0015)


@pytest.mark.skipif(not SET5.is_dir(), reason="the shared test sets are absent")
def test_y_of_a_photograph_is_scikit_images():
    photograph = imread(SET5 / "butterfly.png")
    ours = Convention(colour="y").prepare(photograph.astype(np.float32) / 255)
    assert ours[..., 0] * 255 == pytest.approx(rgb2ycbcr(photograph)[..., 0], abs=1e-9)


# ---------------------------------------------------------------- properties


@settings(max_examples=30, deadline=None)
@given(images, st.sampled_from([c for c in CONVENTIONS.values() if c.colour != "grey"]), st.integers(0, 3))
def test_prepared_images_have_the_stated_form(image, convention, border):
    prepared = replace(convention, border=border).prepare(image)
    height, width, channels = image.shape
    kept = 1 if "y" in convention.colour.split() else channels
    assert prepared.shape == (height - 2 * border, width - 2 * border, kept)
    assert prepared.dtype == np.float64
    if convention.clipped:
        assert prepared.min() >= 0 and prepared.max() <= 1
    if convention.rounded and "y" not in convention.colour.split():
        assert np.abs(prepared * 255 - np.round(prepared * 255)).max() < 1e-9


@settings(max_examples=30, deadline=None)
@given(images, st.sampled_from([RGB8, DEHAZE, RAW]))
def test_preparing_twice_changes_nothing(image, convention):
    once = convention.prepare(image)
    assert np.abs(convention.prepare(once) - once).max() < 1e-12


@settings(max_examples=30, deadline=None)
@given(images, images, st.sampled_from([RGB8, DEHAZE, RAW, conventions.super_resolution(2)]))
def test_psnr_is_symmetric_and_ssim_at_most_one(a, b, convention):
    height, width = np.minimum(a.shape, b.shape)[:2]
    a, b = a[:height, :width], b[:height, :width]
    assert Psnr()(a, b, convention) == pytest.approx(Psnr()(b, a, convention), abs=1e-9)
    assert Ssim()(a, b, convention) <= 1 + 1e-9
    assert Psnr()(a, a, convention) == float("inf")
    assert Ssim()(a, a, convention) == pytest.approx(1, abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(300, 900), st.integers(300, 900), st.floats(0, 1))
def test_pooling_keeps_a_constant_and_brings_the_shorter_side_near_256(height, width, value):
    pooled = pool(np.full((height, width, 1), value))
    assert np.abs(pooled - value).max() < 1e-9
    assert 256 / 1.55 < min(pooled.shape[:2]) < 256 * 1.55


def test_small_images_are_not_pooled():
    image = np.random.default_rng(0).random((383, 500, 3))
    assert pool(image) is image
    assert pool(np.zeros((385, 500, 3))).shape == (192, 250, 3)
    assert pool(np.zeros((640, 640, 1))).shape == (320, 320, 1)  # round(2.5) is 2, as Python's and thus the authors'


def test_what_is_not_a_number_stays_so():
    noisy, clean = pair()
    noisy[30, 20, 1] = np.nan
    for convention in (RGB8, DEHAZE, conventions.super_resolution(2), RAW):
        assert np.isnan(Psnr()(noisy, clean, convention))


# ---------------------------------------------------------------- choosing


def test_a_metric_may_name_a_convention_and_keeps_the_tasks_border():
    noisy, clean = pair()
    named, task = Psnr(convention="rgb8"), conventions.super_resolution(4)
    assert named.convention(task) == replace(RGB8, border=4)
    inside = slice(4, -4)
    expected = peak_signal_noise_ratio(eight_bits(clean)[inside, inside], eight_bits(noisy)[inside, inside])
    assert named(noisy, clean, task) == pytest.approx(expected, abs=1e-9)
    assert named(noisy, clean, task) != Psnr()(noisy, clean, task)
    assert "sr_y" in Psnr().describe(task)["convention"]
    assert "rgb8: RGB, border of 4 pixels left out" in named.describe(task)["convention"]


def test_grey_images_stay_grey():
    noisy, clean = (image[..., :1] for image in pair())
    assert Psnr(convention="rgb8").convention(GREY8) == GREY8
    expected = peak_signal_noise_ratio(eight_bits(clean), eight_bits(noisy))
    assert Psnr()(noisy, clean, GREY8) == pytest.approx(expected, abs=1e-9)
    assert Ssim()(clean, clean, GREY8) == 1
    assert Psnr("exact")(noisy, clean, GREY8) > 0


def test_deviations_are_raw_whatever_the_task():
    for task in (RGB8, DEHAZE, conventions.super_resolution(2)):
        assert Psnr("exact").convention(task) == RAW
    assert str(RAW) == "raw: all channels, whole image, float"


def test_every_convention_says_all_in_words():
    said = {name: str(convention) for name, convention in CONVENTIONS.items()}
    assert all(text.startswith(f"{name}: ") for name, text in said.items())
    assert len(set(said.values())) == len(said)
    assert said["dehazeformer"] == (
        "dehazeformer: RGB, whole image, clipped, float; SSIM after average pooling by round(shorter side / 256)"
    )
    assert "BT.601 (16 to 235" in said["sr_y"] and "border of 3 pixels" in str(conventions.super_resolution(3))


def test_mistakes_are_named():
    accepted = "accepted are rgb, y, y or grey, grey of rgb, grey, any"
    with pytest.raises(ValueError, match=f"colour=cmyk is unknown: {accepted}"):
        Convention(colour="cmyk")
    with pytest.raises(ValueError, match="border=-1"):
        Convention(border=-1)
    with pytest.raises(ValueError, match="convention=best is unknown: accepted are null, raw, rgb8"):
        Psnr(convention="best")
    with pytest.raises(ValueError, match="sr_y needs images of 3 channels, not 1"):
        conventions.SR_Y.prepare(np.zeros((9, 9, 1)))
    with pytest.raises(UserError, match="a border of 4 pixels leaves nothing of an image of 20x8"):
        Convention(border=4).prepare(np.zeros((8, 20, 3)))
    with pytest.raises(ValueError, match="cannot be compared"):
        Psnr()(np.zeros((8, 8, 3)), np.zeros((8, 8, 1)), RAW)
