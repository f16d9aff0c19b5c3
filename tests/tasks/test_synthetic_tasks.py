"""What holds for every task of configs/task that degrades images itself; a new one is held to it by its file alone."""

import inspect

import numpy as np
import pytest
from PIL import Image

from nystra_bench.configuration import Catalogue, configs_folder, instantiate
from nystra_bench.errors import UserError
from nystra_bench.metrics.ssim import Ssim
from nystra_bench.sweep.inspection import answer
from nystra_bench.tasks.camera_denoise import CameraDenoise
from nystra_bench.tasks.datasets import Picture
from nystra_bench.tasks.deblur import Deblur
from nystra_bench.tasks.degradations import generator
from nystra_bench.tasks.dehaze import Dehaze
from nystra_bench.tasks.denoise import GaussianDenoise
from nystra_bench.tasks.super_resolution import SuperResolution

CATALOGUE = Catalogue([configs_folder()])
NAMES = [name for name in CATALOGUE.names("task") if "images" in CATALOGUE.parameters("task", name)]
"""Those on images of the user's choice; tasks on pairs are in test_pairs.py."""
SIZES = {"b": (64, 80), "a": (49, 33), "c": (24, 64)}


def option(name, **parameters):
    return CATALOGUE.option("task", name) | parameters


@pytest.fixture
def make(folder):
    return lambda name, **parameters: instantiate(option(name, images=str(folder), **parameters))


@pytest.fixture
def folder(tmp_path):
    for n, (name, size) in enumerate(SIZES.items()):
        pixels = np.random.default_rng(n).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    return tmp_path


def samples(task):
    return {sample.id: sample for sample in task.samples()}


@pytest.mark.parametrize("name", NAMES)
def test_samples_do_not_depend_on_limit_order_or_the_images_beside(make, folder, name):
    whole = samples(make(name))
    assert list(whole) == ["a", "b", "c"]
    assert list(samples(make(name, limit=2))) == ["a", "b"]
    (folder / "a.png").unlink()
    for sample in make(name).samples():
        np.testing.assert_array_equal(sample.degraded, whole[sample.id].degraded)
        np.testing.assert_array_equal(sample.clean, whole[sample.id].clean)


@pytest.mark.parametrize("name", NAMES)
def test_a_task_gives_the_same_samples_again(make, name):
    task = make(name)
    for first, second in zip(task.samples(), task.samples(), strict=True):
        np.testing.assert_array_equal(first.degraded, second.degraded)


@pytest.mark.parametrize("name", NAMES)
def test_shapes_types_and_sizes(make, name):
    task = make(name)
    assert len(task.sizes()) == len(SIZES)
    for sample, size in zip(task.samples(), task.sizes(), strict=True):
        assert sample.degraded.dtype == sample.clean.dtype == np.float32
        assert sample.degraded.shape == (*size, task.channels)
        assert sample.clean.shape == (size[0] * task.scale, size[1] * task.scale, task.channels)
        assert task.as_output(sample.degraded).shape == sample.clean.shape
        assert np.isfinite(sample.degraded).all()
        assert sample.clean.min() >= 0 and sample.clean.max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_the_degraded_image_is_worse_than_the_clean_one_and_still_of_it(make, name):
    task = make(name, crop=24)
    for sample in task.samples():
        nothing = task.as_output(sample.degraded)
        assert np.abs(nothing - sample.clean).mean() > 1e-3
        assert np.corrcoef(nothing.ravel(), sample.clean.ravel())[0, 1] > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_in_the_identity_changes_the_samples_and_no_other_does(make, name):
    first, other = (make(name, seed=seed) for seed in (0, 1))
    random = first.identity() != other.identity()
    for mine, theirs in zip(first.samples(), other.samples(), strict=True):
        assert np.array_equal(mine.degraded, theirs.degraded) is not random
    assert first.digest() == other.digest()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(1, 1), (8, 13), (9, 31)])
def test_tiny_images_can_be_degraded(make, name, size):
    task = make(name)
    size = [side * task.scale for side in size]
    sample = task._sample(Picture("tiny", lambda: np.full((*size, 3), 77, np.uint8), lambda: size))
    assert np.isfinite(sample.degraded).all() and sample.degraded.size


@pytest.mark.parametrize("name", NAMES)
def test_an_image_that_no_metric_can_be_computed_on_is_left_out_by_name(folder, make, name):
    """SSIM needs 11 pixels a side, in the border that a convention leaves out too; the others are as they were."""
    before, least = samples(make(name)), make(name).least_side
    assert least == 11 + 2 * (make(name).scale if make(name).scale > 1 else 0)
    Image.fromarray(np.zeros((7, 9, 3), np.uint8)).save(folder / "aa.png")
    Image.fromarray(np.zeros((least - 1, 90, 3), np.uint8)).save(folder / "bb.png")
    task = make(name)
    after = samples(task)
    assert list(after) == list(before) == ["a", "b", "c"]
    np.testing.assert_array_equal(after["b"].degraded, before["b"].degraded)
    (note,) = task.notes()
    assert f"task.images={folder}: left out" in note and f"{least} pixels a side" in note
    assert "aa is 9x7, bb is 90x" in note
    assert [sample.id for sample in make(name, limit=2).samples()] == ["a", "b"]


@pytest.mark.parametrize("name", NAMES)
def test_an_image_of_the_least_side_has_all_numbers(folder, make, name):
    least = make(name).least_side
    least += -least % make(name).scale
    pixels = np.random.default_rng(0).integers(0, 256, (least, least, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "least.png")
    sample = samples(make(name))["least"]
    assert np.isfinite(Ssim()(make(name).as_output(sample.degraded), sample.clean, make(name).convention))


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_images_that_are_too_small_is_refused_for_them(folder, make, name):
    for file in folder.iterdir():
        file.unlink()
    for side in (1, 5):
        Image.fromarray(np.full((side, side, 3), 77, np.uint8)).save(folder / f"a{side}.png")
    task = make(name)
    for use in (lambda: list(task.samples()), task.sizes, task.digest):
        with pytest.raises(UserError, match=r"task.images=.* holds no image .*\(a1 is 1x1, a5 is 5x5\): accepted are"):
            use()


@pytest.mark.parametrize("name", NAMES)
def test_a_crop_that_leaves_too_little_is_named(make, name):
    with pytest.raises(UserError, match=r"^task.crop=7: .*a is 7x7.*accepted are crops from \d+ on"):
        make(name, crop=7).sizes()


def test_every_task_has_seeds_of_its_own():
    classes = {type(instantiate(option(name))) for name in NAMES}
    assert len({task.seeded_as for task in classes}) == len(classes)


@pytest.mark.parametrize("name", NAMES)
def test_the_inspection_tells_the_sizes(folder, name):
    config = option(name, images=str(folder))
    request = {"sys_path": [], "models": {}, "attentions": {}, "metrics": {}, "devices": {}, "uses": []}
    request |= {"references": {}}
    facts = answer({**request, "tasks": {"it": config}})["tasks"]["it"]
    made = {sample.degraded.shape[:2] for sample in instantiate(config).samples()}
    assert {tuple(size) for size in facts["sizes"]} == made
    assert facts["sizes"] == sorted(facts["sizes"])
    assert facts["largest_side"] == max(map(max, made))


# --------------------------------------------------------------------------- each task's own


def test_deblurring_draws_kernels_up_to_its_size(folder):
    task = Deblur(size=9, images=str(folder))
    extents = [task.draw_kernel(generator(seed)).shape[0] // 2 for seed in range(100)]
    assert max(extents) <= 9 / 2 + 1
    assert len(set(extents)) > 1
    gaussian = Deblur(kernel="gaussian", size=2, images=str(folder))
    assert {gaussian.draw_kernel(generator(seed)).shape[0] // 2 for seed in range(50)} <= set(range(4, 9))


def test_deblurring_adds_the_noise_that_was_asked_for(folder):
    pairs = [samples(Deblur(noise=noise, images=str(folder)))["b"] for noise in (0, 5)]
    noise = 255 * (pairs[1].degraded - pairs[0].degraded)
    # 15,360 samples: the standard deviation is known to 0.6 %.
    assert noise.std() == pytest.approx(5, rel=0.025)


def test_the_light_of_blur_is_a_choice(folder):
    linear, stored = (samples(Deblur(light=light, noise=0, images=str(folder)))["a"] for light in ("linear", "srgb"))
    assert np.abs(linear.degraded - stored.degraded).max() > 0.01
    assert linear.degraded.min() >= 0 and linear.degraded.max() <= 1


@pytest.mark.parametrize("kernel", ["motion", "gaussian"])
def test_kernels_larger_than_the_image(folder, kernel):
    task = Deblur(kernel=kernel, size=100, noise=0, images=str(folder), crop=11)
    for sample in task.samples():
        assert np.isfinite(sample.degraded).all()
        if kernel == "gaussian":  # far wider than the image, it leaves the mean
            assert np.ptp(sample.degraded, axis=(0, 1)).max() < 0.001


def test_haze_is_thicker_with_density_and_brightens_towards_the_airlight(folder):
    thin, thick = (samples(Dehaze(density=density, images=str(folder))) for density in (0.5, 3))
    for name in SIZES:
        contrast = [sample[name].degraded.std() for sample in (thin, thick)]
        assert thin[name].clean.std() > contrast[0] > contrast[1]
        assert thick[name].degraded.mean() > thick[name].clean.mean()


def test_haze_uses_the_depth_of_the_stereo_pair():
    task = Dehaze(images="stereo", crop=64)
    (sample,) = task.samples()
    (picture,) = task.pictures
    rng = generator("dehaze", "motorcycle", 0)
    beta = task.density * rng.uniform(0.4, 1.0)
    transmission = np.exp(-beta * picture.depth().astype(np.float64))
    # The formula solved for the airlight gives one value everywhere: depth and picture are of one place.
    airlight = (sample.degraded - sample.clean * transmission[..., None]) / (1 - transmission[..., None])
    assert np.ptp(airlight, axis=(0, 1)).max() < 1e-5
    assert airlight.min() > 0.65 and airlight.max() <= 1
    assert [p.id for p in Dehaze().pictures][:2] == ["motorcycle", "astronaut"]


def test_the_digest_knows_the_depth(monkeypatch):
    from nystra_bench.tasks import datasets

    before = Dehaze(images="stereo").digest()
    depth = datasets.motorcycle_depth()
    monkeypatch.setattr(datasets, "motorcycle_depth", lambda: depth * np.float32(0.99))
    assert Dehaze(images="stereo").digest() != before


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_super_resolution_cuts_the_clean_image_to_multiples(folder, scale):
    for sample in SuperResolution(scale, str(folder)).samples():
        height, width = SIZES[sample.id]
        assert sample.degraded.shape[:2] == (height // scale, width // scale)
        whole = np.asarray(Image.open(folder / f"{sample.id}.png"))
        cut = whole[: height // scale * scale, : width // scale * scale]
        np.testing.assert_array_equal(np.round(sample.clean * 255), cut)


def test_low_resolution_images_have_8_bits(folder):
    degraded = samples(SuperResolution(2, str(folder)))["a"].degraded.astype(np.float64) * 255
    np.testing.assert_allclose(degraded, np.round(degraded), atol=1e-5)


def test_camera_noise_is_stored_in_8_bits_and_of_a_strength_for_each_image(folder):
    found = samples(CameraDenoise(images=str(folder)))
    strengths = [np.abs(sample.degraded - sample.clean).mean() for sample in found.values()]
    assert len({round(float(s), 4) for s in strengths}) == 3
    for sample in found.values():
        np.testing.assert_allclose(sample.degraded * 255, np.round(sample.degraded * 255), atol=1e-4)


# --------------------------------------------------------------------------- bad values

BAD = [
    (GaussianDenoise, {"sigma": True}, "task.sigma=True"),
    (Deblur, {"kernel": "box"}, "task.kernel=box"),
    (Deblur, {"light": "sRGB"}, "task.light=sRGB is unknown: accepted are linear, srgb"),
    (Deblur, {"size": 0}, "task.size=0"),
    (Deblur, {"size": float("inf")}, "task.size=inf"),
    (Deblur, {"size": float("nan")}, "task.size=nan"),
    (Deblur, {"noise": -1}, "task.noise=-1"),
    (Deblur, {"noise": "1"}, "task.noise=1"),
    (Dehaze, {"density": 0}, "task.density=0"),
    (Dehaze, {"density": 11}, "task.density=11"),
    (Dehaze, {"density": True}, "task.density=True"),
    (Dehaze, {"images": "stereo+bundle"}, "task.images=stereo.bundle is no folder: accepted are bundled, stereo"),
    (SuperResolution, {"scale": 5}, "task.scale=5 is unknown: accepted are 2, 3, 4, 8"),
    (SuperResolution, {"scale": 2.0}, "task.scale=2.0"),
    (SuperResolution, {"scale": "2"}, "task.scale=2 "),
    (CameraDenoise, {"gain": 0}, "task.gain=0"),
]


@pytest.mark.parametrize("task, options, named", BAD, ids=[f"{t.__name__}-{o}" for t, o, _ in BAD])
def test_values_that_mean_nothing_are_named(task, options, named):
    assert set(options) <= set(inspect.signature(task).parameters)
    with pytest.raises(UserError, match=named):
        task(**options)
