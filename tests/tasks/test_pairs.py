"""Pairs of files: every layout of a data set, and every way in which a folder is none."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nystra_bench.configuration import Catalogue, configs_folder, instantiate
from nystra_bench.errors import UserError
from nystra_bench.metrics.conventions import DEBLUR, DEHAZE, REAL_DENOISE, super_resolution
from nystra_bench.sweep.inspection import answer
from nystra_bench.tasks.pairs import FolderPairs

CATALOGUE = Catalogue([configs_folder()])
PAIRED = [name for name in CATALOGUE.names("task") if "root" in CATALOGUE.parameters("task", name)]


def save(file: Path, seed: int = 0, size=(20, 30), **options) -> np.ndarray:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, **options)
    return pixels


def make(name, root, **parameters):
    return instantiate(CATALOGUE.option("task", name) | {"root": str(root), **parameters})


def ids(task):
    return [sample.id for sample in task.samples()]


@pytest.fixture
def pairs(tmp_path):
    """Three pairs in lq/ and gt/; gives the folder."""
    for n, name in enumerate("bac"):
        save(tmp_path / "lq" / f"{name}.png", n)
        save(tmp_path / "gt" / f"{name}.png", 100 + n)
    return tmp_path


# --------------------------------------------------------------------------- layouts

LAYOUTS = {
    "dehaze_pairs": {
        "hazy/1400_1.png": "1400_1",
        "hazy/1400_10.png": "1400_10",
        "hazy/0001_0.8_0.2.jpg": "0001_0.8_0.2",
        "gt/1400.png": None,
        "gt/0001.png": None,
    },
    "deblur_pairs": {
        "GOPR0384_11_00/blur/000001.png": "GOPR0384_11_00/000001",
        "GOPR0384_11_00/blur_gamma/000001.png": None,
        "GOPR0384_11_00/sharp/000001.png": None,
        "GOPR0385_11_01/blur/000001.png": "GOPR0385_11_01/000001",
        "GOPR0385_11_01/sharp/000001.png": None,
    },
    "realblur": {
        "scene001/blur/blur_1.png": "scene001/1",
        "scene001/blur/blur_12.png": "scene001/12",
        "scene001/gt/gt_1.png": None,
        "scene001/gt/gt_12.png": None,
    },
    "real_denoise": {"lq/a.jpg": "a", "lq/b.png": "b", "gt/a.jpg": None, "gt/b.png": None},
    "polyu": {
        "Canon5D2_chair_real.JPG": "Canon5D2_chair",
        "Canon5D2_chair_mean.JPG": None,
        "d800_iso3200_1_real.png": "d800_iso3200_1",
        "d800_iso3200_1_mean.png": None,
        "d800_iso3200_1_ours.png": None,  # what CC15's folder holds besides
        "readme.txt": None,
    },
    "super_resolution_pairs": {
        "LR_bicubic/X2/babyx2.png": "baby",
        "LR_bicubic/X2/img_001x2.png": "img_001",
        "LR_bicubic/X3/babyx3.png": None,
        "HR/baby.png": None,
        "HR/img_001.png": None,
    },
}
CONVENTIONS = {
    "dehaze_pairs": DEHAZE,
    "deblur_pairs": DEBLUR,
    "realblur": DEBLUR,
    "real_denoise": REAL_DENOISE,
    "polyu": REAL_DENOISE,
    "super_resolution_pairs": super_resolution(2),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_published_layout_is_the_default(tmp_path, name):
    scale = 2 if name == "super_resolution_pairs" else 1
    expected = {}
    for n, (path, found) in enumerate(LAYOUTS[name].items()):
        if path.endswith(".txt"):
            (tmp_path / path).write_text("no image")
            continue
        save(tmp_path / path, n, (10, 15) if "X2" in path else (20, 30))
        if found:
            expected[found] = np.asarray(Image.open(tmp_path / path))
    task = make(name, tmp_path)
    assert ids(task) == sorted(expected)
    for sample, size in zip(task.samples(), task.sizes(), strict=True):
        np.testing.assert_array_equal(np.round(sample.degraded * 255), expected[sample.id])
        assert sample.degraded.shape[:2] == size == (20 // scale, 30 // scale)
        assert sample.clean.shape == (20, 30, 3)
        assert task.as_output(sample.degraded).shape == sample.clean.shape
        assert sample.degraded.dtype == sample.clean.dtype == np.float32
    assert task.convention == CONVENTIONS[name]
    assert task.dataset == tmp_path.name


@pytest.mark.parametrize("name", PAIRED)
def test_without_its_folder_a_task_can_be_made_and_says_what_it_needs_when_it_is_used(name):
    task = instantiate(CATALOGUE.option("task", name))
    for use in (lambda: task.dataset, task.sizes, task.digest, lambda: next(task.samples())):
        with pytest.raises(UserError, match=r"^task.root=null: accepted is .*docs/DATASETS.md") as caught:
            use()
        assert "\n" not in str(caught.value)


def test_every_paired_task_is_in_a_test_of_its_layout():
    assert set(PAIRED) == {*LAYOUTS, "sidd"}


def test_a_hazy_image_belongs_to_the_clean_image_with_the_longest_name_that_fits(tmp_path):
    for n, name in enumerate(("street", "street_2")):
        save(tmp_path / "gt" / f"{name}.png", n)
    for n, name in enumerate(("street_1", "street_2_1", "street_2_x")):
        save(tmp_path / "hazy" / f"{name}.png", 10 + n)
    task = make("dehaze_pairs", tmp_path)
    clean = {pair.id: Path(pair.clean.id).stem for pair in task.pairs}
    assert clean == {"street_1": "street", "street_2_1": "street_2", "street_2_x": "street_2"}


@given(st.text("ab_1x.[", min_size=1, max_size=8), st.text("ab_1x.[", max_size=5))
def test_a_pattern_fits_what_is_made_by_it_and_finds_the_name_again(name, rest):
    from nystra_bench.tasks.pairs import _between, _names

    assert name in _names("{name}_*", f"{name}_{rest}")
    assert name not in _names("{name}_*", f"{name}{rest.replace('_', '')}")
    assert list(_names("{name}", name)) == list(_names("x_{name}.a", f"x_{name}.a")) == [name]
    assert set(_names("*{name}_*", f"{name}_{rest}")) >= {name, name[-1]}
    lengths = [len(found) for found in _names("*{name}*", f"{name}_{rest}")]
    assert lengths == sorted(lengths, reverse=True)
    assert _between(f"n_{name}.x", "n_", ".x") == name


def test_both_sides_in_one_folder_where_the_clean_names_fit_every_file(tmp_path):
    for n, name in enumerate(("a", "a_noisy", "b", "b_noisy")):
        save(tmp_path / f"{name}.png", n)
    task = FolderPairs(str(tmp_path), ".", ".", degraded_name="{name}_noisy")
    assert [(p.id, Path(p.degraded.id).stem, Path(p.clean.id).stem) for p in task.pairs] == [
        ("a", "a_noisy", "a"),
        ("b", "b_noisy", "b"),
    ]
    save(tmp_path / "c.png")
    refused(FolderPairs(str(tmp_path), ".", ".", degraded_name="{name}_noisy"), "c.png has no degraded image")


def test_flat_folders_are_a_nesting_of_none(tmp_path):
    for side in ("blur", "sharp"):
        save(tmp_path / side / "a.png")
    assert ids(make("deblur_pairs", tmp_path)) == ["a"]


def test_a_ground_truth_with_a_border_is_cut(tmp_path):
    """As RESIDE's SOTS/indoor has it: hazy 620x460, gt 640x480."""
    save(tmp_path / "hazy" / "1_1.png", 0, (46, 62))
    clean = save(tmp_path / "gt" / "1.png", 1, (66, 82))
    (sample,) = make("dehaze_pairs", tmp_path, clean_border=10).samples()
    np.testing.assert_array_equal(np.round(sample.clean * 255), clean[10:-10, 10:-10])
    with pytest.raises(UserError, match="1_1.png is 62x46, .*1.png is 82x66"):
        make("dehaze_pairs", tmp_path).sizes()
    for border in (-1, 1.5, True):
        with pytest.raises(UserError, match=f"task.clean_border={border}|clean_border={border} does not fit"):
            make("dehaze_pairs", tmp_path, clean_border=border)


def test_folders_may_have_signs_that_mean_something_elsewhere(tmp_path):
    root = tmp_path / "set [a]* {name}"
    for side in ("bl[u]r", "sharp"):
        save(root / "seq[1]" / side / "a[0].png")
    assert ids(make("deblur_pairs", root, degraded="**/bl[u]r")) == ["seq[1]/a[0]"]


# --------------------------------------------------------------------------- limit, crop, digest


def test_limit_takes_the_first_names_and_changes_nothing_else(pairs):
    whole = list(make("real_denoise", pairs).samples())
    first = list(make("real_denoise", pairs, limit=2).samples())
    assert [sample.id for sample in first] == ["a", "b"]
    for mine, theirs in zip(first, whole, strict=False):
        np.testing.assert_array_equal(mine.degraded, theirs.degraded)
        np.testing.assert_array_equal(mine.clean, theirs.clean)


def test_both_sides_are_cropped_alike(pairs):
    whole, cropped = (list(make("real_denoise", pairs, crop=crop).samples()) for crop in (None, 12))
    for before, after in zip(whole, cropped, strict=True):
        np.testing.assert_array_equal(after.degraded, before.degraded[4:16, 9:21])
        np.testing.assert_array_equal(after.clean, before.clean[4:16, 9:21])


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("crop", [None, 38, 45, 57, 500])
def test_low_resolution_crops_are_of_the_same_place_to_the_pixel(tmp_path, scale, crop):
    """Each low-resolution pixel is the mean of its block, so that a shift by one pixel would show."""
    low = save(tmp_path / "LR_bicubic" / f"X{scale}" / f"ax{scale}.png", 0, (23, 28))
    high = np.pad(low.repeat(scale, 0).repeat(scale, 1), ((0, scale - 1), (0, 1), (0, 0)))  # cut at the ends
    (tmp_path / "HR").mkdir()
    Image.fromarray(high).save(tmp_path / "HR" / "a.png")
    task = make("super_resolution_pairs", tmp_path, scale=scale, crop=crop)
    (sample,) = task.samples()
    height, width = sample.degraded.shape[:2]
    assert (height, width) == (min(23, (crop or 999) // scale), min(28, (crop or 999) // scale)) == task.sizes()[0]
    blocks = sample.clean.reshape(height, scale, width, scale, 3)
    np.testing.assert_allclose(blocks.mean((1, 3)), sample.degraded, atol=1e-6)


def test_the_digest_covers_both_sides_and_the_names_and_not_the_place(pairs, tmp_path_factory):
    def digest(**options):
        return make("real_denoise", pairs, **options).digest()

    before = digest()
    assert len({before, digest(limit=2), digest(crop=16)}) == 3
    moved = tmp_path_factory.mktemp("elsewhere") / "set"
    (moved / "gt").parent.mkdir()
    for old, new in (("lq", "noisy"), ("gt", "gt")):
        (moved / new).mkdir()
        for file in (pairs / old).iterdir():
            (moved / new / file.name).write_bytes(file.read_bytes())
    assert make("real_denoise", moved, degraded="noisy").digest() == before
    for side in ("lq", "gt"):
        kept = (pairs / side / "a.png").read_bytes()
        save(pairs / side / "a.png", 999)
        assert digest() != before
        (pairs / side / "a.png").write_bytes(kept)
    assert digest() == before
    for side in ("lq", "gt"):
        (pairs / side / "a.png").rename(pairs / side / "aa.png")
    assert digest() != before


def test_the_identity_of_super_resolution_is_its_scale(tmp_path):
    assert make("super_resolution_pairs", tmp_path, scale=4).identity() == {"scale": 4}
    assert make("real_denoise", tmp_path).identity() == {}


def test_planning_reads_headers_for_the_sizes_and_tells_them(pairs):
    save(pairs / "lq" / "d.png", 5, (24, 40))
    save(pairs / "gt" / "d.png", 6, (24, 40))
    request = {"sys_path": [], "models": {}, "attentions": {}, "metrics": {}, "devices": {}, "uses": []}
    request |= {"references": {}}
    config = CATALOGUE.option("task", "real_denoise") | {"root": str(pairs)}
    facts = answer({**request, "tasks": {"it": config}})["tasks"]["it"]
    assert [list(size) for size in facts["sizes"]] == [[20, 30], [24, 40]] and facts["largest_side"] == 40
    (pairs / "lq" / "a.png").write_bytes((pairs / "lq" / "a.png").read_bytes()[:60])
    assert len(make("real_denoise", pairs).sizes()) == 4


def test_images_are_read_one_by_one(pairs):
    """A broken image is met when its turn comes: the ones before it are served."""
    (pairs / "lq" / "c.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="task.root: .*lq/c.png cannot be read as an image"):
        make("real_denoise", pairs).sizes()
    (pairs / "lq" / "c.png").write_bytes((pairs / "lq" / "b.png").read_bytes()[:60])
    served = make("real_denoise", pairs).samples()
    assert [next(served).id, next(served).id] == ["a", "b"]
    with pytest.raises(UserError, match="task.root: .*lq/c.png cannot be read"):
        next(served)


# --------------------------------------------------------------------------- what is no data set


def refused(task, *parts):
    with pytest.raises(UserError) as caught:
        task.sizes()
    for part in parts:
        assert part in str(caught.value)
    assert "accepted" in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_that_is_not_there(pairs):
    refused(make("real_denoise", pairs / "nowhere"), f"task.root={pairs}/nowhere is no folder", "lq/{name}", "fetch")
    refused(make("real_denoise", pairs / "lq" / "a.png"), "is no folder")
    refused(make("real_denoise", pairs, degraded="noisy"), "has no folder task.degraded=noisy", "docs/DATASETS.md")
    refused(make("real_denoise", pairs, clean="clean"), "has no folder task.clean=clean")
    refused(make("deblur_pairs", pairs), "has no folder task.clean=**/sharp")


def test_a_folder_without_images_of_that_name(pairs):
    refused(make("real_denoise", pairs, degraded_name="{name}_noisy"), "holds no image lq/{name}_noisy", "png")
    for file in (pairs / "lq").iterdir():
        file.unlink()
    refused(make("real_denoise", pairs), "holds no image lq/{name}")


def test_images_without_their_counterpart(pairs):
    (pairs / "gt" / "b.png").unlink()
    refused(make("real_denoise", pairs), f"{pairs}/lq/b.png has no clean image", "task.clean=gt")
    (pairs / "lq" / "b.png").unlink()
    (pairs / "lq" / "c.png").unlink()
    refused(make("real_denoise", pairs), f"{pairs}/gt/c.png has no degraded image", "task.degraded=lq")


def test_a_sequence_without_its_counterpart(tmp_path):
    for path in ("s1/blur/1.png", "s1/sharp/1.png", "s2/blur/1.png", "s3/sharp/1.png"):
        save(tmp_path / path)
    refused(make("deblur_pairs", tmp_path), "s2/blur/1.png has no clean image")


def test_two_files_of_one_name(pairs):
    save(pairs / "lq" / "a.bmp")
    refused(make("real_denoise", pairs), "lq/a.bmp and ", "lq/a.png have one name")


def test_one_image_is_no_pair(pairs):
    refused(make("real_denoise", pairs, degraded="gt"), "both lead to", "gt/a.png")


def test_a_pair_of_different_sizes(pairs):
    save(pairs / "gt" / "b.png", 1, (20, 31))
    refused(make("real_denoise", pairs), "lq/b.png is 30x20", "gt/b.png is 31x20")
    with pytest.raises(UserError, match="lq/b.png is 30x20"):
        list(make("real_denoise", pairs).samples())
    assert len(make("real_denoise", pairs, limit=1).sizes()) == 1


def test_a_wrong_scale(tmp_path):
    save(tmp_path / "HR" / "a.png", 0, (40, 60))
    for scale, size in ((2, (20, 30)), (4, (20, 30)), (3, (14, 20))):
        save(tmp_path / "LR_bicubic" / f"X{scale}" / f"ax{scale}.png", 0, size)
    assert make("super_resolution_pairs", tmp_path, scale=2).sizes() == [(20, 30)]
    for scale, size in ((4, "30x20"), (3, "20x14")):  # 40 / 3 is 13.3: cut to a multiple, it gives 13
        refused(make("super_resolution_pairs", tmp_path, scale=scale), f"is {size}", "is 60x40", f"task.scale={scale}")
    refused(make("super_resolution_pairs", tmp_path, scale=8), "has no folder task.degraded=LR_bicubic/X8")


@pytest.mark.parametrize("kind", ["alpha", "deep", "cmyk"])
def test_images_that_no_metric_is_defined_on(pairs, kind):
    file = pairs / "lq" / ("a.jpg" if kind == "cmyk" else "a.png")
    (pairs / "lq" / "a.png").unlink()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)
    image = {
        "alpha": Image.fromarray(pixels),
        "deep": Image.fromarray(pixels[..., 0].astype(np.uint16) << 8),
        "cmyk": Image.fromarray(pixels[..., :3]).convert("CMYK"),
    }[kind]
    image.save(file)
    with pytest.raises(UserError, match=f"task.root: {file} has mode .*accepted are 8-bit"):
        list(make("real_denoise", pairs).samples())


BAD = [
    ("real_denoise", {"limit": 0}, "task.limit=0"),
    ("real_denoise", {"crop": -1}, "task.crop=-1"),
    ("super_resolution_pairs", {"scale": 5}, "task.scale=5"),
    ("super_resolution_pairs", {"scale": 4, "crop": 3}, "task.crop=3 .* task.scale=4"),
    ("real_denoise", {"degraded_name": "noisy"}, "task.degraded_name=noisy is no pattern"),
    ("real_denoise", {"degraded_name": "{name}x{scale}"}, "task.degraded_name={name}x{scale} is no pattern"),
    ("real_denoise", {"degraded_name": "{name}_{name}"}, "task.degraded_name={name}_{name} is no pattern"),
    ("real_denoise", {"clean_name": "{name}*"}, "task.clean_name={name}[*] is no pattern: accepted are"),
    ("real_denoise", {"clean_name": "gt/{name}"}, "task.clean_name=gt/{name} is no pattern"),
]


@pytest.mark.parametrize("name, options, named", BAD)
def test_values_that_mean_nothing_are_named(tmp_path, name, options, named):
    with pytest.raises(UserError, match=named):
        make(name, tmp_path, **options)


def test_a_thousand_pairs_are_matched_at_once(tmp_path):
    """The matching does not compare every image with every other."""
    import time

    (tmp_path / "gt").mkdir()
    (tmp_path / "lq").mkdir()
    for n in range(1000):
        (tmp_path / "gt" / f"scene_{n:04d}.png").touch()
        for haze in range(3):
            (tmp_path / "lq" / f"scene_{n:04d}_{haze}_0.{haze}.png").touch()
    started = time.perf_counter()
    assert len(FolderPairs(str(tmp_path), degraded_name="{name}_*").find()) == 3000
    assert time.perf_counter() - started < 10


def test_the_layout_that_the_documentation_adds_works(tmp_path):
    import yaml

    text = (Path(__file__).parents[2] / "docs" / "DATASETS.md").read_text()
    config = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    save(tmp_path / "image_SRF_2" / "img_001_SRF_2_LR.png", 0, (10, 15))
    clean = save(tmp_path / "image_SRF_2" / "img_001_SRF_2_HR.png", 1, (20, 30))
    save(tmp_path / "image_SRF_2" / "img_001_SRF_2_bicubic.png", 1, (20, 30))
    (sample,) = instantiate(config | {"root": str(tmp_path)}).samples()
    assert sample.id == "img_001"
    np.testing.assert_array_equal(np.round(sample.clean * 255), clean)
