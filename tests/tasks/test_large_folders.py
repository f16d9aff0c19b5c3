"""Folders with many images: the cost is in proportion to them, and none beyond the limit is looked at."""

import os
import sys

import numpy as np
import pytest
from PIL import Image

from nystra_bench.tasks import datasets
from nystra_bench.tasks.datasets import pictures
from nystra_bench.tasks.denoise import GaussianDenoise
from nystra_bench.tasks.pairs import FolderPairs

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))


def test_the_cost_of_a_folder_is_in_proportion_to_its_images(tmp_path, monkeypatch):
    """Counted in comparisons of names; 20,000 images took a minute once."""
    compared = 0

    class Name(str):
        __hash__ = str.__hash__

        def __eq__(self, other):
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

    class File:
        def __init__(self, n):
            self.stem, self.name = Name(f"image{n % 900}"), f"image{n % 900}.{n // 900}"

    monkeypatch.setattr(datasets, "image_files", lambda folder: [File(n) for n in range(1000)])
    ids = [picture.id for picture in pictures(str(tmp_path))]
    assert compared < 10 * len(ids)
    assert len(set(ids)) == 1000
    assert ids[0] == "image0.0" and ids[500] == "image500" and ids[900] == "image0.1"


def test_twenty_thousand_files_of_which_one_is_looked_at(tmp_path):
    """The others are empty: reading so much as their headers would be an error."""
    for n in range(20_000):
        os.close(os.open(tmp_path / f"b{n:05}.png", os.O_CREAT))
    IMAGE.save(tmp_path / "a.png")
    task = GaussianDenoise(25.0, images=str(tmp_path), limit=1)
    assert task.sizes() == [(20, 30)]
    assert [sample.id for sample in task.samples()] == ["a"]
    assert task.digest() == GaussianDenoise(25.0, images=str(tmp_path / "."), limit=1).digest()


@pytest.mark.parametrize("pattern", ["{name}", "{name}_*", "x_{name}_*"])
def test_the_cost_of_a_folder_of_pairs_is_in_proportion_to_its_images(tmp_path, pattern):
    """Counted in calls, of Python's functions and of C's."""

    def calls(count, length):
        folder = tmp_path / f"{count} {length}"
        for side in ("lq", "gt"):
            (folder / side).mkdir(parents=True)
        for n in range(count):
            name = f"{n:0{length}}"
            (folder / "gt" / f"{name}.png").touch()
            (folder / "lq" / f"{pattern.format(name=name).replace('*', '7')}.png").touch()
        made = 0

        def counted(frame, event, argument):
            nonlocal made
            made += event in ("call", "c_call")

        task = FolderPairs(str(folder), degraded_name=pattern)
        sys.setprofile(counted)
        try:
            pair = task.find()[0]
        finally:
            sys.setprofile(None)
        assert pair.id.endswith("0" * length) or "*" in pattern
        return made

    few = calls(50, 10)
    assert calls(200, 10) < 5 * few
    assert calls(50, 100) < 11 * few


def test_pairs_beyond_the_limit_are_not_read(tmp_path):
    for side in ("lq", "gt"):
        (tmp_path / side).mkdir()
        IMAGE.save(tmp_path / side / "a.png")
        (tmp_path / side / "b.png").write_text("no image")
    task = FolderPairs(str(tmp_path), limit=1)
    assert task.sizes() == [(20, 30)]
    assert [sample.id for sample in task.samples()] == ["a"]
    assert len(task.digest()) == 64
