"""SIDD's MATLAB files."""

import numpy as np
import pytest
from scipy.io import savemat

from nystra_bench.configuration import Catalogue, configs_folder, instantiate
from nystra_bench.errors import UserError
from nystra_bench.tasks.real_denoise import Sidd

NOISY, CLEAN = "ValidationNoisyBlocksSrgb.mat", "ValidationGtBlocksSrgb.mat"


def blocks(seed, shape=(3, 4, 16, 20, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def root(tmp_path):
    savemat(tmp_path / NOISY, {"ValidationNoisyBlocksSrgb": blocks(0)}, do_compression=True)
    savemat(tmp_path / CLEAN, {"ValidationGtBlocksSrgb": blocks(1)}, do_compression=True)
    return tmp_path


def test_blocks_are_named_by_image_and_block(root):
    task = instantiate(Catalogue([configs_folder()]).option("task", "sidd") | {"root": str(root)})
    found = list(task.samples())
    assert [sample.id for sample in found] == [f"{i:04d}_{b:02d}" for i in range(3) for b in range(4)]
    np.testing.assert_array_equal(np.round(found[6].degraded * 255), blocks(0)[1, 2])
    np.testing.assert_array_equal(np.round(found[6].clean * 255), blocks(1)[1, 2])
    assert task.sizes() == [(16, 20)] * 12
    assert task.dataset == root.name and task.identity() == {}


def test_limit_crop_and_digest(root):
    task = Sidd(str(root), limit=5, crop=12)
    found = list(task.samples())
    assert [sample.id for sample in found] == ["0000_00", "0000_01", "0000_02", "0000_03", "0001_00"]
    np.testing.assert_array_equal(np.round(found[4].degraded * 255), blocks(0)[1, 0, 2:14, 4:16])
    assert len({Sidd(str(root), limit=n).digest() for n in (None, 1, 2)}) == 3
    before = Sidd(str(root), limit=2).digest()
    changed = blocks(1)
    changed[0, 1, 0, 0, 0] ^= 1
    savemat(root / CLEAN, {"ValidationGtBlocksSrgb": changed})
    assert Sidd(str(root), limit=1).digest() == Sidd(str(root), limit=1).digest()
    assert Sidd(str(root), limit=2).digest() != before


def test_only_the_chosen_blocks_stay_in_memory(root):
    task = Sidd(str(root), limit=2)
    list(task.samples())
    assert all(side.base is None and side.shape[0] == 2 for side in task._blocks.values())


def test_sizes_are_told_without_reading_the_blocks(root, monkeypatch):
    import scipy.io

    monkeypatch.setattr(scipy.io, "loadmat", lambda *_: pytest.fail("the array was read"))
    assert len(Sidd(str(root)).sizes()) == 12


def test_one_block_alone(tmp_path):
    savemat(tmp_path / "noisy.mat", {"im_noisy": blocks(0)[0, 0]})
    savemat(tmp_path / "gt.mat", {"im_gt": blocks(1)[0, 0]})
    (sample,) = Sidd(str(tmp_path), "noisy.mat", "gt.mat").samples()
    assert sample.id == "0000_00"
    np.testing.assert_array_equal(np.round(sample.degraded * 255), blocks(0)[0, 0])


def refused(root, *parts):
    with pytest.raises(UserError) as caught:
        Sidd(str(root)).sizes()
    for part in (*parts, "accepted" if "mend" not in str(caught.value) else "mend"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(root):
    (root / CLEAN).unlink()
    refused(root, f"has no file task.clean={CLEAN}", NOISY)


def test_a_file_of_version_7_3_is_refused_with_the_way_out(root):
    header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(116) + bytes(8) + b"\x00\x02IM"
    (root / NOISY).write_bytes(header + b"\x89HDF\r\n\x1a\n" + bytes(600))
    refused(root, NOISY, "version 7.3", "-v7")


@pytest.mark.parametrize("content", [b"", b"no MATLAB file", b"MATLAB 5.0 MAT-file".ljust(400, b"x")])
def test_what_is_no_matlab_file(root, content):
    (root / NOISY).write_bytes(content)
    refused(root, NOISY)


def test_a_file_cut_off_is_met_at_the_latest_when_it_is_read(root):
    whole = (root / NOISY).read_bytes()
    (root / NOISY).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be read as a MATLAB file"):
        list(Sidd(str(root)).samples())


@pytest.mark.parametrize(
    "arrays, held",
    [
        ({"a": blocks(0).astype(np.float64)}, "3x4x16x20x3 double"),
        ({"a": blocks(0)[..., 0]}, "3x4x16x20 uint8"),
        ({"a": blocks(0), "b": blocks(1)}, "3x4x16x20x3 uint8, 3x4x16x20x3 uint8"),
        ({}, "nothing"),
    ],
)
def test_other_contents_are_told(root, arrays, held):
    savemat(root / NOISY, arrays)
    refused(root, f"{NOISY} holds {held}")


def test_files_that_do_not_belong_together(root):
    savemat(root / CLEAN, {"x": blocks(1, (3, 5, 16, 20, 3))})
    refused(root, "3x4 images x blocks", "3x5")
    savemat(root / CLEAN, {"x": blocks(1, (3, 4, 16, 21, 3))})
    refused(root, NOISY, "is 20x16", "is 21x16")
