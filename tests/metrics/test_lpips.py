"""LPIPS against the ``lpips`` package with torchvision's networks filled by other means."""

from pathlib import Path

from nystra_bench.conformance import generated_backbones  # the guard before lpips

# isort: split
import lpips
import numpy as np
import pytest
import torch
import torchvision

from nystra_bench.errors import UserError
from nystra_bench.metrics.conventions import RGB8, super_resolution
from nystra_bench.metrics.lpips import SMALLEST, Lpips

SQUEEZENET = Path(__file__).resolve().parents[3] / "shared" / "weights" / "lpips" / "squeezenet1_1_features.pth"


def pair(height=64, width=80, seed=0, channels=3):
    rng = np.random.default_rng(seed)
    clean = rng.random((height, width, channels), np.float32)
    return clean + rng.normal(0, 0.2, clean.shape).astype(np.float32), clean


def by_the_package(net, backbone, output, target, monkeypatch):
    """The package builds its slices itself, from a torchvision network that has the weights."""
    make = getattr(torchvision.models, generated_backbones.NETWORKS[net])

    def filled(pretrained):
        assert pretrained
        network = make(weights=None)
        missing, _ = network.load_state_dict(torch.load(backbone, weights_only=True), strict=False)
        assert not [name for name in missing if name.startswith("features")]
        return network

    with monkeypatch.context() as patched:
        patched.setattr(torchvision.models, generated_backbones.NETWORKS[net], filled)
        network = lpips.LPIPS(net=net, verbose=False)
    tensors = (torch.from_numpy(image.clip(0, 1)).permute(2, 0, 1)[None] for image in (output, target))
    with torch.no_grad():
        return network(*tensors, normalize=True).item()


@pytest.mark.skipif(not SQUEEZENET.is_file(), reason="the shared weights are absent")
def test_squeeze_is_the_packages_on_the_released_weights(monkeypatch):
    metric = Lpips("squeeze", str(SQUEEZENET))
    assert metric.available() is None
    for seed, size in enumerate([(64, 80), (33, 47), (128, 128)]):
        output, target = pair(*size, seed)
        expected = by_the_package("squeeze", SQUEEZENET, output, target, monkeypatch)
        assert expected > 0.01
        assert metric(output, target, RGB8) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("net", sorted(SMALLEST))
def test_any_network_is_the_packages(net, tmp_path, monkeypatch):
    backbone = generated_backbones.write_features(net, tmp_path / "features.pth")
    output, target = pair()
    expected = by_the_package(net, backbone, output, target, monkeypatch)
    assert expected > 1e-3
    assert Lpips(net, str(backbone))(output, target, RGB8) == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def squeeze(tmp_path_factory):
    return str(generated_backbones.write_features("squeeze", tmp_path_factory.mktemp("features") / "squeeze.pth"))


def test_the_convention_is_its_own(squeeze):
    metric, (output, target) = Lpips("squeeze", squeeze), pair()
    assert metric(output, target, RGB8) == metric(output, target, super_resolution(4))
    assert metric(output, target, RGB8) == metric(output.clip(0, 1), target, RGB8)
    described = metric.describe(super_resolution(4))
    assert described["higher_is_better"] is False
    assert "whole image, clipped, float" in described["convention"]


def test_grey_images_are_seen_as_three_equal_channels(squeeze):
    metric, (output, target) = Lpips("squeeze", squeeze), pair(channels=1)
    thrice = (np.repeat(image, 3, -1) for image in (output, target))
    assert metric(output, target, RGB8) == pytest.approx(metric(*thrice, RGB8), abs=1e-7)


def test_what_is_not_a_number_stays_so(squeeze):
    output, target = pair()
    output[5, 5] = np.nan
    assert np.isnan(Lpips("squeeze", squeeze)(output, target, RGB8))


def test_the_smallest_size_runs_and_a_smaller_one_is_refused(squeeze):
    metric, side = Lpips("squeeze", squeeze), SMALLEST["squeeze"]
    assert metric(*pair(side, side), RGB8) > 0
    with pytest.raises(UserError, match="metrics=lpips_squeeze needs images of 17 pixels a side, not 40x16"):
        metric(*pair(side - 1, 40), RGB8)


@pytest.mark.parametrize("net", sorted(SMALLEST))
def test_without_a_backbone_it_says_what_to_run(net, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert Lpips(net).available().endswith(f"it comes with python -m nystra_bench.fetch lpips-{net}")
    with pytest.raises(UserError, match="is not on this machine"):
        Lpips(net)(*pair(), RGB8)
    assert not list(tmp_path.iterdir())
    assert "nowhere.pth, given for its backbone, is no file" in Lpips(net, "nowhere.pth").available()


def test_a_fetched_backbone_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    generated_backbones.write_features("squeeze", folder / "squeezenet1_1-b8a52dc0.pth")
    assert Lpips("squeeze").available() is None
    assert Lpips("squeeze")(*pair(), RGB8) > 0


def test_files_that_do_not_fit_are_refused(tmp_path, squeeze):
    alex = generated_backbones.write_features("alex", tmp_path / "alex.pth")
    with pytest.raises(UserError, match="does not hold the features of torchvision's network for LPIPS-squeeze"):
        Lpips("squeeze", str(alex))(*pair(), RGB8)
    state = torch.load(squeeze, weights_only=True)
    torch.save({**state, "features.0.weight": torch.zeros(64, 1, 3, 3)}, tmp_path / "shape.pth")
    with pytest.raises(UserError, match="features of another shape"):
        Lpips("squeeze", str(tmp_path / "shape.pth"))(*pair(), RGB8)
    (tmp_path / "text.pth").write_text("no weights")
    torch.save(torch.nn.Linear(1, 1), tmp_path / "code.pth")
    for name in ("text", "code"):
        with pytest.raises(UserError, match="damaged or holds more than tensors"):
            Lpips("squeeze", str(tmp_path / f"{name}.pth"))(*pair(), RGB8)
    with pytest.raises(ValueError, match="net=resnet is unknown: accepted are alex, squeeze, vgg"):
        Lpips("resnet")
