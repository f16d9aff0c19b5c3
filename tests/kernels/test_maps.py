"""Kernels that find the windows of a map by themselves give what they give of windows that are cut out."""

from __future__ import annotations

import pytest
import torch
from attention_references import relative_error
from kernel_cases import CLOSE, HEADS, window_of

from nystra_bench import load_model
from nystra_bench.attention.exact import ExactAttention
from nystra_bench.attention.identity import IdentityAttention
from nystra_bench.attention.nystra_fused import FusedNystraAttention
from nystra_bench.attention.nystra_plus_fused import FusedNystraPlusAttention
from nystra_bench.models import plug
from nystra_bench.models.checkpoints import BUNDLED
from nystra_bench.models.cutting import in_windows, shift_regions, window_places
from nystra_bench.models.fiwhn import FIWHN, FIWHNSpec
from nystra_bench.models.uformer import Uformer, UformerSpec
from nystra_bench.models.windows import merge_heads, split_heads

pytestmark = pytest.mark.usefixtures("kernels_here", "without_gradients")

METHODS = (FusedNystraPlusAttention, FusedNystraAttention)

MAPS = {
    "shifted": ((2, 2), (16, 16), (8, 8), 30),
    "not shifted": ((1, 3), (16, 16), (0, 0), 30),
    "runs of single tokens": ((2, 3), (9, 6), (4, 5), 10),
    "narrower than a vector": ((2, 1), (8, 12), (4, 6), 3),
    "one window": ((1, 1), (8, 8), (4, 4), 16),
    "lying": ((3, 2), (4, 32), (2, 16), 10),
    "a row": ((3, 1), (1, 40), (0, 0), 16),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", MAPS)
@pytest.mark.parametrize("method", METHODS)
def test_windows_are_found_on_the_map(method, case, dtype):
    (rows, columns), size, shift, dim = MAPS[case]
    height, width, scale = rows * size[0], columns * size[1], 0.3
    regions = shift_regions(height, width, size, shift) if min(shift) > 1 else None
    landmarks = {"landmarks": 8} if min(size) == 1 else {}
    attention = method(**landmarks, implementation="fused")
    smooth = torch.randn(2, height, width, 8, generator=torch.Generator().manual_seed(0)).cumsum(1).cumsum(2) / 30
    x = (smooth @ torch.randn(8, 3 * HEADS * dim, generator=torch.Generator().manual_seed(1))).to(dtype)

    def cut_out(windows):
        q, k, v = split_heads(windows, 3, HEADS)
        return merge_heads(attention((q.float() * scale).to(dtype), k, v, window_of(*size, regions=regions)))

    expected = in_windows(x, size, shift, cut_out)
    places = window_places(height, width, size, shift)
    q, k, v = split_heads(x.flatten(1, 2), 3, HEADS)
    window = window_of(*size, regions=regions)
    assert attention.reads_maps(x, window)
    found = attention.forward_map(q, k, v, window, places, scale)
    assert found.shape == v.shape and found.dtype == dtype and found.transpose(1, 2).is_contiguous()
    if dtype == torch.float32:
        assert relative_error(merge_heads(found).view_as(expected), expected) < CLOSE
    else:  # queries that are scaled in half precision first are other queries
        precise = attention.forward_map(q.float(), k.float(), v.float(), window, places, scale)
        assert torch.equal(found, precise.bfloat16())


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_not_left_behind(method):
    with torch.inference_mode(False):
        assert not method(implementation="auto").reads_maps(torch.rand(1, 8, 8, 6), window_of(8, 8))


def cutting(kind):
    """The attention of this kind, for which windows have to be cut out."""
    return type(kind.__name__, (kind,), {"reads_maps": lambda self, x, window: False})


def models():
    """Models, and how far rounding may bring outputs apart: nearly equal weights are an ill-conditioned matrix."""
    for file in sorted(BUNDLED.glob("*.safetensors")):
        yield pytest.param(lambda name=file.stem: load_model(name), 1e-6, id=file.stem)
    small = {"depths": (2,) * 9, "heads": (1, 1, 2, 2, 4, 4, 2, 2, 1), "embed_dim": 8, "window": 4}
    yield pytest.param(lambda: Uformer(UformerSpec(**small, projection="conv")).eval(), 0, id="within windows alone")
    yield pytest.param(lambda: FIWHN(FIWHNSpec(scale=2)).eval(), 1e-4, id="strips")


@pytest.mark.parametrize("make, apart", [*models()])
def test_models_give_the_same_whether_windows_are_cut_out_or_not(make, apart):
    torch.manual_seed(0)
    model = make()
    image = torch.rand(2, model.channels, 36, 44, generator=torch.Generator().manual_seed(0))
    exact = plug(model, ExactAttention())(image)
    for kind in (IdentityAttention, FusedNystraPlusAttention, FusedNystraAttention):
        found = plug(model, kind())(image)
        expected = plug(model, cutting(kind)())(image)
        assert relative_error(found, expected) <= apart
        assert relative_error(found, exact) > CLOSE, "the attention has to matter for this to show anything"
