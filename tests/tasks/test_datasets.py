"""Reading images: all of them 8-bit RGB in the end, and whatever cannot be is refused by name."""

import numpy as np
import pytest
from PIL import Image

from nystra_bench.errors import UserError
from nystra_bench.tasks.datasets import BUNDLED, pictures, read_image

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def test_grey_and_palette_images_become_rgb(tmp_path):
    Image.fromarray(PIXELS[..., 0]).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), PIXELS[..., :1].repeat(3, -1))
    palette = Image.fromarray(PIXELS).quantize(8)
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_image(tmp_path / "palette.png"), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".tiff", ".PNG"])
def test_lossless_formats_come_back_exactly(tmp_path, suffix):
    Image.fromarray(PIXELS).save(tmp_path / f"image{suffix}")
    (picture,) = pictures(str(tmp_path))
    assert picture.id == "image"
    np.testing.assert_array_equal(picture.read(), PIXELS)


def test_a_tiff_of_16_bits_and_cmyk_and_transparency_are_refused(tmp_path):
    Image.fromarray(PIXELS.astype(np.uint16)[..., 0] << 8).save(tmp_path / "deep.tif")
    Image.fromarray(PIXELS).convert("CMYK").save(tmp_path / "print.jpg")
    Image.fromarray(PIXELS).quantize(8).save(tmp_path / "hole.png", transparency=0)
    for name, part in (("deep.tif", "16"), ("print.jpg", "CMYK"), ("hole.png", "transparency")):
        with pytest.raises(UserError, match=part) as caught:
            read_image(tmp_path / name)
        assert name in str(caught.value)


def test_images_of_one_name_and_two_endings_are_told_apart(tmp_path):
    for name in ("a.png", "a.bmp", "b.png"):
        Image.fromarray(PIXELS).save(tmp_path / name)
    assert [picture.id for picture in pictures(str(tmp_path))] == ["a.bmp", "a.png", "b"]


def test_a_crop_is_central_and_leaves_smaller_images_whole(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    (cropped,) = pictures(str(tmp_path), crop=10)
    np.testing.assert_array_equal(cropped.read(), PIXELS[5:15, 10:20])
    (wide,) = pictures(str(tmp_path), crop=25)
    np.testing.assert_array_equal(wide.read(), PIXELS[:, 2:27])
    (whole,) = pictures(str(tmp_path), crop=99)
    np.testing.assert_array_equal(whole.read(), PIXELS)


def test_the_bundled_images_are_8_bit_rgb():
    for picture in pictures("bundled"):
        pixels = picture.read()
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3 and pixels.shape[2] == 3
        assert min(pixels.shape[:2]) >= 256
    assert [p.id for p in pictures("bundled", limit=2)] == list(BUNDLED[:2])


@pytest.mark.parametrize("option", ["limit", "crop"])
@pytest.mark.parametrize("value", [0, -3, 1.5, "4", True])
def test_limit_and_crop_are_whole_numbers(option, value):
    with pytest.raises(UserError, match=f"task.{option}={value}"):
        pictures("bundled", **{option: value})
