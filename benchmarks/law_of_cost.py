"""How the time and memory of version 5 grow with N, beside others': ``python -m benchmarks.law_of_cost``.

Attention alone, one window of 4 heads of 16 channels without a bias, N = 1,024 to 16,384 tokens: median ms, peak MB,
and the exponents that are fitted to them and to the counted operations, with 95 % intervals.
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.common import alone, shown, table
from nystra_bench.attention.base import Attention
from nystra_bench.attention.nystra_plus import NystraPlusAttention
from nystra_bench.attention.nystra_plus_v5 import NystraPlusV5Attention
from nystra_bench.attention.nystra_plus_v5_fused import FusedNystraPlusV5Attention
from nystra_bench.attention.sdpa import FusedAttention
from nystra_bench.instruments.power_law import fitted_exponent
from nystra_bench.instruments.scaling import time_attention
from nystra_bench.instruments.threads import thread_count
from nystra_bench.instruments.timer import Timing

HEADS, DIM = 4, 16
SIDES = (32, 48, 64, 96, 128)


def compared() -> dict[str, Attention]:
    return {
        "sdpa": FusedAttention(),
        "nystra_plus 64/6": NystraPlusAttention(64),
        "version 5, eager": NystraPlusV5Attention(exact_up_to=0),
        "version 5, kernel": FusedNystraPlusV5Attention(exact_up_to=0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sides", type=int, nargs="+", default=SIDES, help="of the windows, in tokens")
    chosen = parser.parse_args()
    torch.set_num_threads(thread_count(None))
    attentions, sizes = compared(), [side * side for side in chosen.sides]
    timing = Timing(rounds=5, min_rounds=3, budget_s=20, warmup_s=0.0, min_sample_ms=10.0)
    found = time_attention(attentions, sizes, heads=HEADS, dim=DIM, timing=timing, budget_s=30)
    rows = [row_of(name, attention, found) for name, attention in attentions.items()]
    costs = [f"N = {n:,}: ms, MB" for n in sizes]
    print(*table(["", *costs, "time", "memory", "operations"], rows), sep="\n")


def row_of(name: str, attention: Attention, found: list[dict]) -> list[str]:
    """A method's costs by N, as far as it was timed, and their exponents."""
    rows = [row for row in found if row["attention"] == name and row["median_ms"]]
    tokens, ms, mb = ([row[column] for row in rows] for column in ("tokens", "median_ms", "peak_mb"))
    operations = [attention.flops(1, HEADS, n, DIM, DIM) for n in tokens]
    exponents = (fitted_exponent(tokens, law) for law in (ms, mb, operations))
    costs = [f"{time:.1f}, {peak:.1f}" for time, peak in zip(ms, mb, strict=True)]
    return [name, *costs, *("–" if exponent is None else shown(exponent) for exponent in exponents)]


if __name__ == "__main__":
    alone(main)
