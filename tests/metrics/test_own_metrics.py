"""What the project's own metrics keep to beyond the contract (``nystra_bench/conformance/test_metric.py``)."""

import numpy as np
import pytest

from nystra_bench.configuration import Catalogue, configs_folder, instantiate
from nystra_bench.conformance import generated_backbones
from nystra_bench.metrics.conventions import RGB8
from nystra_bench.metrics.lpips import SMALLEST, Lpips

CATALOGUE = Catalogue([configs_folder()])
NETWORKS = {"backbone", "inception"}
"""Parameters that name a file with weights."""

IMAGE = np.random.default_rng(0).random((66, 130, 3), np.float32)


@pytest.fixture(params=CATALOGUE.names("metric"))
def config(request):
    return CATALOGUE.option("metric", request.param)


def test_only_networks_are_ever_absent_and_the_reason_says_how_to_fetch_them(config, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    reason = instantiate(config).available()
    if NETWORKS & set(config):
        assert "python -m nystra_bench.fetch" in reason
    else:
        assert reason is None


def test_equal_images_give_none_one_or_infinity(config):
    if NETWORKS & set(config):
        pytest.skip("LPIPS is below, and distances of sets are estimates")
    number = instantiate(config)(IMAGE, IMAGE, RGB8)
    assert number in (0, float("inf")) or abs(number - 1) < 1e-9


@pytest.mark.parametrize("net", SMALLEST)
def test_lpips_of_equal_images_is_none(net, tmp_path):
    backbone = generated_backbones.write_features(net, tmp_path / "features.pth")
    assert Lpips(net, str(backbone))(IMAGE, IMAGE, RGB8) == 0
