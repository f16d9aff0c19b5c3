"""What every metric keeps to.

Metrics that look through the networks of ``metrics/lpips.py`` and ``metrics/fidelity.py`` get generated weights; others
whose weights are not on this machine are skipped, with their reason.
"""

import json

import numpy as np
import pytest

from nystra_bench.configuration import locate
from nystra_bench.metrics.base import Metric
from nystra_bench.metrics.conventions import DEHAZE, RGB8, super_resolution
from nystra_bench.metrics.fidelity import Fid, Kid
from nystra_bench.metrics.lpips import Lpips

MAKE_EACH = """
import json, sys
from pathlib import Path
from nystra_bench.conformance.subjects import OptionFolder

large, seen, found = {"torch", "lpips", "torchvision", "torch_fidelity"}, set(), {}
for subject in OptionFolder(Path(sys.argv[1])).subjects("metric"):
    subject.fault  # makes it
    found[subject.name] = sorted(large & set(sys.modules) - seen)
    seen |= set(sys.modules)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def backbones():
    """What writes the weights of networks; it imports them all."""
    from nystra_bench.conformance import generated_backbones

    return generated_backbones


@pytest.fixture(scope="module")
def inception(backbones, tmp_path_factory):
    return str(backbones.write_inception(tmp_path_factory.mktemp("inception") / "inception.pth"))


@pytest.fixture(scope="module")
def ready(subject, request, tmp_path_factory):
    """What makes the metric usable without any weights on this machine."""
    kind = locate(subject.config["_target_"])
    if isinstance(kind, type) and issubclass(kind, (Fid, Kid)):
        return subject.make(inception=request.getfixturevalue("inception"))
    if isinstance(kind, type) and issubclass(kind, Lpips):
        file = tmp_path_factory.mktemp("backbone") / "features.pth"
        backbones = request.getfixturevalue("backbones")
        return subject.make(backbone=str(backbones.write_features(subject.config["net"], file)))
    return subject.make()


@pytest.fixture
def metric(subject, ready):
    if reason := ready.available():
        pytest.skip(f"{subject}: {reason}")
    return ready


def clean():
    y, x = np.mgrid[:66, :130] / 30
    return np.stack([np.sin(x) ** 2, np.cos(y) ** 2, (x + y) / 9], -1).astype(np.float32)


def noisy(sigma):
    return clean() + np.random.default_rng(0).normal(0, sigma, clean().shape).astype(np.float32)


def test_it_describes_itself(subject):
    metric = subject.make()
    assert isinstance(metric, Metric)
    for task in (RGB8, DEHAZE, super_resolution(4)):
        described = metric.describe(task)
        assert isinstance(described["higher_is_better"], bool)
        assert isinstance(described["unit"], str)
        assert described["convention"].startswith("against the ")
        assert any(words in described["convention"] for words in ("whole image", "border of 4 pixels"))
    assert metric.version and metric.__class__.__doc__


def test_the_reason_why_it_is_not_available_is_a_clause(subject, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # where the weights of networks would be
    reason = subject.make().available()
    assert reason is None or (isinstance(reason, str) and reason)
    if reason:
        assert "\n" not in reason and not reason.endswith(".")  # the report puts the full stop


@pytest.mark.parametrize("convention", [RGB8, DEHAZE, super_resolution(2)], ids=lambda c: c.name)
def test_equal_images_are_best_and_noise_is_worse(metric, convention):
    numbers = [metric(image, clean(), convention) for image in (clean(), *map(noisy, (0.03, 0.1, 0.3)))]
    assert all(isinstance(number, float) for number in numbers)
    best_first = sorted(numbers, reverse=metric.higher_is_better)
    assert numbers == best_first, "equal images, and more and more noise"
    assert len(set(numbers)) == len(numbers)


def test_images_are_left_as_they_are(metric):
    output, target = noisy(0.3), clean()
    metric(output, target, RGB8)
    assert np.array_equal(output, noisy(0.3)) and np.array_equal(target, clean())


def test_a_number_does_not_depend_on_what_came_before(metric):
    first = metric(noisy(0.1), clean(), RGB8)
    metric(noisy(0.3), clean(), RGB8)
    assert metric(noisy(0.1), clean(), RGB8) == first


@pytest.fixture(scope="module")
def imported(tested):
    """Large packages that making each metric is the first to import, in a process that has none."""
    run = tested.python("-c", MAKE_EACH, str(tested.folder))
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_making_it_imports_nothing_large(subject, imported):
    """Planning makes metrics, too, and imports no torch."""
    assert imported[subject.name] == []
