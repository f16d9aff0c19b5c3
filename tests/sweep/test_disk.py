"""Folders that cannot be written, names that are too long, a disk that is full: one sentence, and nothing lost."""

import errno
import os

import numpy as np
import pytest
from PIL import Image

from nystra_bench.sweep import files, store
from nystra_bench.sweep.cell import Cell
from nystra_bench.sweep.files import unwritable
from nystra_bench.sweep.store import Store
from nystra_bench.text import printable

pytestmark = pytest.mark.usefixtures("here")

QUALITY = ["measure=quality", "metrics=[psnr,ssim]", "attention=exact", "window_size=native", "position_bias=native"]


def circle(folder):
    (folder / "circle").symlink_to(folder / "circle")
    return folder / "circle" / "results"


def below_a_file(folder):
    (folder / "file").touch()
    return folder / "file" / "results"


FOLDERS = {
    "links in circles": circle,
    "below a file": below_a_file,
    "a name of 300 letters": lambda folder: folder / ("a" * 300),
    "below a name of 300 letters": lambda folder: folder / "new" / ("a" * 300) / "results",
    "/proc": lambda folder: "/proc/results",
}


@pytest.mark.parametrize("make", FOLDERS.values(), ids=FOLDERS)
def test_results_that_can_be_no_folder_are_refused_before_anything_is_measured(bench, tmp_path, make):
    folder = make(tmp_path)
    outcome = bench(f"results={folder}", *QUALITY)
    assert outcome.code == 1
    assert f"results={folder}" in outcome.sentence and "accepted" in outcome.sentence


def test_a_store_that_cannot_be_written_is_found_before_anything_is_measured(bench):
    bench.results.mkdir()
    (bench.results / "store").write_text("a file in the store's place")
    outcome = bench(*QUALITY)
    assert outcome.code == 1
    assert f"results={bench.results} cannot be written ({bench.results / 'store'} is no folder" in outcome.sentence


def test_what_can_be_written_is_not_refused(tmp_path):
    assert unwritable(tmp_path) is None
    assert unwritable(tmp_path / "new" / "newer") is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_others_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    assert "no folder that this user may write to" in unwritable(tmp_path / "new")
    tmp_path.chmod(0o700)


class Full:
    """A disk that takes nothing more; for files in the store, or for the check before."""

    def __init__(self, monkeypatch):
        self.monkeypatch = monkeypatch

    def __call__(self, *arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0] if arguments else "file"))


def test_a_disk_that_is_full_before_the_run(bench, monkeypatch):
    monkeypatch.setattr(files.tempfile, "TemporaryFile", Full(monkeypatch))
    outcome = bench(*QUALITY)
    assert outcome.code == 1
    assert f"results={bench.results} cannot be written" in outcome.sentence
    assert "No space left on device" in outcome.sentence


def test_a_disk_that_becomes_full_during_the_run(bench, monkeypatch):
    assert bench("mode=run", *QUALITY).code == 0
    kept = bench.stored()
    from nystra_bench.sweep import engine

    monkeypatch.setattr(engine, "write_atomically", Full(monkeypatch))
    outcome = bench(*QUALITY, "task.limit=1", "name=other")
    assert outcome.code == 1
    assert "No space left on device" in outcome.sentence
    assert "what was measured is kept" in outcome.sentence
    assert bench.stored() == kept


# --------------------------------------------------------------------------- ids in the names of files


CELL = Cell.of({"task": {"name": "denoise"}})
IDS = {
    "usual": ("picture0", "picture0.npz"),
    "with folders": ("a/b/picture0", "a/b/picture0.npz"),
    "80 CJK characters": ("\u98ce" * 80, "\u98ce" * 80 + ".npz"),
}


@pytest.mark.parametrize("name, expected", IDS.values(), ids=IDS)
def test_short_ids_keep_the_names_of_their_files(tmp_path, name, expected):
    path = Store(tmp_path).panel_images(CELL, name)
    assert str(path).endswith("/" + expected)


@pytest.mark.parametrize("name", ["a" * 246, "a" * 251, "b/" + "a" * 251, "\u98ce" * 83])
def test_long_ids_have_files_too_each_one_of_its_own(tmp_path, name):
    at = Store(tmp_path)
    path, other = at.panel_images(CELL, name), at.panel_images(CELL, name[:-1] + "x")
    assert path != other
    at.write_arrays(path, image=np.zeros(3))
    assert path.is_file()
    assert store.LONGEST + len(".npz") <= 255


# --------------------------------------------------------------------------- a whole run on odd names


NAMES = [b"caf\xe9.png", "\u98ce\u666f.png".encode("gbk"), b"a" * 251 + b".png", ("\u98ce" * 28).encode() + b".png"]


def write(folder, name, side=24):
    pixels = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "new.png")
    os.rename(folder / "new.png", os.path.join(os.fsencode(folder), name))


def test_images_of_any_names_are_measured(bench, tmp_path):
    folder = tmp_path / os.fsdecode(NAMES[0])
    folder.mkdir()
    for n, name in enumerate(NAMES):
        write(folder, name, 24 + n)
    (tmp_path / "images").symlink_to(folder)
    assert bench(f"task.images={tmp_path / 'images'}", *QUALITY).code == 0
    (found,) = bench.stored()
    assert found["status"] == "done"
    ids = {image["id"] for image in found["value"]["images"]}
    assert ids == {printable(os.fsdecode(name.removesuffix(b".png"))) for name in NAMES}
    assert "caf\\udce9" in ids
    assert bench("mode=report", *QUALITY).code == 0


def test_a_small_image_is_named_in_the_plan_and_the_log_and_the_others_are_measured(bench, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    write(folder, b"good.png")
    Image.fromarray(np.zeros((7, 9, 3), np.uint8)).save(folder / "small.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "photo.heic").touch()
    options = [f"task.images={folder}", "task.crop=null", *QUALITY]
    for mode in ("plan", "run"):
        outcome = bench(f"mode={mode}", *options)
        assert outcome.code == 0
        assert outcome.err.count("small is 9x7") == outcome.err.count("1 in .heic (photo.heic), 1 no regular file") == 1
    assert "small is 9x7" in (bench.results / "tiny" / "nystra_bench.log").read_text()
    (found,) = bench.stored()
    assert [image["id"] for image in found["value"]["images"]] == ["good"]


@pytest.mark.parametrize("side", [1, 5])
def test_images_that_are_too_small_are_blamed_and_not_the_device_or_the_attention(bench, tmp_path, side):
    folder = tmp_path / "images"
    folder.mkdir()
    write(folder, b"small.png", side)
    outcome = bench(f"task.images={folder}", "device=cpu", *QUALITY)
    assert outcome.code == 1
    assert outcome.sentence.startswith(f"task.images={folder} holds no image")
    assert f"small is {side}x{side}" in outcome.sentence
