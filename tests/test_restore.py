"""``python -m nystra_bench.restore``, on a bundled model and small images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from nystra_bench.api import load_model
from nystra_bench.restore import main

MODEL = ["--model", "swinir_denoise_w8"]


@pytest.fixture
def folder(tmp_path):
    """Two pictures, one of which is upright only as EXIF says."""
    folder = tmp_path / "in"
    folder.mkdir()
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 256, (12, 17, 3), dtype=np.uint8)).save(folder / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(generator.integers(0, 256, (9, 14, 3), dtype=np.uint8)).save(folder / "b.png", exif=exif)
    return folder


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path))


@torch.inference_mode()
def expected(path) -> np.ndarray:
    image = torch.from_numpy(pixels(path).astype(np.float32) / 255).permute(2, 0, 1)[None]
    return np.round(load_model("swinir_denoise_w8")(image)[0].permute(1, 2, 0).clip(0, 1).numpy() * 255)


def test_images_of_a_folder_are_restored_as_the_model_does(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([str(folder), *MODEL, "--attention", "exact", "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["a.png", "b.png"]
    assert np.abs(pixels(out / "a.png") - expected(folder / "a.png")).max() <= 1
    assert pixels(out / "b.png").shape == (14, 9, 3)
    assert capsys.readouterr().out.count(" s\n") == 2


def test_compare_puts_both_on_one_page(folder, tmp_path):
    out = tmp_path / "out"
    words = [str(folder / "a.png"), *MODEL, "--attention", "nystra_plus(landmarks=4)", "--out", str(out), "--compare"]
    assert main(words) == 0
    page = (out / "compare.html").read_text()
    assert page.count("<img") == 4 and "nystra_plus(landmarks=4)" in page and " dB" in page and "http" not in page


def test_tiles_give_nearly_the_same(tmp_path):
    y, x = np.mgrid[:96, :128]
    Image.fromarray(np.stack([y, x, y + x], -1).astype(np.uint8)).save(tmp_path / "a.png")
    for tile in ("0", "80"):
        assert main([str(tmp_path / "a.png"), *MODEL, "--tile", tile, "--out", str(tmp_path / tile)]) == 0
    whole, tiled = (pixels(tmp_path / tile / "a.png").astype(int) for tile in ("0", "80"))
    assert whole.shape == tiled.shape and np.abs(whole - tiled).mean() < 2


@pytest.mark.parametrize(
    "words, told",
    [
        (["nowhere.png", *MODEL, "--out", "OUT"], "IMAGES=nowhere.png is not there"),
        (["IN", *MODEL, "--out", "IN"], "would write over"),
        (["IN", "--model", "nothing", "--out", "OUT"], "nothing is no file"),
        (["IN", *MODEL, "--attention", "nystra2", "--out", "OUT"], "nystra2"),
        (["IN", *MODEL, "--tile", "5", "--out", "OUT"], "--tile=5 does not fit"),
        (["IN", "IN", *MODEL, "--out", "OUT"], "accepted are images of different names"),
        (["IN"], "see python -m nystra_bench.restore --help"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(folder, tmp_path, capsys, words, told):
    places = {"IN": str(folder), "OUT": str(tmp_path / "out")}
    assert main([places.get(word, word) for word in words]) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and told in said[0]
    assert not (tmp_path / "out").exists()
