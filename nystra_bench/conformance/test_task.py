"""What every task keeps to, on its first samples; tasks without images on this machine are skipped, with the reason."""

import json
import random

import numpy as np
import pytest
import torch

from nystra_bench.conformance.samples import COUNT, fingerprint, first, small
from nystra_bench.metrics.conventions import Convention
from nystra_bench.tasks.base import CALIBRATION_CROP, Task


@pytest.fixture
def task(subject) -> Task:
    return small(subject)


def check_sample(sample, task) -> None:
    """The format of a sample."""
    assert isinstance(sample.id, str) and sample.id
    for image in (sample.degraded, sample.clean):
        assert isinstance(image, np.ndarray) and image.dtype == np.float32
        assert image.ndim == 3 and image.shape[2] == task.channels
        assert np.isfinite(image).all()
    assert sample.clean.min() >= 0 and sample.clean.max() <= 1
    height, width = sample.degraded.shape[:2]
    assert sample.clean.shape[:2] == (task.scale * height, task.scale * width), "clean is scale times degraded"


@pytest.mark.absent_too
def test_what_is_planned_with_is_told_without_images(subject):
    """Also where the images are absent: a cell is then skipped, and has its row all the same."""
    task = subject.make()
    assert isinstance(task, Task)
    assert isinstance(task.version, str) and task.version
    assert all(isinstance(number, int) and number >= 1 for number in (task.scale, task.channels))
    assert isinstance(task.convention, Convention)
    identity = task.identity()
    assert isinstance(identity, dict) and json.loads(json.dumps(identity)) == identity, "identity() is plain JSON"
    reason = task.available()
    if reason is not None:
        assert isinstance(reason, str) and reason and "\n" not in reason and not reason.endswith(".")


def test_samples_are_float32_images_with_clean_in_0_to_1(task):
    samples = first(task)
    assert samples
    for sample in samples:
        check_sample(sample, task)
    assert len({sample.id for sample in samples}) == len(samples)


def test_sizes_are_those_of_the_degraded_images(task):
    sizes = [tuple(size) for size in task.sizes()]
    samples = first(task, COUNT + 1)
    assert sizes[: len(samples)] == [sample.degraded.shape[:2] for sample in samples]
    assert len(samples) == COUNT + 1 or len(sizes) == len(samples)


def test_samples_are_the_same_whenever_they_are_made(subject, task):
    """In one instance, in a second, and whatever numbers others have drawn."""
    before = fingerprint(task)
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        assert fingerprint(task) == before
        assert fingerprint(small(subject)) == before


def test_a_sample_does_not_depend_on_those_before_it(task):
    """Nor on whether these were looked at."""
    together = first(task)
    alone = [next(sample for place, sample in enumerate(task.samples()) if place == n) for n in range(len(together))]
    for a, b in zip(together, alone, strict=True):
        assert a.id == b.id and np.array_equal(a.degraded, b.degraded) and np.array_equal(a.clean, b.clean)


def test_samples_are_chosen_by_their_ids(task):
    """Alone and without those before them, as a killed run and one that is spread over jobs ask for them."""
    ids, samples = task.ids(), first(task)
    assert ids[: len(samples)] == [sample.id for sample in samples]
    assert len(set(ids)) == len(ids) == len(task.sizes())
    (alone,) = task.chosen({ids[len(samples) - 1]})
    assert alone.id == samples[-1].id and np.array_equal(alone.degraded, samples[-1].degraded)
    assert np.array_equal(alone.clean, samples[-1].clean)
    assert list(task.chosen(set())) == []


@pytest.fixture(scope="module")
def elsewhere(tested):
    """Digests of the samples of all tasks that have images, from another process."""
    names = [s.name for s in tested.subjects("task") if not (s.fault or s.absent)]
    run = tested.python("-m", "nystra_bench.conformance.samples", str(tested.folder), *names)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_samples_are_the_same_in_another_process(subject, task, elsewhere):
    assert elsewhere[subject.name] == fingerprint(task)


def test_samples_do_not_depend_on_the_limit(subject, task):
    if subject.config.get("limit", 0) is not None:
        pytest.skip(f"{subject}: no limit is left open")
    (one,) = small(subject, limit=1).samples()
    of_more = first(task)[0]
    assert one.id == of_more.id
    assert np.array_equal(one.degraded, of_more.degraded) and np.array_equal(one.clean, of_more.clean)


def test_the_digest_is_of_the_images(task):
    digest = task.digest()
    assert isinstance(digest, str) and digest and task.digest() == digest
    assert isinstance(task.dataset, str) and task.dataset


def test_nothing_done_has_the_size_of_the_clean_image(task):
    for sample in first(task):
        before = sample.degraded.copy()
        output = task.as_output(sample.degraded)
        assert output.shape == sample.clean.shape and np.isfinite(output).all()
        assert np.array_equal(sample.degraded, before)


def test_methods_are_calibrated_on_small_samples_of_the_same_format(task):
    samples, measured = task.calibration(1)
    assert len(samples) <= 1 and isinstance(measured, bool)
    for sample in samples:
        check_sample(sample, task)
        assert max(sample.degraded.shape[:2]) <= CALIBRATION_CROP
    assert measured or not {s.id for s in samples} & {s.id for s in task.samples()}
