"""Time and memory of every baseline, and of ours, grow in proportion to the tokens of a window, and no faster."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch
from attention_references import random_qkv
from omegaconf import OmegaConf
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from nystra_bench.attention.base import Attention, Window
from nystra_bench.attention.exact import ExactAttention
from nystra_bench.configuration import instantiate

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "attention").glob("*.yaml"))
HEADS, DIM, SMALL, LARGE = 2, 8, 16, 32


NOT_LINEAR = {"pisa": 24, "thinformer": 8}
"""Baselines that are not (docs/BASELINES.md): by how much operations may grow with four times the tokens. Of
pisa's blocks one is critical in the small window, and six in the large one."""


def is_linear(path: Path) -> bool:
    """Every other baseline has to be, and of ours those that say so (and are held to what they say elsewhere)."""
    config = OmegaConf.to_container(OmegaConf.load(path))
    small, large = (instantiate(config).flops(1, HEADS, side**2, DIM, DIM) for side in (SMALL, LARGE))
    is_baseline = config["_target_"].startswith("nystra_bench.baselines.") and path.stem not in NOT_LINEAR
    return is_baseline or large <= 4 * small * 1.01


LINEAR = [path for path in CONFIGS if is_linear(path)]


class Allocated(TorchDispatchMode):
    """Bytes of the largest tensor, and of the most that were alive together, among those that operations allocated.

    Not under inference_mode: there, composite operations reach the mode whole and hide what they allocate.
    """

    def __init__(self):
        super().__init__()
        self.largest = self.peak = self.alive = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in _tensors(args)}
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in given | self._seen:
                self._count(storage)
        return result

    def _count(self, storage):
        size, at = storage.nbytes(), storage.data_ptr()
        self.largest = max(self.largest, size)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        self._seen.add(at)
        weakref.finalize(storage, self._free, at, size)

    def _free(self, at, size):
        self._seen.discard(at)
        self.alive -= size


def _tensors(nested):
    if isinstance(nested, torch.Tensor):
        yield nested
    elif isinstance(nested, (tuple, list)):
        for part in nested:
            yield from _tensors(part)


def cost(attention: Attention, side: int) -> dict[str, int]:
    q, k, v = random_qkv(1, HEADS, side * side, DIM)
    factors = (torch.randn(HEADS, side * side, 4, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    bias = next(factors) @ next(factors).mT
    window = Window(side, side, lambda: bias)
    with torch.no_grad():
        attention(q, k, v, window)  # what is computed once for a layer
        with Allocated() as memory, FlopCounterMode(display=False) as flops:
            attention(q, k, v, window)
    return {"largest": memory.largest, "peak": memory.peak, "flops": flops.get_total_flops()}


@pytest.mark.parametrize("path", LINEAR, ids=lambda path: path.stem)
def test_four_times_the_tokens_cost_at_most_four_times_as_much(path):
    attention = instantiate(OmegaConf.to_container(OmegaConf.load(path)))
    small, large = cost(attention, SMALL), cost(attention, LARGE)
    for quantity in small:
        assert large[quantity] <= 4 * small[quantity] * 1.01, quantity
    logits = 4 * HEADS * LARGE**4
    assert large["largest"] < logits / 4, "as large as a matrix of logits"


@pytest.mark.parametrize("name", NOT_LINEAR)
def test_what_is_not_linear_grows_no_faster_than_documented_and_makes_no_logits_of_all_tokens(name):
    path = next(path for path in CONFIGS if path.stem == name)
    attention = instantiate(OmegaConf.to_container(OmegaConf.load(path)))
    small, large = cost(attention, SMALL), cost(attention, LARGE)
    assert 4 * 1.01 < large["flops"] / small["flops"] <= NOT_LINEAR[name]
    assert large["largest"] < 4 * HEADS * LARGE**4 / 4


def test_exact_attention_costs_sixteen_times_as_much_so_that_the_measure_is_sound():
    small, large = cost(ExactAttention(), SMALL), cost(ExactAttention(), LARGE)
    assert large["flops"] == 16 * small["flops"]
    assert large["largest"] == 16 * small["largest"] == 4 * HEADS * LARGE**4
    assert large["peak"] >= 2 * large["largest"]  # logits and weights


def test_there_are_methods_to_test():
    names = {path.stem for path in LINEAR}
    assert {"nystra", "nystra_plus", "performer"} < names and len(names) >= 16
    assert not names & {"exact", "sdpa", "folded"}
