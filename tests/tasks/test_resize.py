"""MATLAB's bicubic: the published low-resolution images to the last bit."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from shared_data import TESTSETS, needs_testsets

from nystra_bench.tasks.datasets import read_image
from nystra_bench.tasks.resize import bicubic

SET5 = TESTSETS / "Set5"
NAMES = ("baby", "bird", "butterfly", "head", "woman")


@needs_testsets
@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("name", NAMES)
def test_the_published_images_of_set5_to_the_last_bit(name, scale):
    clean = read_image(SET5 / "HR" / f"{name}.png")
    height, width = (side // scale * scale for side in clean.shape[:2])
    published = read_image(SET5 / "LR_bicubic" / f"X{scale}" / f"{name}x{scale}.png")
    made = bicubic(clean[:height, :width], Fraction(1, scale), via_double=scale == 8)
    np.testing.assert_array_equal(made, published)


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([2, 3, 4, 8]), st.booleans(), st.integers(0, 255))
@settings(max_examples=60, deadline=None)
def test_sizes_and_constant_images(height, width, scale, enlarge, value):
    factor = Fraction(scale) if enlarge else Fraction(1, scale)
    made = bicubic(np.full((height, width, 3), value, np.uint8), factor)
    assert made.shape == (-(-height * factor // 1), -(-width * factor // 1), 3)
    assert made.dtype == np.uint8
    assert (made == value).all()


@pytest.mark.parametrize("via_double", [False, True])
def test_the_order_of_the_passes_shows_only_where_it_is_rounded_between_them(via_double):
    image = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    turned = bicubic(image.swapaxes(0, 1), Fraction(1, 2), via_double).swapaxes(0, 1)
    difference = np.abs(bicubic(image, Fraction(1, 2), via_double).astype(int) - turned)
    assert difference.max() == (0 if via_double else 1)


@pytest.mark.parametrize("scale", [2, 4])
def test_enlarging_agrees_with_pillow_but_for_rounding(scale):
    """Pillow's kernel is the same (a = -0.5), its borders are others, and its columns come first.

    Values are of the middle range: where one pass overshoots and is clipped, the order of the passes shows.
    """
    image = np.random.default_rng(1).integers(70, 186, (20, 30, 3), dtype=np.uint8)
    theirs = np.asarray(Image.fromarray(image).resize((30 * scale, 20 * scale), Image.Resampling.BICUBIC))
    inner = slice(2 * scale, -2 * scale)
    difference = bicubic(image, Fraction(scale)).astype(int) - theirs
    assert np.abs(difference[inner, inner]).max() <= 1


def test_only_8_bit_images():
    with pytest.raises(ValueError, match="uint8"):
        bicubic(np.zeros((4, 4, 3), np.float32), 0.5)
