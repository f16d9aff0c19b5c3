"""A quality cell is worked off image by image: what is done is kept, whoever did it, and no number depends on that."""

import numpy as np
import pytest
from PIL import Image

from nystra_bench.measure.quality import Pass
from nystra_bench.sweep.journal import Journal
from nystra_bench.sweep.progress import Progress

PLUGIN = """
from nystra_bench.metrics.base import SetMetric


class Shift(SetMetric):
    \"\"\"Distance of the means of all pixels of two sets.\"\"\"

    unit, higher_is_better = "levels", False

    def features(self, image):
        return image.reshape(-1, image.shape[-1])

    def compare(self, outputs, targets):
        return 255 * abs(outputs.mean() - targets.mean())
"""

EXECUTOR = """
from nystra_bench.sweep.executors.cluster import ClusterExecutor


class Call:
    name, ends = "here", []

    def __init__(self, function, argument):
        self.function, self.argument = function, argument

    def done(self):
        if not self.ends:  # else the machine was taken away, and each call is asked whether it is to be cancelled
            try:
                self.function(self.argument)
            except BaseException as end:
                self.ends.append(end)
                raise
        return True

    def result(self):
        return None

    def cancel(self):
        pass


class Here(ClusterExecutor):
    inspect_there, poll_s = False, 0.001

    def __init__(self, images_per_job: int | None = None):
        super().__init__(1, 0, None, 16, images_per_job)

    def start(self, function, calls, folder):
        Call.ends.clear()
        return [Call(function, argument) for argument, _ in calls]
"""

COUNT = 5


@pytest.fixture
def words(tmp_path, plugins):
    mine = tmp_path / "mine"
    for choice, name in (("metric", "shift"), ("executor", "here")):
        (mine / choice).mkdir(parents=True)
        (mine / choice / f"{name}.yaml").write_text(f"_target_: {name}_plugin.{name.capitalize()}\n")
    (mine / "executor" / "here.yaml").write_text("_target_: here_plugin.Here\nimages_per_job: null\n")
    (mine / "metric" / "deviation_shift.yaml").write_text("_target_: shift_plugin.Shift\nagainst: exact\n")
    (mine / "shift_plugin.py").write_text(PLUGIN)
    (mine / "here_plugin.py").write_text(EXECUTOR)
    metrics = "metrics=[psnr,deviation_psnr,shift,deviation_shift]"
    images = tmp_path / "five"
    images.mkdir()
    for n in range(COUNT):
        pixels = np.random.default_rng(n).integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"picture{n}.png")
    return [f"plugins=['{plugins}',{mine}]", f"task.images={images}", "attention=[exact,nystra]", "measure=quality"] + [
        *("attention.landmarks=4", "position_bias=native", "figures=[]", "tables=[main]", metrics)
    ]


@pytest.fixture
def measured(monkeypatch):
    """The images whose outputs were made, in their order."""
    found, output = [], Pass._output

    def counted(self, sample):
        found.append((self.job.cell.content["attention"]["name"], sample.id))
        return output(self, sample)

    monkeypatch.setattr(Pass, "_output", counted)
    return found


def values(bench):
    """The numbers of each attention, and what else its value holds."""
    return {r["cell"]["attention"]["name"]: r["value"] for r in bench.stored()}


def names(attention, *numbers):
    return [(attention, f"picture{number}") for number in numbers]


@pytest.fixture
def whole(bench, words, here, measured, tmp_path):
    """An undisturbed run's values."""
    undisturbed = type(bench)(tmp_path / "undisturbed", bench.plugins, bench.capfd)
    assert undisturbed(*words).code == 0
    assert measured == names("exact", *range(COUNT)) + names("nystra", *range(COUNT))
    measured.clear()
    found = values(undisturbed)
    assert found["nystra"]["set"]["metrics"]["deviation_shift"] > 0 and len(found["nystra"]["images"]) == COUNT
    return found


class Killed(BaseException):
    """As kill -9, but that this process goes on."""


@pytest.fixture
def kill_behind(monkeypatch):
    """Ends a run like ``kill -9`` behind so many images, but that this process goes on."""
    append = Journal.append

    def set_up(images):
        left = [images]

        def append_and_die(self, record):
            append(self, record)
            left[0] -= 1
            if not left[0]:
                raise Killed

        monkeypatch.setattr(Journal, "append", append_and_die)

    return set_up


def test_a_run_that_is_killed_at_every_image_measures_each_once_and_has_the_same_numbers(
    bench, words, whole, measured, kill_behind
):
    """Those of whole sets included; the first image's output is made again, for the panel."""
    for _ in range(COUNT):
        kill_behind(1)
        with pytest.raises(Killed):
            bench(*words)
    assert measured == names("exact", *range(COUNT))
    kill_behind(-1)
    assert bench(*words).code == 0
    assert measured == names("exact", *range(COUNT), 0) + names("nystra", *range(COUNT))
    assert values(bench) == whole
    assert [*bench.results.glob("store/*/journal*")] == []


def test_an_image_whose_features_were_lost_is_measured_again(bench, words, whole, measured, kill_behind):
    kill_behind(3)
    with pytest.raises(Killed):
        bench(*words)
    lost, *_ = sorted(bench.results.glob("store/*/journal/*.npz"), key=lambda file: file.stat().st_mtime_ns)
    lost.unlink()
    kill_behind(-1)
    assert bench(*words).code == 0
    assert measured[3:6] == names("exact", 0, 3, 4)
    assert values(bench) == whole


@pytest.mark.parametrize("images_per_job", [2, 4])
def test_a_set_that_is_spread_over_jobs_has_the_same_numbers(bench, words, whole, measured, images_per_job):
    outcome = bench(*words, "executor=here", f"executor.images_per_job={images_per_job}")
    assert outcome.code == 0
    spans = [range(first, min(first + images_per_job, COUNT)) for first in range(0, COUNT, images_per_job)]
    of_parts = [name for span in spans for attention in ("exact", "nystra") for name in names(attention, *span)]
    assert measured == of_parts + names("exact", 0) + names("nystra", 0)  # the first again, for the panel
    assert values(bench) == whole
    assert [*bench.results.glob("store/*/journal*")] == []
    assert sum(" done" in line for line in outcome.err.splitlines()) == 2


def test_a_cell_that_was_spread_goes_on_in_another_way_of_spreading(bench, words, whole, measured, kill_behind):
    kill_behind(3)  # the second of the first part's images under nystra
    with pytest.raises(Killed):
        bench(*words, "executor=here", "executor.images_per_job=2")
    kill_behind(-1)
    assert bench(*words, "executor=here", "executor.images_per_job=3").code == 0
    assert measured == [
        *(names("exact", 0, 1) + names("nystra", 0)),
        *(names("exact", 2) + names("nystra", 1, 2) + names("exact", 3, 4) + names("nystra", 3, 4)),
        *(names("exact", 0) + names("nystra", 0)),
    ]
    assert values(bench) == whole


def test_progress_tells_what_was_kept(bench, words, here, kill_behind, monkeypatch):
    told, words = [], ["attention=exact" if "attention=" in word else word for word in words if "landmarks" not in word]
    monkeypatch.setattr(Progress, "_within", lambda self, event: told.append((event["done"], event.get("kept"))))
    kill_behind(2)
    with pytest.raises(Killed):
        bench(*words)
    kill_behind(-1)
    assert bench(*words).code == 0
    assert told == [(1, None), (3, 2), (4, 2), (5, 2)]
