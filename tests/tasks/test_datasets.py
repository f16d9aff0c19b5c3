"""Reading images: all of them 8-bit RGB in the end, and whatever cannot be is refused by name."""

import os

import numpy as np
import pytest
import skimage.data
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nystra_bench.errors import UserError
from nystra_bench.tasks.datasets import BUNDLED, central, image_size, motorcycle_depth, pictures, read_image
from nystra_bench.tasks.denoise import GaussianDenoise

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
    assert [p.id for p in pictures("bundled", limit=2)] == list(BUNDLED["bundled"][:2])


@pytest.mark.parametrize("option", ["limit", "crop"])
@pytest.mark.parametrize("value", [0, -3, 1.5, "4", True])
def test_limit_and_crop_are_whole_numbers(option, value):
    with pytest.raises(UserError, match=f"task.{option}={value}"):
        pictures("bundled", **{option: value})


def test_sizes_come_from_the_header_alone(tmp_path):
    """A file cut off after its header still tells its size, and that of the crop."""
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[:60])
    assert image_size(tmp_path / "a.png") == (20, 30)
    (picture,) = pictures(str(tmp_path), crop=24)
    assert picture.size() == (20, 24)
    with pytest.raises(UserError, match="a.png cannot be read"):
        picture.read()


@pytest.mark.parametrize("images", sorted(BUNDLED))
@pytest.mark.parametrize("crop", [None, 301])
def test_sizes_are_those_of_the_pixels(images, crop):
    for picture in pictures(images, crop=crop):
        assert picture.size() == picture.read().shape[:2]
        if picture.depth:
            assert picture.size() == picture.depth().shape


def test_hidden_files_are_no_images_and_broken_ones_are_named(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    (tmp_path / "._a.png").write_bytes(b"what macOS leaves in archives")
    assert [picture.id for picture in pictures(str(tmp_path))] == ["a"]
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="task.images: .*b.png cannot be read as an image"):
        [picture.read() for picture in pictures(str(tmp_path))]


@given(st.integers(1, 60), st.integers(1, 60), st.one_of(st.none(), st.integers(1, 70)))
def test_the_central_crop_is_within_the_image_and_in_its_middle(height, width, crop):
    for side, part in zip((height, width), central((height, width), crop), strict=True):
        assert part.stop - part.start == min(side, crop or side)
        assert 0 <= (side - part.stop) - part.start <= 1


def test_the_depth_of_the_stereo_pair_follows_its_calibration():
    """Middlebury 2014, Motorcycle: baseline 193.001 mm, focal length 994.978 pixels, principal points 31.086 apart."""
    disparity = skimage.data.stereo_motorcycle()[2].astype(np.float64)
    depth = motorcycle_depth()
    known = np.isfinite(disparity)
    assert depth.shape == disparity.shape == (500, 741) and depth.dtype == np.float32
    assert np.isfinite(depth).all() and depth.max() == 1 and depth.min() > 0.4
    nearest, farthest = 193.001 * 994.978 / (disparity[known].max() + 31.086), 5016.85  # mm
    assert depth[known].min() == pytest.approx(nearest / farthest, rel=1e-5)
    row, column = np.argwhere(known)[12345]
    assert depth[row, column] * farthest == pytest.approx(
        193.001 * 994.978 / (disparity[row, column] + 31.086), rel=1e-5
    )


def test_unknown_depths_are_the_farther_of_their_neighbours_in_the_row():
    disparity = skimage.data.stereo_motorcycle()[2]
    depth = motorcycle_depth()
    for y, x in np.argwhere(np.isinf(disparity))[::2000]:
        known = np.flatnonzero(np.isfinite(disparity[y]))
        sides = [depth[y, side] for side in (*known[known < x][-1:], *known[known > x][:1])]
        assert depth[y, x] == max(sides)


def test_names_that_are_no_text_get_ids_that_are(tmp_path):
    try:
        for name in (b"caf\xe4.png", b"caf\xe5.png"):
            Image.fromarray(PIXELS).save(tmp_path / os.fsdecode(name))
    except OSError:
        pytest.skip("the file system takes UTF-8 alone")
    task = GaussianDenoise(25.0, images=str(tmp_path))
    assert [sample.id for sample in task.samples()] == ["caf\\udce4", "caf\\udce5"]
    assert len(task.digest()) == 64
