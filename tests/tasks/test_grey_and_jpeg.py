"""Grey denoising and JPEG artefacts in the conventions of SwinIR's test code, and grey images in super-resolution."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from nystra_bench.configuration import Catalogue, configs_folder, instantiate
from nystra_bench.errors import UserError
from nystra_bench.metrics.conventions import GREY8, RGB8, SR_Y, SR_Y_MATLAB, super_resolution
from nystra_bench.metrics.psnr import Psnr
from nystra_bench.metrics.ssim import Ssim
from nystra_bench.models import load_model
from nystra_bench.models.swinir import SwinIR, SwinIRSpec
from nystra_bench.tasks.denoise import GreyDenoise
from nystra_bench.tasks.jpeg import GreyJpeg, Jpeg
from nystra_bench.tasks.super_resolution import SuperResolution

RANDOM = np.random.default_rng(0)
COLOUR = RANDOM.integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
GREY = COLOUR[..., 0]


@pytest.fixture
def images(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "colour.png")
    Image.fromarray(GREY).save(tmp_path / "grey.png")
    return str(tmp_path)


def samples(task):
    return {sample.id: sample for sample in task.samples()}


def levels(image):
    return np.round(image * 255).astype(int)


# --------------------------------------------------------------------------- the images


def test_colour_is_read_as_grey_for_denoising(images):
    """By the weights of BT.601 in the full range; Pillow's own conversion is within a step of rounding."""
    found = samples(GreyDenoise(25.0, images=images))
    expected = np.asarray(Image.fromarray(COLOUR).convert("L"))[..., None].astype(int)
    assert np.abs(levels(found["colour"].clean) - expected).max() <= 1
    np.testing.assert_array_equal(levels(found["grey"].clean)[..., 0], GREY)


def test_the_noise_of_a_grey_image_has_the_given_strength_and_is_not_clipped(tmp_path):
    Image.fromarray(np.zeros((200, 200), np.uint8)).save(tmp_path / "a.png")
    (sample,) = GreyDenoise(50.0, images=str(tmp_path)).samples()
    noise = (sample.degraded - sample.clean) * 255
    assert noise.std() == pytest.approx(50, rel=0.02) and noise.min() < -100
    assert sample.degraded.shape == (200, 200, 1) and sample.degraded.dtype == np.float32


def test_of_colour_images_grey_jpeg_takes_the_rounded_luma_and_grey_ones_as_they_are(images):
    found = samples(GreyJpeg(40, images=images))
    luma = COLOUR @ np.array([65.481, 128.553, 24.966]) / 255 + 16
    np.testing.assert_array_equal(levels(found["colour"].clean)[..., 0], np.round(luma))
    np.testing.assert_array_equal(levels(found["grey"].clean)[..., 0], GREY)


@pytest.mark.parametrize("quality", [1, 10, 40, 100])
@pytest.mark.parametrize("task", [Jpeg, GreyJpeg])
def test_the_degraded_image_is_what_a_jpeg_file_holds(images, tmp_path, task, quality):
    for sample in task(quality, images=images).samples():
        clean = levels(sample.clean).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(clean.squeeze()).save(file, "JPEG", quality=quality)
        np.testing.assert_array_equal(levels(sample.degraded).squeeze(), np.asarray(Image.open(file)))
        np.testing.assert_array_equal(sample.degraded, levels(sample.degraded).astype(np.float32) / 255)


def tables_of(quality):
    """The scaled tables of the standard (ITU T.81, K.1), as libjpeg scales them."""
    first_row = np.array([16, 11, 10, 16, 24, 40, 51, 61])
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((first_row * scale + 50) // 100).clip(1, 255)


@pytest.mark.parametrize("quality", [10, 20, 30, 40])
def test_quality_means_what_it_means_to_libjpeg(images, quality, monkeypatch):
    kept = []
    original = Image.Image.save

    def save(self, file, *arguments, **options):
        original(self, file, *arguments, **options)
        kept.append(Image.open(io.BytesIO(file.getvalue())))

    monkeypatch.setattr(Image.Image, "save", save)
    list(Jpeg(quality, images=images, limit=1).samples())
    (encoded,) = kept
    np.testing.assert_array_equal(encoded.quantization[0][:8], tables_of(quality))
    assert encoded.layer[0][1:3] == (2, 2) and encoded.layer[1][1:3] == (1, 1)  # colour at half the resolution
    assert not encoded.info.get("progressive")


@pytest.mark.parametrize("task", [Jpeg, GreyJpeg])
@pytest.mark.parametrize("quality", [0, 101, 40.0, "40", True])
def test_a_quality_that_there_is_not(task, quality):
    with pytest.raises(UserError, match=f"task.quality={quality} is out of range: accepted are whole numbers from 1"):
        task(quality)


def test_the_conventions_are_those_of_swinirs_test_code():
    assert GreyDenoise(25.0).convention is GreyJpeg(40).convention is GREY8
    assert Jpeg(40).convention is RGB8
    assert GreyDenoise(25.0).channels == GreyJpeg(40).channels == 1 and Jpeg(40).channels == 3


# --------------------------------------------------------------------------- the models


TINY = {"dim": 8, "depths": (2,), "heads": (2,), "mlp_ratio": 1.0}
MODELS = {
    "denoise_grey": SwinIRSpec(channels=1, out_channels=1, window=8, **TINY),
    "jpeg_grey": SwinIRSpec(channels=1, out_channels=1, window=7, image_range=255.0, **TINY),
    "jpeg": SwinIRSpec(window=7, image_range=255.0, **TINY),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_the_released_shape_takes_the_tasks_images(images, tmp_path, name):
    file = tmp_path / "weights.safetensors"
    save_file(SwinIR(MODELS[name]).state_dict(), file)
    model = load_model("swinir", file)
    assert model.spec == MODELS[name]
    task = instantiate(Catalogue([configs_folder()]).option("task", name) | {"images": images})
    assert (model.channels, model.scale) == (task.channels, task.scale)
    for sample in task.samples():
        output = model(torch.from_numpy(sample.degraded).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
        assert output.shape == sample.clean.shape
        for metric in (Psnr(), Ssim()):
            assert np.isfinite(metric(output, sample.clean, task.convention))


RELEASED = {"swinir_m_gray_denoise25": "denoise_grey", "swinir_m_gray_jpeg40": "jpeg_grey", "swinir_m_jpeg40": "jpeg"}


@pytest.mark.parametrize("name, task", RELEASED.items())
def test_the_options_of_the_released_models_expect_what_their_task_has(name, task):
    catalogue = Catalogue([configs_folder()])
    option, wanted = catalogue.option("model", name), instantiate(catalogue.option("task", task))
    assert option["weights"] in catalogue.names("download")
    assert option["expect"]["channels"] == wanted.channels and option["expect"]["scale"] == wanted.scale
    assert option["expect"].get("window", 8) == MODELS[task].window


# --------------------------------------------------------------------------- grey images in super-resolution


def matlab_psnr(output, target, border):
    """As Evaluate_PSNR_SSIM.m and its like score a grey image: its 8-bit values, without conversion."""
    a, b = (levels(x)[border:-border, border:-border, 0].astype(float) for x in (output, target))
    return 10 * np.log10(255**2 / np.mean((a - b) ** 2))


def test_a_grey_image_is_scored_as_colour_by_swinirs_convention_and_as_it_is_by_matlabs(images):
    clean = (GREY / 255).astype(np.float32)[..., None].repeat(3, -1)
    noisy = (levels((clean + RANDOM.normal(0, 0.05, (*GREY.shape, 1))).clip(0, 1)) / 255).astype(np.float32)
    as_colour, as_is = (Psnr()(noisy, clean, super_resolution(2, grey)) for grey in ("colour", "as_is"))
    assert as_is == pytest.approx(matlab_psnr(noisy, clean, 2), abs=1e-9)
    assert as_colour - as_is == pytest.approx(20 * np.log10(255 / 219), abs=1e-6)  # 1.32 dB
    assert Ssim()(clean, clean, super_resolution(2, "as_is")) == pytest.approx(1)


def test_a_colour_image_is_scored_alike_by_both():
    clean = (COLOUR / 255).astype(np.float32)
    noisy = clean + RANDOM.normal(0, 0.05, clean.shape).astype(np.float32)
    assert Psnr()(noisy, clean, SR_Y) == Psnr()(noisy, clean, SR_Y_MATLAB)
    assert Ssim()(noisy, clean, SR_Y) == Ssim()(noisy, clean, SR_Y_MATLAB)


def test_a_colour_output_for_a_grey_image_is_compared_in_grey():
    """What decides is the clean image; the output of a colour model is seldom grey to the last bit."""
    clean = (GREY / 255).astype(np.float32)[..., None].repeat(3, -1)
    tinted = clean.copy()
    tinted[..., 0] += 4 / 255
    rounded = levels(tinted.clip(0, 1)) @ np.array([0.299, 0.587, 0.114])
    expected = 10 * np.log10(255**2 / np.mean((rounded - GREY) ** 2))
    assert Psnr()(tinted, clean, SR_Y_MATLAB) == pytest.approx(expected, abs=1e-9)


def test_the_choice_is_an_option_that_leaves_other_results_alone(images):
    usual, matlabs = SuperResolution(2, images=images), SuperResolution(2, images=images, grey="as_is")
    assert usual.identity() == {"scale": 2}
    assert matlabs.identity() == {"scale": 2, "grey": "as_is"} and matlabs.convention.name == "sr_y_matlab"
    with pytest.raises(UserError, match="task.grey=gray is unknown.*colour, as_is"):
        SuperResolution(2, images=images, grey="gray")
