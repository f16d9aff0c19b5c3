"""Blur, haze and noise against their formulas."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from nystra_bench.tasks.degradations import (
    add_camera_noise,
    blur,
    gaussian_kernel,
    generator,
    haze,
    motion_kernel,
    synthetic_depth,
    to_linear,
    to_srgb,
)

IMAGE = np.random.default_rng(0).random((40, 50, 3), dtype=np.float32)


def test_a_generator_depends_on_every_part_of_its_identity_and_on_nothing_else():
    first = generator("deblur", "a", 0).random(4)
    np.testing.assert_array_equal(generator("deblur", "a", 0).random(4), first)
    for other in (("dehaze", "a", 0), ("deblur", "b", 0), ("deblur", "a", 1), ("deblur", "a0"), ("deblura", 0)):
        assert not np.array_equal(generator(*other).random(4), first)


# --------------------------------------------------------------------------- light


def test_light_and_srgb_are_inverse_and_meet_the_standard():
    values = np.linspace(0, 1, 1001, dtype=np.float32)
    np.testing.assert_allclose(to_srgb(to_linear(values)), values, atol=2e-6)
    # IEC 61966-2-1: the middle of the stored range is 21.4 % of the light.
    assert to_linear(np.float32(0.5)) == pytest.approx(((0.5 + 0.055) / 1.055) ** 2.4, rel=1e-6)
    assert to_linear(np.float32(0.04)) == pytest.approx(0.04 / 12.92, rel=1e-6)


# --------------------------------------------------------------------------- blur


@pytest.mark.parametrize("sigma", [0.5, 1.3, 2.0, 4.0])
def test_gaussian_blur_is_scipys(sigma):
    expected = ndimage.gaussian_filter(IMAGE.astype(np.float64), (sigma, sigma, 0), mode="reflect", truncate=6)
    np.testing.assert_allclose(blur(IMAGE, gaussian_kernel(sigma), "srgb"), expected, atol=3e-4)  # cut off at 4 sigma


@pytest.mark.parametrize("size", [(40, 50), (1, 1), (5, 7), (3, 64)])
@pytest.mark.parametrize("length", [12, 60])
def test_blur_is_a_direct_convolution_with_a_reflected_border(size, length):
    image = generator("image", size).random((*size, 3), dtype=np.float32)
    kernel = motion_kernel(length, generator("test", length))
    expected = np.stack([ndimage.convolve(image[..., c].astype(np.float64), kernel, mode="reflect") for c in range(3)])
    made = blur(image, kernel, "srgb")
    assert made.shape == image.shape and made.dtype == np.float32
    np.testing.assert_allclose(made, expected.transpose(1, 2, 0), atol=5e-6)


def test_linear_light_is_blurred_as_light():
    kernel = gaussian_kernel(2.0)
    np.testing.assert_allclose(
        to_linear(blur(IMAGE, kernel, "linear")), blur(to_linear(IMAGE), kernel, "srgb"), atol=1e-5
    )
    # Half black and half white mix to half of the light, which is stored as 0.735, not as 0.5.
    stripes = np.zeros((40, 40, 3), np.float32)
    stripes[:, ::2] = 1
    assert blur(stripes, gaussian_kernel(3.0), "linear")[20, 20] == pytest.approx(0.7354, abs=2e-3)
    assert blur(stripes, gaussian_kernel(3.0), "srgb")[20, 20] == pytest.approx(0.5, abs=2e-3)


@given(st.floats(0.5, 100), st.integers(0, 10_000))
@settings(max_examples=150, deadline=None)
def test_motion_kernels_are_paths(length, seed):
    kernel = motion_kernel(length, generator(seed))
    side = kernel.shape[0]
    assert kernel.shape == (side, side) and side % 2 == 1 and kernel.dtype == np.float32
    assert kernel.sum() == pytest.approx(1, abs=1e-5)
    assert kernel.min() >= 0
    offsets = np.arange(side) - side // 2
    assert abs(kernel.sum(1) @ offsets) < 1e-3 and abs(kernel.sum(0) @ offsets) < 1e-3
    assert side // 2 <= length / 2 + 1  # no point of a path is farther from its centre than half of its length
    _, pieces = ndimage.label(kernel > 0, np.ones((3, 3)))
    assert pieces == 1


@given(st.floats(8, 100), st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_motion_kernels_blur(length, seed):
    """A path of half the longest length, however bent, spreads over several pixels."""
    kernel = motion_kernel(length, generator(seed))
    assert (kernel > 0.2 / length).sum() >= length / 4
    assert kernel.max() < 0.8


class StraightAhead:
    """Draws the top of each range and no bends: a straight path of the longest length."""

    def normal(self, mean, deviation, count):
        return np.zeros(count)

    def uniform(self, low, high):
        return high


@pytest.mark.parametrize("length", [8, 12, 60, 100])
def test_a_straight_path_is_a_line_of_even_brightness(length):
    kernel = motion_kernel(length, StraightAhead())
    line = kernel[kernel.shape[0] // 2]
    assert line.sum() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(line[3:-3], 1 / length, rtol=0.08)


@pytest.mark.parametrize("sigma", [0.25, 1, 7.5])
def test_gaussian_kernels_have_their_width(sigma):
    kernel = gaussian_kernel(sigma)
    radius = kernel.shape[0] // 2
    assert radius == max(1, math.ceil(4 * sigma))
    assert kernel.sum() == pytest.approx(1, abs=1e-5)
    np.testing.assert_array_equal(kernel, kernel.T)
    np.testing.assert_array_equal(kernel, kernel[::-1])
    if sigma >= 1:
        variance = kernel.sum(0).astype(np.float64) @ (np.arange(-radius, radius + 1) ** 2)
        assert math.sqrt(variance) == pytest.approx(sigma, rel=2e-3)


# --------------------------------------------------------------------------- haze


@pytest.mark.parametrize("airlight", [0.85, np.array([0.8, 0.85, 0.9])])
def test_haze_inverted_gives_the_clean_image(airlight):
    depth = synthetic_depth(40, 50, generator("haze"))
    hazy = haze(IMAGE, depth, 1.5, airlight)
    transmission = np.exp(-1.5 * depth.astype(np.float64))[..., None]
    np.testing.assert_allclose((hazy - airlight * (1 - transmission)) / transmission, IMAGE, atol=2e-6)
    assert hazy.dtype == np.float32
    assert hazy.min() >= 0 and hazy.max() <= 1


def test_haze_at_its_ends():
    depth = np.full((40, 50), 1.0, np.float32)
    np.testing.assert_array_equal(haze(IMAGE, 0 * depth, 2.0, 0.9), IMAGE)
    np.testing.assert_allclose(haze(IMAGE, 100 * depth, 2.0, 0.9), 0.9, atol=1e-6)


@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 1000))
@settings(max_examples=80, deadline=None)
def test_synthetic_depths_are_finite_distances(height, width, seed):
    depth = synthetic_depth(height, width, generator(seed))
    assert depth.shape == (height, width) and depth.dtype == np.float32
    assert depth.min() == pytest.approx(0.15, abs=1e-6) and depth.max() <= 1 + 1e-6
    if height * width > 1:
        assert depth.max() == pytest.approx(1, abs=1e-5)


def test_the_ground_recedes_upwards():
    depths = np.mean([synthetic_depth(64, 64, generator(seed)) for seed in range(100)], axis=0)
    assert depths[:8].mean() > depths[-8:].mean() + 0.2


# --------------------------------------------------------------------------- noise


def test_camera_noise_has_the_variance_of_its_light():
    shot, read = 0.004, 0.0001
    for level in (0.3, 0.6):
        image = np.full((200, 200, 3), level, np.float32)
        noisy = to_linear(add_camera_noise(image, shot, read, generator("camera", level)))
        light = float(to_linear(np.float32(level)))
        # 120,000 samples: the variance is known to 0.4 %; the few values below 0, which are cut off, add to that.
        assert noisy.var() == pytest.approx(shot * light + read, rel=0.03)
        assert noisy.mean() == pytest.approx(light, rel=0.01)
