"""Models are saved whole, copied and sent to other processes; what attentions keep stays behind and is made anew."""

import copy
import io
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

from nystra_bench.attention.sdpa import FusedAttention
from nystra_bench.models import plug
from nystra_bench.models.dehazeformer import DehazeFormer, DehazeFormerSpec
from nystra_bench.models.swinir import SwinIR, SwinIRSpec
from nystra_bench.models.uformer import Uformer, UformerSpec

MODELS = {
    "swinir": lambda: SwinIR(SwinIRSpec(dim=8, depths=(2,), heads=(2,), window=4, mlp_ratio=1.0)),
    "uformer": lambda: Uformer(UformerSpec(embed_dim=4, depths=(1,) * 9, heads=(1,) * 9, window=4)),
    "dehazeformer": lambda: DehazeFormer(
        DehazeFormerSpec(dims=(8, 8, 8, 8, 8), depths=(1,) * 5, heads=(1,) * 5, attended=(1,) * 5, window=4)
    ),
}
IMAGE = torch.rand(1, 3, 20, 24, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=MODELS)
def model(request):
    """One that has run, so that its layers keep something."""
    torch.manual_seed(0)
    made = plug(MODELS[request.param]().eval().requires_grad_(False), FusedAttention())
    made(IMAGE)
    return made


def through_torch_save(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS = {
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "deepcopy": copy.deepcopy,
    "torch.save": through_torch_save,
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_copy_gives_the_same_output_and_shares_nothing(model, way):
    expected = model(IMAGE)
    copied = way(model)
    assert torch.equal(copied(IMAGE), expected)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert torch.equal(model(IMAGE), expected)
    assert not torch.equal(copied(IMAGE), expected)
    plug(copied, FusedAttention())(IMAGE)


def test_models_are_sent_to_a_spawned_process_and_back():
    torch.manual_seed(0)
    models = [make().eval().requires_grad_(False) for make in MODELS.values()]
    expected = [model(IMAGE) for model in models]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        returned = pool.submit(copy.copy, models).result(timeout=200)
        assert all(torch.equal(model(IMAGE), output) for model, output in zip(returned, expected, strict=True))
