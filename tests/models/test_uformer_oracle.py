"""Uformer against spandrel's on the same random weights: the released sizes, and every other kind shrunk."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from attention_references import relative_error
from spandrel.architectures.Uformer import UformerArch
from spandrel_uformer import official
from unmasked import without_masks

from nystra_bench.models.uformer import Uformer, UformerSpec, infer_spec

pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid")  # spandrel's

SMALL = UformerSpec(embed_dim=8, depths=(2, 1, 1, 2, 2, 1, 2, 1, 2), heads=(1, 2, 4, 8, 16, 8, 4, 2, 1))
VARIANTS = {
    "linear, LeFF, modulators": SMALL,
    "convolutional projection": replace(SMALL, projection="conv"),
    "no modulators": replace(SMALL, modulator=False),
    "no bias of q, k, v": replace(SMALL, qkv_bias=False),
    "plain MLP": replace(SMALL, mlp="ffn"),
    "full convolution in the MLP": replace(SMALL, mlp="fastleff", mlp_ratio=2.0),
    "built for larger images": replace(SMALL, shifted_bottleneck=True),
    "three blocks in the bottleneck": replace(SMALL, embed_dim=12, depths=(1, 1, 1, 1, 3, 1, 1, 1, 1)),
    "window 4": replace(SMALL, window=4),
    "window 6": replace(SMALL, window=6),
    "grey": replace(SMALL, channels=1, out_channels=1),
    "six channels in, three out": replace(SMALL, channels=6),
}
RELEASED = {
    "T": UformerSpec(embed_dim=16),
    "T conv": UformerSpec(embed_dim=16, projection="conv"),
    "S": UformerSpec(),
    "B": UformerSpec(depths=(1, 2, 8, 8, 2, 8, 8, 2, 1)),
}


def images(count: int, channels: int, height: int, width: int) -> torch.Tensor:
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(1))


def pair(spec: UformerSpec, randomised):
    """spandrel's model with random weights, and ours with the same."""
    oracle = randomised(official(spec))
    state = oracle.state_dict()
    model = Uformer(replace(infer_spec(state), shifted_bottleneck=spec.shifted_bottleneck))
    model.load_state_dict(state, strict=True)
    return oracle, model.eval()


@pytest.mark.parametrize("spec", VARIANTS.values(), ids=VARIANTS.keys())
@torch.inference_mode()
def test_output_equals_spandrels(spec, randomised):
    oracle, model = pair(spec, randomised)
    assert model.spec == spec
    for windows, count in ((16, 2), (32, 1)):
        x = images(count, spec.channels, windows * spec.window, windows * spec.window)
        assert relative_error(model(x), oracle(x)) <= 1e-5


@pytest.mark.parametrize("spec", RELEASED.values(), ids=RELEASED.keys())
@torch.inference_mode()
def test_released_sizes_equal_spandrels(spec, randomised):
    oracle, model = pair(spec, randomised)
    x = images(1, 3, 128, 128)
    assert relative_error(model(x), oracle(x)) <= 1e-5


@pytest.mark.parametrize("height, width", ((70, 200), (1, 1), (127, 64), (128, 40)))
@torch.inference_mode()
def test_other_images_are_put_in_the_centre_of_a_black_square(height, width, randomised):
    """As the released test scripts do before they call the model: (X - h) // 2 rows above, (X - w) // 2 at the left."""
    oracle, model = pair(SMALL, randomised)
    x = images(2, 3, height, width)
    side = 256 if width == 200 else 128
    top, left = (side - height) // 2, (side - width) // 2
    square = torch.zeros(2, 3, side, side)
    square[:, :, top : top + height, left : left + width] = x
    expected = oracle(square)[:, :, top : top + height, left : left + width]
    assert relative_error(model(x), expected) <= 1e-5


@torch.inference_mode()
def test_the_comparison_feels_bias_mask_modulators_and_the_shift_of_the_bottleneck(randomised):
    """If one had no influence on the output, equality with the oracle would say nothing about it."""
    x = images(1, 3, 256, 256)
    oracle, _ = pair(SMALL, randomised)
    expected = oracle(x)

    def zero(part):
        model = pair(SMALL, randomised)[1]
        for name, parameter in model.named_parameters():
            if part in name:
                parameter.zero_()
        return model

    unmasked = without_masks(pair(SMALL, randomised)[1])
    shifted = Uformer(replace(SMALL, shifted_bottleneck=True)).eval()
    shifted.load_state_dict(oracle.state_dict())
    for changed in (zero("relative_position_bias_table"), zero("modulator"), unmasked, shifted):
        assert relative_error(changed(x), expected) > 1e-4


def test_our_state_dict_loads_into_spandrel_with_the_same_keys_and_buffers(randomised):
    model = randomised(Uformer(SMALL))
    oracle = UformerArch().load(dict(model.state_dict())).model
    assert oracle.state_dict().keys() == model.state_dict().keys()
    expected, actual = official(SMALL).state_dict(), Uformer(SMALL).state_dict()
    indices = [key for key in expected if key.endswith("relative_position_index")]
    assert len(indices) == sum(SMALL.depths)
    assert all(torch.equal(actual[key], expected[key]) for key in indices)
