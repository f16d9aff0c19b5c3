"""Peak memory, held to allocations of known size in a process of its own."""

import json
import subprocess
import sys

import pytest
import torch

from nystra_bench.instruments import memory
from nystra_bench.instruments.environment import KEEP_MEMORY
from nystra_bench.sweep.inspection import child_environment

SCRIPT = """
import json, sys
import torch
from nystra_bench.instruments.memory import peak_memory
kept = []

def allocate(megabytes):
    return torch.ones(int(megabytes * 1e6) // 4)

def once():
    if not kept:
        transient = allocate(300)
        kept.append(allocate(50))
    allocate(100)

before = allocate(150)  # a model, say
heap = [bytes(2000) for _ in range(100_000)]  # 200 MB that malloc keeps when they are freed
del heap
found = {
    "nothing": peak_memory(lambda: None, "cpu")[0],
    "200": peak_memory(lambda: allocate(200), "cpu")[0],
    "twice": peak_memory(lambda: (allocate(200), allocate(100))[0] is None, "cpu")[0],
    "small": peak_memory(lambda: [bytes(2000) for _ in range(50_000)], "cpu")[0],
    "kept": peak_memory(once, "cpu")[0],
    "again": peak_memory(once, "cpu")[0],
}
print(json.dumps(found))
"""


@pytest.mark.skipif(memory.available("cpu") is not None, reason="the system does not offer it")
def test_peaks_are_those_of_known_allocations():
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(done.stdout)
    assert abs(found["nothing"]) < 5
    assert found["200"] == pytest.approx(200, rel=0.1)
    assert found["twice"] == pytest.approx(300, rel=0.1)
    assert found["small"] == pytest.approx(50_000 * 2033 / 1e6, rel=0.1)
    # What the first call leaves for later ones counts; what making that took does not, nor what was there before.
    assert found["kept"] == pytest.approx(150, rel=0.1)
    assert found["again"] == pytest.approx(100, rel=0.1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_peaks_on_a_gpu():
    before = torch.ones(10**7, device="cuda")
    peak, _ = memory.peak_memory(lambda: torch.ones(5 * 10**7, device="cuda"), "cuda")
    assert peak == pytest.approx(200, rel=0.01)
    assert before.sum() == 10**7


def test_a_system_without_proc_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_RESET", tmp_path / "absent" / "clear_refs")
    assert "/proc/self" in memory.available("cpu")
    assert memory.available("cuda") is None


KEEPING = """
import torch
from nystra_bench.instruments.memory import kept_memory
taken = torch.ones(100_000_000)
during = kept_memory()
del taken
print(during, kept_memory())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc tells what it keeps")
def test_what_a_worker_has_freed_is_free_to_it():
    run = subprocess.run(
        [sys.executable, "-c", KEEPING], env={**KEEP_MEMORY, **child_environment()}, capture_output=True, text=True
    )
    during, after = map(float, run.stdout.split())
    assert after - during == pytest.approx(4e8, rel=0.01)
