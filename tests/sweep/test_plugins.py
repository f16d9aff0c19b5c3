"""A method or metric of the user's own is one Python file and one YAML: planned, measured, tabled, drawn."""

import numpy as np
import pytest

METHOD = '''\
from nystra_bench.attention.base import Attention


class MeanAttention(Attention):
    """Every token gets a share of the mean of all values."""

    def __init__(self, share: float = 1.0):
        super().__init__()
        self.share = share

    def forward(self, q, k, v, window):
        return self.share * v.mean(-2, keepdim=True).expand_as(v)
'''

METRIC = '''\
import numpy as np

from nystra_bench.metrics.base import Metric


class MeanDifference(Metric):
    higher_is_better = False
    unit = "grey levels"

    def compare(self, output, target):
        return 255 * abs(float(np.mean(output) - np.mean(target)))
'''


@pytest.fixture
def mine(tmp_path):
    folder = tmp_path / "mine"
    for choice in ("attention", "metric"):
        (folder / choice).mkdir(parents=True)
    (folder / "my_methods.py").write_text(METHOD)
    (folder / "my_metrics.py").write_text(METRIC)
    (folder / "attention" / "mean.yaml").write_text("_target_: my_methods.MeanAttention\nshare: 1.0\n")
    (folder / "metric" / "mean_difference.yaml").write_text("_target_: my_metrics.MeanDifference\nagainst: truth\n")
    return folder


@pytest.mark.parametrize("word", ["plugins=['{mine}']", "hydra.searchpath=['file://{mine}']"])
def test_a_method_and_a_metric_are_swept_tabled_and_drawn(bench, mine, word):
    words = [word.format(mine=mine), "metrics=[psnr,mean_difference,deviation_psnr]", "attention=[exact,mean,nystra]"]
    words += ["attention.share=[0.5,1]", "position_bias=native", "attention.landmarks=4", "figures=[pareto]"]
    plan = bench(*words, "mode=plan")
    assert plan.code == 0, plan.err
    assert sum("mean(share=" in line for line in plan.out.splitlines()) == 2 * 3

    run = bench(*words)
    assert run.code == 0, run.err
    table = bench.table()
    mean = table[table.attention == "mean"]
    assert sorted(mean.parameters) == ["share=0.5", "share=1"]
    assert np.isfinite(table.mean_difference).all()
    assert np.isfinite(mean.deviation_psnr).all()
    assert np.isfinite(mean.latency_ms).all()
    drawings = list((bench.results / "tiny" / "figures").glob("pareto*.svg"))
    assert any("mean" in drawing.read_text() for drawing in drawings)
    quality = [r["value"] for r in bench.stored() if r["cell"]["measure"]["name"] == "quality"]
    assert {value["describe"]["mean_difference"]["unit"] for value in quality} == {"grey levels"}
