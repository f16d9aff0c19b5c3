"""The bundled weights: what their cards say is true, they load by name, they denoise, and they stay small."""

import json
from pathlib import Path

import pytest
import torch

from nystra_bench import load_model
from nystra_bench.configuration import Catalogue, configs_folder, instantiate
from nystra_bench.metrics.psnr import Psnr
from nystra_bench.models.checkpoints import BUNDLED
from nystra_bench.tasks.denoise import GaussianDenoise

WEIGHTS = sorted(BUNDLED.glob("*.safetensors"))
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "testsets" / "CBSD68" / "gt"
DENOISERS = ["swinir_denoise_w8", "swinir_denoise_w16", "uformer_denoise"]


def gain(model, task):
    """PSNR in dB of the restored and of the degraded first image."""
    sample = next(iter(task.samples()))
    with torch.inference_mode():
        out = model(torch.from_numpy(sample.degraded).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    return [Psnr()(image, sample.clean, task.convention) for image in (out, task.as_output(sample.degraded))]


def test_all_bundled_files_together_stay_below_20_mb():
    assert WEIGHTS
    assert sum(file.stat().st_size for file in BUNDLED.iterdir() if file.is_file()) < 20e6


@pytest.mark.parametrize("weights", WEIGHTS, ids=lambda file: file.stem)
def test_the_model_card_describes_the_file_beside_it(weights):
    card = json.loads(weights.with_suffix(".json").read_text())
    model = load_model(weights.stem)
    spec = json.loads(json.dumps(model.spec.as_dict()))
    assert card["name"] == weights.stem
    assert card["spec"] == spec
    assert card["parameters"] == sum(p.numel() for p in model.parameters())
    needed = ("corpus", "seed", "steps", "hours", "hardware", "held_out_psnr_db", "licence", "recipe")
    assert all(card.get(name) is not None for name in needed)


@pytest.mark.parametrize("weights", WEIGHTS, ids=lambda file: file.stem)
def test_a_model_improves_the_images_of_its_own_task(weights):
    given = dict(json.loads(weights.with_suffix(".json").read_text())["task"])
    task = Catalogue([configs_folder()]).option("task", given.pop("name")) | given
    restored, degraded = gain(load_model(weights.stem), instantiate(task | {"crop": 128, "limit": 1}))
    assert restored > degraded + 1


@pytest.mark.parametrize("name", DENOISERS)
def test_a_denoiser_takes_most_of_the_noise_away(name):
    restored, degraded = gain(load_model(name), GaussianDenoise(25, crop=128, limit=1))
    assert degraded == pytest.approx(20.5, abs=0.7)
    assert restored > degraded + 8


@pytest.mark.parametrize("name", DENOISERS)
@pytest.mark.skipif(not SHARED.is_dir(), reason="the test set CBSD68 is not on this machine")
def test_a_denoiser_keeps_its_figure_on_a_test_image(name):
    restored, _ = gain(load_model(name), GaussianDenoise(25, images=str(SHARED), crop=256, limit=1))
    assert restored > 28


def test_the_windows_are_what_the_names_say():
    assert load_model("swinir_denoise_w8").window_size == 8
    assert load_model("swinir_denoise_w16").window_size == 16
