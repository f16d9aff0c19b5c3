"""What the first call of an attention pays for: what it makes once, and nothing that all of a process use."""

import pytest

pytestmark = pytest.mark.usefixtures("looked_at_here")

ATTENTION = '''\
import time
from pathlib import Path

from nystra_bench.attention.base import Attention


class Keeping(Attention):
    """Makes something that takes 50 ms once a layer; notes which object is called, at which size of window map."""

    def __init__(self, file: str, calibration: bool = False):
        super().__init__()
        self.file = Path(file)
        self.calibration_images = 1 if calibration else 0

    def calibrate(self, sites, restore, images):
        for site in sites.values():
            site.attention = self
        restore(images[0])
        return {}

    def forward(self, q, k, v, window):
        window.cache.once("kept", lambda: time.sleep(0.05) or v)
        with self.file.open("a") as file:
            file.write(f"{id(self)} {q.shape[0]}\\n")
        return v
'''


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "attention").mkdir()
    (tmp_path / "keeping_attention.py").write_text(ATTENTION)
    text = f"_target_: keeping_attention.Keeping\nfile: {tmp_path / 'calls'}\n"
    (tmp_path / "attention" / "keeping.yaml").write_text(f"{text}calibration: false\n")
    (tmp_path / "attention" / "calibrated.yaml").write_text(f"{text}calibration: true\n")
    return tmp_path


@pytest.mark.parametrize("name", ["keeping", "calibrated"])
def test_the_first_call_holds_what_is_made_once(bench, mine, name):
    words = [f"attention={name}", "measure=latency", "position_bias=native", "figures=[]", "tables=[]"]
    assert bench(*words, f"hydra.searchpath=['file://{mine}']").code == 0
    (result,) = bench.stored()
    value = result["value"]
    assert ("calibration" in value) == (name == "calibrated")
    assert 2 * 50 <= value["setup_ms"] < value["first_ms"]  # two layers
    assert max(value["samples_ms"]) < value["first_ms"]


def test_the_first_reference_does_not_pay_for_what_all_use(bench, mine):
    """An object of its own, whose caches are its own too, runs before the first that is timed."""
    words = ["attention=identity", "references.exact=keeping", "measure=latency", "position_bias=native"]
    assert bench(*words, "figures=[]", "tables=[]", f"hydra.searchpath=['file://{mine}']").code == 0
    calls = [line.split()[0] for line in (mine / "calls").read_text().splitlines()]
    before = calls.index(next(call for call in calls if call != calls[0]))
    assert before == 2  # the two layers of one pass
    assert calls[0] not in calls[before:]
    companions = bench.stored()[0]["value"]["companions"]
    assert max(companions["exact"]) < 2 * 50  # nothing is made within a sample
