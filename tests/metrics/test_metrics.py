"""Metrics against scikit-image on 8-bit arrays, and deviations against sums done by hand."""

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from nystra_bench.errors import UserError
from nystra_bench.metrics.base import RAW, Convention
from nystra_bench.metrics.deviation import MaximumError, RelativeRms
from nystra_bench.metrics.psnr import Psnr
from nystra_bench.metrics.ssim import STRIP, Ssim

EIGHT_BITS = Convention("rgb8")


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    clean = rng.integers(0, 256, (37, 41, 3), dtype=np.uint8)
    noisy = np.clip(clean + rng.normal(0, 20, clean.shape), 0, 255).astype(np.uint8)
    return noisy, clean


def unit(image):
    return image.astype(np.float32) / 255


def test_psnr_is_scikit_images_on_8_bits(pair):
    expected = peak_signal_noise_ratio(pair[1], pair[0], data_range=255)
    assert Psnr()(unit(pair[0]), unit(pair[1]), EIGHT_BITS) == pytest.approx(expected, rel=1e-9)


def test_ssim_is_scikit_images_on_8_bits(pair):
    expected = structural_similarity(
        pair[1], pair[0], channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
    )
    assert Ssim()(unit(pair[0]), unit(pair[1]), EIGHT_BITS) == pytest.approx(expected, rel=1e-9)


def test_against_the_truth_the_output_is_clipped_and_rounded(pair):
    clean = unit(pair[1])
    nearly = clean + np.float32(0.4 / 255)
    assert Psnr()(nearly, clean, EIGHT_BITS) == float("inf")
    assert Psnr("exact")(nearly, clean, EIGHT_BITS) == pytest.approx(20 * np.log10(255 / 0.4), abs=0.01)
    beyond = np.where(clean == 1, np.float32(7), clean)
    assert Psnr()(beyond, clean, EIGHT_BITS) == float("inf")
    assert Psnr("exact")(beyond, clean, EIGHT_BITS) < 40


def test_psnr_by_hand():
    target = np.zeros((2, 2, 3), np.float32)
    assert Psnr("native")(target + np.float32(0.1), target, EIGHT_BITS) == pytest.approx(20, abs=1e-5)


def test_deviations_by_hand():
    target = np.full((2, 2, 1), 2.0, np.float32)
    output = target.copy()
    output[0, 0, 0] += 1
    output[1, 1, 0] -= 2
    assert RelativeRms("exact")(output, target, EIGHT_BITS) == pytest.approx(np.sqrt((1 + 4) / 16))
    assert MaximumError("exact")(output, target, EIGHT_BITS) == 2
    assert RelativeRms("exact")(target, target, EIGHT_BITS) == 0
    assert Ssim("exact").higher_is_better and not RelativeRms("exact").higher_is_better


def test_a_border_is_left_out_of_the_truth_alone(pair):
    clean = unit(pair[1])
    framed = clean.copy()
    framed[:2], framed[-2:], framed[:, :2], framed[:, -2:] = 0.5, 0.5, 0.5, 0.5
    assert Psnr()(framed, clean, Convention(border=2)) == float("inf")
    assert Psnr()(framed, clean, Convention(border=1)) < 60
    assert Psnr("exact")(framed, clean, Convention(border=2)) < 60


def test_what_is_not_a_number_stays_so(pair):
    output = unit(pair[0])
    output[3, 3, 0] = np.nan
    for metric in (Psnr(), Ssim(), RelativeRms("exact"), MaximumError("exact")):
        assert np.isnan(metric(output, unit(pair[1]), EIGHT_BITS))


def test_descriptions_name_the_convention():
    assert Psnr().describe(EIGHT_BITS) == {
        "unit": "dB",
        "higher_is_better": True,
        "convention": "against the clean image; rgb8: RGB, whole image, clipped and rounded to 8 bits",
    }
    assert "float" in Psnr("native").describe(EIGHT_BITS)["convention"]
    assert not RAW.rounded
    assert "border of 4 pixels" in str(Convention(border=4))


def test_mistakes_are_named(pair):
    with pytest.raises(ValueError, match="against=nobody is unknown: accepted are truth, exact, native"):
        Psnr("nobody")
    with pytest.raises(UserError, match="metrics=ssim"):
        Ssim()(np.zeros((8, 30, 3)), np.zeros((8, 30, 3)), EIGHT_BITS)


def test_ssim_of_a_tall_image_is_that_of_the_whole_image():
    rng = np.random.default_rng(0)
    clean = rng.random((2 * STRIP + 37, 24, 3))
    noisy = clean + rng.normal(0, 0.1, clean.shape)
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    whole = structural_similarity(clean, noisy, channel_axis=-1, **settings)
    assert Ssim().compare(noisy, clean) == pytest.approx(whole, rel=1e-12)
