"""docs/BASELINES.md says what the code does."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from attention_references import random_qkv
from omegaconf import OmegaConf

from nystra_bench.attention.base import Window
from nystra_bench.configuration import instantiate

ROOT = Path(__file__).parents[2]
CONFIGS = {
    path.stem: OmegaConf.to_container(OmegaConf.load(path)) for path in (ROOT / "configs/attention").glob("*.yaml")
}
BASELINES = sorted(name for name, config in CONFIGS.items() if config["_target_"].startswith("nystra_bench.baselines."))


def table() -> dict[str, list[str]]:
    lines = (ROOT / "docs" / "BASELINES.md").read_text(encoding="utf-8").split("\n## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    return {name.strip("`"): rest for name, *rest in rows}


def test_every_baseline_has_its_row():
    assert sorted(table()) == BASELINES


@pytest.mark.parametrize("name", BASELINES)
def test_the_row_says_what_the_method_does(name):
    paper, _, _, parameters, bias, mask, stochastic = table()[name]
    attention = instantiate(CONFIGS[name])
    defaults = {key: value for key, value in CONFIGS[name].items() if not key.startswith("_")}
    assert parameters.strip("`") == (" ".join(f"{key}={value}" for key, value in defaults.items()) or "–")
    assert (bias, mask) == tuple(attention.uses().values())
    number = paper.rpartition("/")[2].rstrip(")")
    assert name == "uniform" or number in (inspect.getdoc(type(attention)) or "")
    q, k, _ = random_qkv(2, 2, 64, 16, seed=1)
    with torch.inference_mode():
        matrix = attention.matrix(4 * q, k, Window(8, 8))
    sums_to_one = torch.allclose(matrix.sum(-1), torch.ones(()), atol=1e-4)
    assert (stochastic == "yes") == bool(sums_to_one and matrix.min() >= 0)
