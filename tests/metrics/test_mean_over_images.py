"""What stands for a set of images where some come out identical, infinitely bad, or not at all."""

from __future__ import annotations

import math

import pytest

from nystra_bench.measure.quality import Quality, mean

INF, NAN = math.inf, math.nan


def scalars(deviations, **more):
    about = {"deviation_psnr": {"higher_is_better": True}, "deviation_max": {"higher_is_better": False}}
    about["psnr"] = {"higher_is_better": True}
    others = [{name: values[i] for name, values in more.items()} for i in range(len(deviations))]
    images = [
        {"id": f"{i}", "metrics": {"deviation_psnr": x} | other, "input": {"psnr": 20.0 + i}}
        for i, (x, other) in enumerate(zip(deviations, others, strict=True))
    ]
    return Quality().scalars({"images": images, "describe": about}, {})


@pytest.mark.parametrize("written", [INF, "inf"])
def test_identical_images_do_not_make_the_others_so(written):
    found = scalars([written, 50.0, 40.0], deviation_max=[0.0, 0.2, 0.4])
    assert found["deviation_psnr"] == 45.0 and found["identical"] == 1 and found["images"] == 3
    assert found["deviation_max"] == pytest.approx(0.2), "the mean of what is finite is over all"
    assert found["input_psnr"] == 21.0


def test_where_all_or_none_are_identical_nothing_is_added():
    assert scalars([INF, INF])["deviation_psnr"] == INF and "identical" not in scalars([INF, INF])
    assert scalars([50.0, 40.0])["deviation_psnr"] == 45.0 and "identical" not in scalars([50.0, 40.0])


def test_what_is_infinitely_bad_is_not_left_out():
    found = scalars([-INF, 50.0, INF], deviation_max=[INF, 0.1, 0.0])
    assert found["deviation_psnr"] == -INF and found["deviation_max"] == INF
    assert math.isnan(mean([NAN, 1.0, INF], True)) and math.isnan(mean([INF, -INF, 1.0]))
