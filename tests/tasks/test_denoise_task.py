"""Denoising: noise that depends on the image's name and the seed alone, of the strength that was asked for."""

import numpy as np
import pytest
from PIL import Image

from nystra_bench.errors import UserError
from nystra_bench.tasks.denoise import GaussianDenoise


@pytest.fixture
def folder(tmp_path):
    for n, name in enumerate(("b", "a", "c")):
        pixels = np.random.default_rng(n).integers(0, 256, (64, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    return tmp_path


def samples(folder, **options):
    return {s.id: s for s in GaussianDenoise(**{"sigma": 25, "images": str(folder), **options}).samples()}


def test_images_come_in_the_order_of_their_names(folder):
    assert list(samples(folder)) == ["a", "b", "c"]
    assert list(samples(folder, limit=2)) == ["a", "b"]


def test_noise_does_not_depend_on_limit_order_or_the_images_beside(folder, tmp_path):
    whole = samples(folder)
    np.testing.assert_array_equal(samples(folder, limit=2)["b"].degraded, whole["b"].degraded)
    task = GaussianDenoise(25, str(folder))
    backwards = [next(iter(t.samples())) for t in (task, task)]
    np.testing.assert_array_equal(backwards[0].degraded, backwards[1].degraded)
    (folder / "a.png").unlink()
    np.testing.assert_array_equal(samples(folder)["c"].degraded, whole["c"].degraded)


def test_seeds_and_images_have_noise_of_their_own(folder):
    def noise(name, seed):
        sample = samples(folder, seed=seed)[name]
        return (sample.degraded - sample.clean).ravel()

    assert abs(np.corrcoef(noise("a", 0), noise("a", 1))[0, 1]) < 0.05
    assert abs(np.corrcoef(noise("a", 0), noise("b", 0))[0, 1]) < 0.05


@pytest.mark.parametrize("sigma", [15, 25, 50.0])
def test_sigma_is_what_was_asked_for_and_nothing_is_clipped(folder, sigma):
    noise = np.concatenate([(s.degraded - s.clean).ravel() for s in samples(folder, sigma=sigma).values()])
    # 46 080 samples: the standard deviation is known to 0.33 %, the mean to 0.5 % of sigma.
    assert 255 * noise.std() == pytest.approx(sigma, rel=0.015)
    assert abs(noise.mean() * 255) < 0.02 * sigma
    degraded = samples(folder, sigma=sigma)["a"].degraded
    assert degraded.dtype == np.float32
    assert degraded.min() < 0 and degraded.max() > 1


def test_the_clean_image_is_the_file(folder):
    clean = samples(folder)["a"].clean
    np.testing.assert_array_equal(np.round(clean * 255), np.asarray(Image.open(folder / "a.png")))
    assert clean.dtype == np.float32


def test_the_digest_knows_the_pixels_and_nothing_of_the_noise(folder):
    def digest(**options):
        return GaussianDenoise(**{"sigma": 25, "images": str(folder), **options}).digest()

    whole = digest()
    assert digest(sigma=50, seed=7) == whole
    assert len({whole, digest(limit=2), digest(crop=32)}) == 3
    pixels = np.array(Image.open(folder / "a.png"))
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(folder / "a.png")
    assert digest() != whole


def test_the_names_of_data_sets(folder):
    assert GaussianDenoise(25, str(folder)).dataset == folder.name
    task = GaussianDenoise(25, limit=2, crop=24)
    assert task.dataset == "bundled"
    assert [s.degraded.shape for s in task.samples()] == [(24, 24, 3)] * 2


@pytest.mark.parametrize("sigma", [0, -1, 256, float("nan"), "25"])
def test_sigmas_that_mean_nothing(sigma):
    with pytest.raises(UserError, match="task.sigma="):
        GaussianDenoise(sigma)
