"""FID and KID against torch-fidelity itself, on an Inception with generated weights."""

from nystra_bench.conformance import generated_backbones  # the guard before torch-fidelity

# isort: split
import numpy as np
import pytest
import torch
import torch_fidelity

from nystra_bench.errors import UserError
from nystra_bench.metrics import fidelity
from nystra_bench.metrics.conventions import RGB8, super_resolution
from nystra_bench.metrics.fidelity import Fid, Kid

PATCH = 32


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return str(generated_backbones.write_inception(tmp_path_factory.mktemp("inception") / "inception.pth"))


def image(seed, height=PATCH + 3, width=2 * PATCH + 5, noise=0.0):
    rng = np.random.default_rng(seed)
    coarse = rng.random((height // 8 + 1, width // 8 + 1, 3))
    smooth = np.kron(coarse, np.ones((8, 8, 1)))[:height, :width]
    return (smooth + noise * rng.standard_normal(smooth.shape)).astype(np.float32)


PAIRS = [(image(seed, noise=0.3), image(seed)) for seed in range(3)]


def collected(metric, pairs=PAIRS):
    sets = metric.open(RGB8)
    for output, target in pairs:
        sets.add(output, target)
    return sets.result()


class Patches(torch.utils.data.Dataset):
    """The patches that the metrics should see, cut by hand."""

    def __init__(self, images):
        whole = [np.round(i.clip(0, 1) * 255).astype(np.uint8)[:PATCH] for i in images]
        self.patches = [w[:, left : left + PATCH] for w in whole for left in (0, PATCH)]

    def __len__(self):
        return len(self.patches)

    def __getitem__(self, n):
        return torch.from_numpy(np.ascontiguousarray(self.patches[n].transpose(2, 0, 1)))


@pytest.fixture
def layer(request, monkeypatch):
    monkeypatch.setattr(fidelity, "LAYER", request.param)
    fidelity.inception.cache_clear()
    yield request.param
    fidelity.inception.cache_clear()


@pytest.mark.parametrize(
    ("layer", "with_fid"),
    [("64", True), ("2048", False)],  # of 2048 features torch-fidelity's FID takes a minute here
    indirect=["layer"],
)
def test_fid_and_kid_are_torch_fidelitys(layer, with_fid, weights):
    expected = torch_fidelity.calculate_metrics(
        input1=Patches([output for output, _ in PAIRS]),
        input2=Patches([target for _, target in PAIRS]),
        fid=with_fid,
        feature_layer_fid=layer,
        kid=True,
        feature_layer_kid=layer,
        kid_subset_size=6,
        feature_extractor_weights_path=weights,
        cuda=False,
        cache=False,
        verbose=False,
        save_cpu_ram=True,
    )
    kid = expected["kernel_inception_distance_mean"]
    assert kid > 1e-6
    assert collected(Kid(PATCH, weights)) == pytest.approx(kid, rel=1e-3)
    if with_fid:
        fid = expected["frechet_inception_distance"]
        assert fid > 1e-3
        assert collected(Fid(PATCH, weights)) == pytest.approx(fid, rel=1e-3)


@pytest.mark.parametrize(("patches", "others"), [(5, 7), (40, 9), (60, 70)])
def test_fid_of_features_is_torch_fidelitys(patches, others):
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    rng = np.random.default_rng(0)
    mixing = rng.random((24, 24))
    a, b = rng.normal(size=(patches, 24)) @ mixing, rng.normal(0.4, 1.5, size=(others, 24)) @ mixing
    statistics = [fid_features_to_statistics(torch.from_numpy(features)) for features in (a, b)]
    expected = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert Fid().compare(a, b) == pytest.approx(expected, rel=1e-5)


def test_fid_by_hand():
    """One dimension: (mu_1 - mu_2)² + (sigma_1 - sigma_2)²."""
    a, b = np.array([[-1.0], [1.0]]), np.array([[1.0], [7.0]])
    assert Fid().compare(a, b) == pytest.approx(4**2 + (18**0.5 - 2**0.5) ** 2)


def test_kid_by_hand_and_in_subsets(monkeypatch):
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(6, 4)), rng.normal(0.5, 1, size=(6, 4))
    kernel = lambda x, y: (x @ y.T / 4 + 1) ** 3  # noqa: E731
    off = ~np.eye(6, dtype=bool)
    expected = kernel(a, a)[off].mean() + kernel(b, b)[off].mean() - 2 * kernel(a, b).mean()
    assert Kid().compare(a, b) == pytest.approx(expected, rel=1e-9)
    monkeypatch.setattr(fidelity, "KID_SUBSET", 4)
    assert Kid().compare(a, b) == Kid().compare(a, b) != pytest.approx(expected, rel=1e-3)


def test_sets_of_different_size_are_compared():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(5, 4)), rng.normal(size=(9, 4))
    assert Fid().compare(a, b) > 0
    assert np.isfinite(Kid().compare(a, b))


def test_equal_sets_are_nearest_and_noise_goes_farther(weights):
    for metric in (Fid(PATCH, weights), Kid(PATCH, weights)):
        numbers = [collected(metric, [(image(s, noise=n), image(s)) for s in (0, 1)]) for n in (0, 0.1, 0.5)]
        assert numbers == sorted(numbers) and len(set(numbers)) == 3
        assert numbers[0] < 1e-6


def test_features_are_computed_once_for_all_metrics(weights, monkeypatch):
    metrics = [Fid(PATCH, weights), Kid(PATCH, weights), Fid(PATCH, weights, against="exact")]
    expected = [collected(metric) for metric in metrics]
    monkeypatch.setattr(fidelity.Inception, "_compute", lambda self, patches: pytest.fail("computed again"))
    assert [collected(metric) for metric in metrics] == expected


def test_patches_lie_side_by_side_and_the_rest_is_left_out(weights):
    metric = Fid(PATCH, weights)
    patches = metric._patches(np.round(image(0, 2 * PATCH + 1, 3 * PATCH + 31).clip(0, 1) * 255) / 255)
    assert patches.shape == (6, 3, PATCH, PATCH) and patches.dtype == np.uint8
    below = np.round(image(0, 2 * PATCH + 1, 3 * PATCH + 31).clip(0, 1) * 255)[PATCH : 2 * PATCH, PATCH : 2 * PATCH]
    assert np.array_equal(patches[4].transpose(1, 2, 0), below)
    assert np.array_equal(*metric._patches(image(0)[..., :1].clip(0, 1))[:, :2].transpose(1, 0, 2, 3))


def test_what_is_not_a_number_stays_so(weights):
    broken = image(0).copy()
    broken[-1, -1] = np.nan  # outside of all patches
    for metric in (Fid(PATCH, weights), Kid(PATCH, weights)):
        assert np.isnan(collected(metric, [*PAIRS, (broken, image(0))]))


def test_it_says_what_it_is(weights):
    described = Fid(PATCH, weights, against="exact").describe(super_resolution(4))
    assert "exact attention" in described["convention"]
    assert "whole image, clipped and rounded to 8 bits; one number for the set" in described["convention"]
    assert "patches of 32x32 pixels" in described["convention"]


def test_mistakes_are_named(weights, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="patch=4 is out of range"):
        Fid(patch=4)
    with pytest.raises(UserError, match="patch=64 need images of that many pixels a side, not 69x35"):
        collected(Fid(64, weights))
    for metric in (Fid(PATCH, weights), Kid(PATCH, weights)):
        with pytest.raises(UserError, match="needs two patches or more"):
            collected(metric, [(image(0, PATCH, PATCH), image(1, PATCH, PATCH))])
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="does not hold torch-fidelity's Inception v3"):
        collected(Fid(PATCH, str(tmp_path / "other.pth")))
    torch.save(torch.nn.Linear(1, 1), tmp_path / "code.pth")
    with pytest.raises(UserError, match="damaged or holds more than tensors"):
        collected(Fid(PATCH, str(tmp_path / "code.pth")))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert Kid().available().endswith("it comes with python -m nystra_bench.fetch fid-inception")
    assert "weights-inception-2015-12-05-6726825d.pth" in Kid().available()
