"""How the time and memory of version 5 grow with N, beside others': ``python scripts/law_of_cost.py``.

Attention alone, one window of 4 heads of 16 channels without a bias, N = 1,024 to 16,384 tokens: median ms, peak MB,
and the exponents that are fitted to them and to the counted operations, with 95 % intervals.
"""

from __future__ import annotations

import argparse

import torch

from nystra_bench.attention.base import Attention
from nystra_bench.attention.nystra_plus import NystraPlusAttention
from nystra_bench.attention.nystra_plus_v5 import NystraPlusV5Attention
from nystra_bench.attention.nystra_plus_v5_fused import FusedNystraPlusV5Attention
from nystra_bench.attention.sdpa import FusedAttention
from nystra_bench.instruments.power_law import fitted_exponent
from nystra_bench.instruments.scaling import time_attention
from nystra_bench.instruments.statistics import Estimate
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


def shown(exponent: Estimate | None) -> str:
    return "–" if exponent is None else f"{exponent.median:.2f} ({exponent.low:.2f}–{exponent.high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sides", type=int, nargs="+", default=SIDES, help="of the windows, in tokens")
    chosen = parser.parse_args()
    torch.set_num_threads(thread_count(None))
    attentions, sizes = compared(), [side * side for side in chosen.sides]
    timing = Timing(rounds=5, min_rounds=3, budget_s=20, warmup_s=0.0, min_sample_ms=10.0)
    found = time_attention(attentions, sizes, heads=HEADS, dim=DIM, timing=timing, budget_s=30)
    print(f"| | {' | '.join(f'N = {n:,}: ms, MB' for n in sizes)} | time | memory | operations |")
    print("|---" * (len(sizes) + 4) + "|")
    for name, attention in attentions.items():
        rows = [row for row in found if row["attention"] == name and row["median_ms"]]
        tokens = [row["tokens"] for row in rows]
        costs = [f"{row['median_ms']:.1f}, {row['peak_mb']:.1f}" for row in rows]
        laws = [[row["median_ms"] for row in rows], [row["peak_mb"] for row in rows]]
        laws.append([attention.flops(1, HEADS, n, DIM, DIM) for n in tokens])
        exponents = (shown(fitted_exponent(tokens, law)) for law in laws)
        print(f"| {name} | {' | '.join([*costs, *exponents])} |", flush=True)


if __name__ == "__main__":
    main()
