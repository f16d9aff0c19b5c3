"""The training script on a tiny model and made-up photographs: it resumes where it stood, and exports what loads."""

import json
from pathlib import Path

import numpy as np
import pytest
import script_modules
import torch
from omegaconf import OmegaConf
from PIL import Image

from nystra_bench.errors import UserError
from nystra_bench.models.checkpoints import read_state_dict
from nystra_bench.models.swinir import load_swinir

ROOT = Path(__file__).resolve().parents[2]
TINY = ["model.spec.dim=8", "model.spec.depths=[2]", "model.spec.heads=[2]", "patch=16", "batch=2", "steps=4"]


@pytest.fixture(scope="module")
def train():
    return script_modules.script("train")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def run(train, photos, out, *more):
    recipe = ROOT / "scripts" / "recipes" / "swinir_denoise_w8.yaml"
    train.main([str(recipe), *TINY, "--photos", str(photos), "--out", str(out), "--device", "cpu", *more])
    return out / "swinir_denoise_w8.safetensors"


def test_a_stopped_run_ends_with_the_weights_of_an_undisturbed_one(train, photos, tmp_path):
    whole = run(train, photos, tmp_path / "whole")
    halves = run(train, photos, tmp_path / "halves", "--until", "2")
    assert not halves.exists()
    halves = run(train, photos, tmp_path / "halves")
    a, b = read_state_dict(whole), read_state_dict(halves)
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_exported_weights_load_and_the_card_tells_how_they_were_made(train, photos, tmp_path):
    weights = run(train, photos, tmp_path / "run")
    model = load_swinir(str(weights))
    card = json.loads(weights.with_suffix(".json").read_text())
    assert model.spec.dim == card["spec"]["dim"] == 8
    assert card["steps"] == 4
    assert card["photographs"] == {"training": 3, "held_out": 1}
    assert card["parameters"] == sum(p.numel() for p in model.parameters())
    assert {"corpus", "seed", "hours", "hardware", "held_out_psnr_db"} <= set(card)


def test_a_run_can_start_from_weights_of_another_window(train, photos, tmp_path):
    start = run(train, photos, tmp_path / "start")
    more = [f"model.start_from={start}", "model.spec.window=16"]
    resized = load_swinir(str(run(train, photos, tmp_path / "resized", *more)))
    assert resized.window_size == 16


RECIPES = sorted((ROOT / "scripts" / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_batches_depend_on_the_seed_and_the_step_alone(train, path):
    recipe = OmegaConf.merge(OmegaConf.load(path), {"batch": 2})
    task = train.make_task(recipe)
    photos = [np.random.default_rng(1).integers(0, 256, (300, 300, 3), dtype=np.uint8)]
    first, again = train.batch(photos, task, recipe, 7), train.batch(photos, task, recipe, 7)
    other = train.batch(photos, task, recipe, 8)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    degraded, clean = first
    assert clean.shape == (2, 3, recipe.patch, recipe.patch)
    assert degraded.shape[-1] * task.scale == recipe.patch


def test_denoising_batches_have_the_recipes_noise(train):
    recipe = OmegaConf.load(ROOT / "scripts" / "recipes" / "swinir_denoise_w8.yaml")
    photos = [np.random.default_rng(1).integers(0, 256, (80, 80, 3), dtype=np.uint8)]
    degraded, clean = train.batch(photos, train.make_task(recipe), recipe, 7)
    assert (degraded - clean).std().item() * 255 == pytest.approx(25, rel=0.02)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_make_models_of_their_tasks(train, path):
    recipe = OmegaConf.merge(OmegaConf.load(path), {"model": {"start_from": None}})
    model, task = train.build_model(recipe), train.make_task(recipe)
    assert (model.scale, model.channels) == (task.scale, task.channels)


def test_weights_are_measured_as_they_are_written(train, photos, tmp_path):
    weights = run(train, photos, tmp_path / "run", "weights=float16")
    state = read_state_dict(weights)
    assert state["conv_first.weight"].dtype == torch.float16
    assert load_swinir(str(weights)).conv_first.weight.dtype == torch.float32


def test_an_empty_folder_of_photographs_is_refused(train, tmp_path):
    with pytest.raises(UserError, match="holds no image"):
        train.load_photos(tmp_path, 10)
