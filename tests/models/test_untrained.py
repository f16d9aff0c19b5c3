"""Models of random weights: the published sizes, seeded, and refused where quality is measured."""

import pytest
import torch

from nystra_bench.configuration import Catalogue, configs_folder
from nystra_bench.errors import UserError
from nystra_bench.models import load_configured, load_model
from nystra_bench.models.untrained import RANDOM, digest, load_untrained, made_from

CATALOGUE = Catalogue([configs_folder()])
RANDOM_MODELS = [name for name in CATALOGUE.names("model") if CATALOGUE.option("model", name)["weights"] == RANDOM]
MILLIONS = {
    "random_uformer_b": 50.88,  # Uformer's paper, table 1
    "random_swinir_m_x2": 11.75,  # SwinIR's released checkpoints of classical super-resolution
    "random_swinir_m_x4": 11.90,
    "random_swinir_m_x8": 12.05,  # one more ×2 of the upsampler than ×4: 64 * 256 * 9 + 256 parameters
    "random_dehazeformer_b": 2.514,  # DehazeFormer's README; its count of T is 1,400 below the released weights'
}
SMALL = {"architecture": "nystra_bench.models.swinir.SwinIR", "shape": {"dim": 8, "depths": [2], "heads": [2]}}


@pytest.mark.parametrize("name", RANDOM_MODELS)
def test_it_has_as_many_parameters_as_the_published_model(name):
    model = load_model(name)
    assert not model.training
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert count == pytest.approx(MILLIONS[name], abs=0.005)


def test_the_seed_decides_the_weights_and_no_other_random_number_does():
    before = torch.random.get_rng_state()
    first, again = load_untrained(**SMALL), load_untrained(**SMALL)
    torch.rand(3)
    other = load_untrained(**SMALL, seed=1)
    torch.random.set_rng_state(before)
    assert torch.equal(torch.random.get_rng_state(), before)
    weights, same, different = (model.state_dict()["conv_first.weight"] for model in (first, again, other))
    assert torch.equal(weights, same) and not torch.equal(weights, different)
    assert digest(first) == digest(again) != digest(other)


def test_loading_leaves_the_state_of_the_random_generator():
    before = torch.random.get_rng_state()
    load_untrained(**SMALL)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_digest_tells_shapes_and_architectures_apart():
    wider = SMALL | {"shape": {**SMALL["shape"], "dim": 12}}
    assert digest(load_untrained(**SMALL)) != digest(load_untrained(**wider))


def test_it_works_on_other_windows_as_trained_ones_do():
    config = {"_target_": "nystra_bench.models.untrained.load_untrained", "weights": RANDOM, **SMALL}
    model = load_configured(config, 16, "drop")
    assert model.window_size == 16 and made_from(model)
    assert model(torch.rand(1, 3, 20, 17)).shape == (1, 3, 20, 17)


def test_trained_models_are_made_from_nothing_random():
    assert made_from(load_model("swinir_x2")) is None


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"weights": "x.pth"}, ["model.weights=x.pth", RANDOM]),
        ({"shape": {"dimm": 8}}, ["model.shape", "dimm"]),
        ({"shape": {"dim": 7, "heads": [2]}}, ["model.shape", "heads"]),
        ({"architecture": "nystra_bench.models.swinir.Nope"}, ["nystra_bench.models.swinir.Nope"]),
    ],
)
def test_what_does_not_fit_is_told_in_a_sentence(changes, parts):
    with pytest.raises(UserError) as error:
        load_untrained(**SMALL | changes)
    assert all(part in str(error.value) for part in parts)
