"""Adapters: exact attention through the seam is what spandrel's own model computes, and undoing leaves no trace."""

from __future__ import annotations

import sys

import pytest
import torch
from spandrel_models import SHAPES, WINDOWS, sizes, spandrel_model
from torch import nn

from nystra_bench.attention.base import Attention
from nystra_bench.attention.exact import ExactAttention
from nystra_bench.attention.identity import IdentityAttention
from nystra_bench.attention.nystra_plus import NystraPlusAttention
from nystra_bench.errors import UserError
from nystra_bench.models import attention_sites, plug, unplug
from nystra_bench.models.sites import adapt, adapters, kept_as_they_are, release

pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid")  # spandrel's

KEPT = {"DAT": 4, "HAT": 2 + 4, "RGT": 4, "GRL": 4}
"""How many attentions stay: DAT's between channels, HAT's overlapping ones and those of channels, …"""


def picture(height: int, width: int, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(height))


class WithoutBias(Attention):
    def forward(self, q, k, v, window):
        return (q @ k.mT).softmax(-1) @ v


class Seen(Attention):
    """Exact attention that keeps what it was told."""

    def __init__(self):
        super().__init__()
        self.windows, self.shapes = [], []

    def forward(self, q, k, v, window):
        self.windows.append(window)
        self.shapes.append(q.shape)
        return ExactAttention()(q, k, v, window)


def test_every_adapter_has_its_small_model_here():
    assert {*adapters()} == {*SHAPES}


@pytest.mark.parametrize("name", SHAPES)
@torch.inference_mode()
def test_exact_through_the_seam_equals_the_unplugged_model_and_undoing_leaves_no_trace(name):
    model = spandrel_model(name)
    before, kinds = model.state_dict(), [type(module) for module in model.modules()]
    attributes = [set(module.__dict__) for module in model.modules()]
    for size in sizes(name):
        image = picture(*size)
        expected = model(image)
        assert adapt(model) is model and [*model.state_dict()] == [*before]
        assert (model(image) - expected).norm() <= 1e-5 * expected.norm(), size
        assert release(model) is model
        assert torch.equal(model(image), expected)
    assert [type(module) for module in model.modules()] == kinds
    assert [set(module.__dict__) for module in model.modules()] == attributes


@pytest.mark.parametrize("name", SHAPES)
@torch.inference_mode()
def test_bias_mask_and_windows_reach_the_attention(name):
    """If they had no influence on the output, equality with the unplugged model would say nothing about them."""
    model = spandrel_model(name)
    image = picture(*sizes(name)[0], count=1)
    expected = model(image)
    seen = plug(model, Seen()) and attention_sites(model)[0].attention
    model(image)
    assert {(w.height, w.width) for w in seen.windows} == WINDOWS.get(name, {(8, 8)})
    assert all(w.has_bias and w.tokens == shape[2] for w, shape in zip(seen.windows, seen.shapes, strict=True))
    assert {w.has_regions for w in seen.windows} == {True, False}
    for window, shape in zip(seen.windows, seen.shapes, strict=True):
        assert window.bias().shape == (shape[1], window.tokens, window.tokens)
        assert not window.has_regions or len(window.regions()) == shape[0]
    assert (plug(model, WithoutBias())(image) - expected).norm() > 1e-4 * expected.norm()


@pytest.mark.parametrize("name", SHAPES)
@torch.inference_mode()
def test_a_users_model_is_plugged_and_unplugged_in_place(name):
    model = spandrel_model(name)
    image = picture(*sizes(name)[0], count=1)
    expected = model(image)
    assert plug(model, NystraPlusAttention(4)) is model
    near = model(image)
    far = plug(model, IdentityAttention())(image)
    assert 0 < (near - expected).norm() < (far - expected).norm()
    assert unplug(model) is model and torch.equal(model(image), expected) and not attention_sites(model)


@torch.inference_mode()
def test_what_spandrel_loaded_is_plugged_by_the_library():
    import spandrel

    import nystra_bench

    loaded = spandrel.ModelLoader().load_from_state_dict(spandrel_model("DAT").state_dict()).eval()
    image = picture(16, 24, count=1)
    expected = loaded.model(image)
    assert nystra_bench.plug(loaded, "nystra_plus(landmarks=4)") is loaded
    assert (loaded.model(image) - expected).norm() > 1e-6 * expected.norm()
    with pytest.raises(UserError, match="landmarks=64 exceed the 32 tokens of a 4x8 window"):
        nystra_bench.plug(loaded, "nystra(landmarks=64)")
    assert nystra_bench.unplug(loaded) is loaded and torch.equal(loaded.model(image), expected)


def test_what_is_not_replaced_is_told_with_its_reason():
    for name in SHAPES:
        kept = kept_as_they_are(adapt(spandrel_model(name)))
        assert len(kept) == KEPT.get(name, 0) and all(kept.values())


def test_adapting_twice_changes_nothing_and_the_model_moves_and_is_copied_with_its_sites():
    from copy import deepcopy

    model = adapt(spandrel_model("DAT"))
    sites = attention_sites(model)
    assert attention_sites(adapt(model)) == sites
    copied = deepcopy(model).double()
    assert len(attention_sites(copied)) == len(sites) and attention_sites(copied)[0] is not sites[0]
    image = picture(16, 16, count=1)
    torch.testing.assert_close(copied(image.double()).float(), model(image), rtol=1e-4, atol=1e-4)


def test_an_architecture_without_adapter_is_told_with_those_that_have_one():
    with pytest.raises(UserError, match="Linear is an architecture without an adapter: accepted are DAT, "):
        plug(nn.Linear(2, 2), IdentityAttention())
    with pytest.raises(UserError, match="str is no model"):
        plug("DAT", IdentityAttention())


def test_a_model_with_nothing_to_replace_is_told_and_left_as_it_is():
    model = spandrel_model("SwinIR")
    model.layers = nn.ModuleList()
    with pytest.raises(UserError, match="no attention that can be replaced"):
        plug(model, IdentityAttention())
    assert type(model).__module__.startswith("spandrel")


ADAPTER = '''
from nystra_bench.models.sites import Adapter, Site


class Everywhere(Site):
    has_bias = False

    def window_of_module(self):
        return None

    def forward(self, x):
        q = k = v = x.flatten(2).mT[:, None]
        out = self.attend(q, k, v, None, tuple(x.shape[-2:]))
        return out[:, 0].mT.unflatten(2, x.shape[-2:])


class Tiny(Adapter):
    architecture = "Tiny"
    mixins = {"Global": Everywhere}
'''


class Global(nn.Module):
    def forward(self, x):
        tokens = x.flatten(2).mT
        return ((tokens @ tokens.mT).softmax(-1) @ tokens).mT.unflatten(2, x.shape[-2:])


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 3, 1)
        self.attend_everywhere = Global()

    def forward(self, x):
        return self.attend_everywhere(self.first(x))


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    (tmp_path / "nystra_adapters").mkdir()
    (tmp_path / "nystra_adapters" / "tiny.py").write_text(ADAPTER)
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.startswith("nystra_adapters")]:
        monkeypatch.delitem(sys.modules, name)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("nystra_adapters")]:
        del sys.modules[name]


@torch.inference_mode()
def test_an_adapter_in_a_plug_in_folder_is_found_without_any_other_edit(plugin):
    model, image = Tiny(), picture(4, 6)
    expected = model(image)
    seen = plug(model, Seen()) and attention_sites(model)[0].attention
    torch.testing.assert_close(model(image), expected)
    assert (seen.windows[0].height, seen.windows[0].width) == (4, 6) and not seen.windows[0].has_bias
    assert torch.equal(plug(model, IdentityAttention())(image), model.first(image))


def test_a_broken_adapter_is_told_by_its_name(plugin):
    (plugin / "nystra_adapters" / "broken.py").write_text("import nothing_of_that_name\n")
    with pytest.raises(UserError, match="nystra_adapters.broken cannot be imported"):
        adapters()
