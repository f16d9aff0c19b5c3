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
import json
import torch
from nystra_bench.instruments.memory import {function}
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
found = {{
    "nothing": {function}(lambda: None, "cpu"),
    "200": {function}(lambda: allocate(200), "cpu"),
    "twice": {function}(lambda: (allocate(200), allocate(100))[0] is None, "cpu"),
    "kept": {function}(once, "cpu"),
    "again": {function}(once, "cpu"),
}}
print(json.dumps(found))
"""

KNOWN = {"nothing": 0, "200": 200, "twice": 300, "kept": 150, "again": 100}
"""MB. What the first call leaves for later ones counts; what making that took does not, nor what was there before."""


def peaks(function):
    command = [sys.executable, "-c", SCRIPT.format(function=function)]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, timeout=120, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_peaks_are_those_of_known_allocations_to_the_byte():
    assert {name: peak for name, (peak, _) in peaks("peak_memory").items()} == KNOWN


@pytest.mark.skipif(not memory.tells_residence("cpu"), reason="the system does not tell resident memory")
def test_what_a_process_takes_is_near_that():
    found = {name: taken / 1e6 for name, taken in peaks("peak_taken").items()}
    assert found == {name: pytest.approx(known, rel=0.1, abs=5) for name, known in KNOWN.items()}


def test_a_peak_does_not_depend_on_what_ran_before():
    """Exact attention leaves holes in the heap; what its successor takes is the same as in a fresh process."""
    q = torch.rand(2, 4, 256, 16)

    def attend():
        return torch.nn.functional.softmax(q @ q.mT, dim=-1) @ q

    first, _ = memory.peak_memory(attend, "cpu")
    leftovers = [torch.ones(100_000 + 1000 * n) for n in range(50)][::2]
    assert memory.peak_memory(attend, "cpu")[0] == first > 2 * 4 * 256**2 * 4 / 1e6
    assert len(leftovers) == 25


def test_scratch_memory_within_an_operation_counts():
    """As that of the fused kernel, which no tensor of Python ever holds."""
    q = torch.rand(1, 2, 512, 16)
    peak, _ = memory.peak_memory(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q), "cpu")
    assert peak > q.nbytes / 1e6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_peaks_on_a_gpu():
    before = torch.ones(10**7, device="cuda")
    peak, _ = memory.peak_memory(lambda: torch.ones(5 * 10**7, device="cuda"), "cuda")
    assert peak == pytest.approx(200, rel=0.01)
    assert before.sum() == 10**7


def test_a_system_without_proc_tells_no_residence(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_RESET", tmp_path / "absent" / "clear_refs")
    assert not memory.tells_residence("cpu")
    assert memory.tells_residence("cuda")


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
