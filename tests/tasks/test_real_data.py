"""The tasks on pieces of the real data sets, with the figures that are known of them."""

import numpy as np
import pytest
from shared_data import TESTSETS, needs_testsets

from nystra_bench.metrics.psnr import Psnr
from nystra_bench.tasks.deblur import DeblurPairs
from nystra_bench.tasks.dehaze import DehazePairs
from nystra_bench.tasks.real_denoise import RealDenoise, Sidd
from nystra_bench.tasks.super_resolution import SuperResolution, SuperResolutionPairs

pytestmark = needs_testsets


def input_psnr(task):
    """PSNR of "nothing done" for each image, in the task's convention."""
    psnr = Psnr()
    return {s.id: psnr(task.as_output(s.degraded), s.clean, task.convention) for s in task.samples()}


def test_polyu():
    task = RealDenoise(str(TESTSETS / "PolyU"))
    values = input_psnr(task)
    assert len(values) == 20 and task.dataset == "PolyU"
    # 35.97 dB over all 100 pairs; these are every fifth.
    assert np.mean(list(values.values())) == pytest.approx(35.67, abs=0.01)


def test_sidd_from_matlab_and_from_png_is_one_and_the_same():
    mat = Sidd(str(TESTSETS / "SIDD" / "orig_mat"), "noisy.mat", "gt.mat")
    png = RealDenoise(str(TESTSETS / "SIDD"))
    assert list(input_psnr(mat).values()) == list(input_psnr(png).values())
    assert input_psnr(mat) == {"0000_00": pytest.approx(16.15, abs=0.005)}


def test_gopro():
    values = input_psnr(DeblurPairs(str(TESTSETS / "GoPro"), "lq", "gt"))
    assert values == {"Flower1": pytest.approx(25.11, abs=0.01), "Istanbul1": pytest.approx(24.05, abs=0.01)}


def test_sots_indoor():
    task = DehazePairs(str(TESTSETS / "SOTS_indoor"), "lq")
    assert task.sizes() == [(460, 620)] * 5
    assert list(input_psnr(task)) == ["1400_2", "1410_4", "1420_6", "1430_8", "1440_10"]


def test_sots_outdoor_pairs_jpeg_with_png():
    task = DehazePairs(str(TESTSETS / "SOTS_outdoor"), "lq")
    values = input_psnr(task)
    assert values == {
        "0001_0.8_0.2": pytest.approx(16.13, abs=0.01),
        "0002_0.8_0.08": pytest.approx(20.37, abs=0.01),
    }


@pytest.mark.parametrize("scale, published", [(2, 33.66), (3, 30.39), (4, 28.42), (8, 24.40)])
def test_bicubic_on_set5_is_as_the_literature_has_it(scale, published):
    """PSNR on Y of bicubic enlargement, as in VDSR, LapSRN and RCAN; theirs crop and round in slightly other ways."""
    task = SuperResolutionPairs(scale, str(TESTSETS / "Set5"))
    assert np.mean(list(input_psnr(task).values())) == pytest.approx(published, abs=0.02)


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_set5_reduced_here_is_set5_as_published(scale):
    published = SuperResolutionPairs(scale, str(TESTSETS / "Set5"))
    made = SuperResolution(scale, str(TESTSETS / "Set5" / "HR"))
    assert published.sizes() == made.sizes() and len(made.sizes()) == 5
    for theirs, ours in zip(published.samples(), made.samples(), strict=True):
        assert theirs.id == ours.id
        np.testing.assert_array_equal(theirs.degraded, ours.degraded)
        np.testing.assert_array_equal(theirs.clean, ours.clean)
