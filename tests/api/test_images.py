"""Images as users have them, and what is said of those that do not fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from nystra_bench import compare
from nystra_bench.api.images import to_input
from nystra_bench.errors import UserError
from nystra_bench.models.swinir import SwinIR, SwinIRSpec


def test_all_forms_of_an_image_are_the_same_input(model, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    planes = torch.from_numpy(pixels).permute(2, 0, 1)
    forms = [pixels, pixels / 255, (pixels / 255).astype(np.float32), planes, planes[None] / 255]
    forms += [tmp_path / "image.png", str(tmp_path / "image.png"), (planes / 255).double().requires_grad_()]
    for form in forms:
        x = to_input(form, model)
        assert x.shape == (1, 3, 12, 10) and x.dtype == torch.float32
        assert torch.allclose(x, planes[None] / 255, atol=1e-6)


def test_models_of_one_channel_take_grey_images():
    grey = SwinIR(SwinIRSpec(channels=1, out_channels=1, dim=8, depths=(1,), heads=(2,), window=8)).eval()
    image = np.linspace(0, 1, 256).reshape(16, 16)
    assert to_input(image, grey).shape == to_input(image[..., None], grey).shape == (1, 1, 16, 16)
    assert compare(grey, image, "identity", timing=None).figure() is not None
    with pytest.raises(UserError, match=r"\(8, 8, 3\) does not fit a model of 1 channels: accepted are"):
        to_input(np.zeros((8, 8, 3)), grey)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((3, 16, 16)), r"image of the shape \(3, 16, 16\) does not fit a model of 3 channels: accepted are"),
        (np.zeros((16, 16)), r"image of the shape \(16, 16\)"),
        (np.zeros((2, 16, 16, 3)), r"image of the shape \(2, 16, 16, 3\)"),
        (torch.zeros(2, 3, 16, 16), r"image of the shape \(2, 3, 16, 16\)"),
        (torch.zeros(16, 16, 3), r"image of the shape \(16, 16, 3\)"),
        (np.zeros((0, 16, 3)), r"image of the shape \(0, 16, 3\)"),
        (np.full((16, 16, 3), 200.0), "image has values up to 200: accepted are"),
        (np.full((16, 16, 3), np.nan), "image has values up to nan: accepted are"),
        (np.zeros((16, 16, 3), int), "image is of the type int64: accepted are"),
        ("nowhere.png", "image=nowhere.png is no file: accepted are"),
        (None, "image is of the type NoneType: accepted are"),
    ],
)
def test_images_that_do_not_fit(model, image, said):
    with pytest.raises(UserError, match=said):
        compare(model, image, timing=None)


def test_a_broken_image_file(model, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"image: .*broken\.png cannot be read as an image"):
        compare(model, tmp_path / "broken.png", timing=None)
