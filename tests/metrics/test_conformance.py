"""Every file of configs/metric keeps the contract of ``nystra_bench.metrics.base``."""

import subprocess
import sys

import generated_backbones
import numpy as np
import pytest

from nystra_bench.configuration import Catalogue, configs_folder, instantiate
from nystra_bench.metrics.base import SetMetric
from nystra_bench.metrics.conventions import DEHAZE, RGB8, super_resolution

CATALOGUE = Catalogue([configs_folder()])
NAMES = CATALOGUE.names("metric")


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    return str(generated_backbones.write_inception(tmp_path_factory.mktemp("inception") / "inception.pth"))


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def metric(name, inception, tmp_path_factory):
    """Ready for use, where it needs one with a generated backbone."""
    config = dict(CATALOGUE.option("metric", name))
    if "backbone" in config:
        file = tmp_path_factory.mktemp("backbone") / "features.pth"
        config["backbone"] = str(generated_backbones.write_features(config["net"], file))
    if "inception" in config:
        config["inception"] = inception
    metric = instantiate(config)
    assert metric.available() is None
    return metric


def clean():
    y, x = np.mgrid[:66, :130] / 30
    return np.stack([np.sin(x) ** 2, np.cos(y) ** 2, (x + y) / 9], -1).astype(np.float32)


def noisy(sigma):
    return clean() + np.random.default_rng(0).normal(0, sigma, clean().shape).astype(np.float32)


def test_it_describes_itself(name):
    metric = instantiate(CATALOGUE.option("metric", name))
    for task in (RGB8, DEHAZE, super_resolution(4)):
        described = metric.describe(task)
        assert isinstance(described["higher_is_better"], bool)
        assert isinstance(described["unit"], str)
        assert described["convention"].startswith("against the ")
        assert any(words in described["convention"] for words in ("whole image", "border of 4 pixels"))
    assert metric.version and metric.__class__.__doc__


def test_the_reason_why_it_is_not_available_is_a_sentence(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    config = CATALOGUE.option("metric", name)
    reason = instantiate(config).available()
    if not {"backbone", "inception"} & set(config):
        assert reason is None
    else:
        assert "python -m nystra_bench.fetch" in reason
        assert "\n" not in reason and not reason.endswith(".")  # the report puts the full stop


@pytest.mark.parametrize("convention", [RGB8, DEHAZE, super_resolution(2)], ids=lambda c: c.name)
def test_equal_images_are_best_and_noise_is_worse(metric, convention):
    numbers = [metric(image, clean(), convention) for image in (clean(), *map(noisy, (0.03, 0.1, 0.3)))]
    better_first = sorted(numbers, reverse=metric.higher_is_better)
    assert numbers == better_first
    assert len(set(numbers)) == len(numbers)
    assert all(isinstance(number, float) for number in numbers)
    assert numbers[0] in (0, 1, float("inf")) or isinstance(metric, SetMetric) or abs(numbers[0] - 1) < 1e-9


def test_images_are_left_as_they_are(metric):
    output, target = noisy(0.3), clean()
    metric(output, target, RGB8)
    assert np.array_equal(output, noisy(0.3)) and np.array_equal(target, clean())


def test_a_number_does_not_depend_on_what_came_before(metric):
    first = metric(noisy(0.1), clean(), RGB8)
    metric(noisy(0.3), clean(), RGB8)
    assert metric(noisy(0.1), clean(), RGB8) == first


def test_making_metrics_imports_no_torch():
    code = (
        "import sys; from nystra_bench.configuration import Catalogue, configs_folder, instantiate; "
        "c = Catalogue([configs_folder()]); [instantiate(c.option('metric', n)) for n in c.names('metric')]; "
        "assert 'torch' not in sys.modules and 'lpips' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
