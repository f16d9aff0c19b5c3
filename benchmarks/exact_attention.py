"""What exact attention costs in its forms, in one process: ``python -m benchmarks.exact_attention`` prints a table.

On a bundled SwinIR in several windows (position_bias interpolate) it times, interleaved and with the project's timer,

- ``sdpa before``: the fused kernel as this project called it before: once for all windows inside, once for each window
  on the shift's seam, bias and mask made at every call;
- ``sdpa``, ``exact`` and ``exact_published`` as they are now.

Ratios are medians over rounds of paired times, with their 95 % intervals. Calls are those of the fused kernel in a
shifted layer; setup is what ``sdpa`` makes once and keeps. As in a sweep, memory that was freed is kept by the process.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import alone, shown
from nystra_bench.attention.base import Attention, Window, region_mask
from nystra_bench.attention.exact import ExactAttention
from nystra_bench.attention.exact_published import PublishedExactAttention
from nystra_bench.attention.sdpa import FusedAttention
from nystra_bench.instruments.statistics import median_interval, paired_ratio
from nystra_bench.instruments.timer import Clock, Entry, Timing, run_rounds, warm_up
from nystra_bench.models import load_model, plug, setup_seconds

RATIOS = (("sdpa before", "sdpa"), ("exact", "sdpa"), ("exact_published", "exact"), ("exact_published", "sdpa"))


class FormerFusedAttention(Attention):
    """Fused attention with one call for each window on the seam, bias and mask made at every call."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, window: Window) -> Tensor:
        bias, regions = window.bias(), window.regions()
        bias = None if bias is None else bias.to(q.dtype)[None]
        if regions is None:
            return self._fused(q, k, v, bias)
        seam = (regions != regions[:, :1]).any(1)
        inside = (~seam.repeat(len(q) // len(regions))).nonzero()[:, 0]
        out = v.new_empty(v.shape)
        if len(inside):
            out[inside] = self._fused(q[inside], k[inside], v[inside], bias)
        for index in seam.nonzero()[:, 0].tolist():
            mask = region_mask(regions[index : index + 1]).to(q.dtype)[:, None]
            same = slice(index, None, len(regions))
            out[same] = self._fused(q[same], k[same], v[same], mask if bias is None else bias + mask)
        return out

    @staticmethod
    def _fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        q, k, v = (t.contiguous() for t in (q, k, v))
        if bias is not None:
            bias = bias.expand(len(q), q.shape[1], -1, -1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)


FORMS = {
    "sdpa before": FormerFusedAttention,
    "sdpa": FusedAttention,
    "exact": ExactAttention,
    "exact_published": PublishedExactAttention,
}


@dataclass
class Setting:
    threads: int
    side: int
    window: int


class CountCalls:
    """Counts the calls of the fused kernel while it is entered."""

    def __enter__(self) -> CountCalls:
        self.calls, self._kernel = 0, F.scaled_dot_product_attention
        F.scaled_dot_product_attention = self._counted
        return self

    def _counted(self, *args, **kwargs) -> Tensor:
        self.calls += 1
        return self._kernel(*args, **kwargs)

    def __exit__(self, *_) -> None:
        F.scaled_dot_product_attention = self._kernel


def measure(name: str, setting: Setting, timing: Timing, device: str) -> tuple[dict[str, Entry], dict[str, int]]:
    """The timed entries, and the fused kernel's calls in a shifted layer, by form."""
    torch.set_num_threads(setting.threads)
    model = load_model(name, window_size=setting.window, position_bias="interpolate").to(device)
    shape = (1, model.channels, setting.side, setting.side)
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device)
    layers = sum(model.spec.depths)
    shifted = layers // 2
    entries, calls, outputs = {}, {}, {}
    for form, make in FORMS.items():
        attention = make()
        with CountCalls() as counter:
            outputs[form] = plug(model, attention)(image)
        calls[form] = max(0, counter.calls - (layers - shifted)) // shifted  # the others call it once, or never
        torch.testing.assert_close(outputs[form], outputs["sdpa before"], rtol=1e-4, atol=1e-4)
        entries[form] = Entry(lambda a=attention: plug(model, a), lambda: model(image))
        entries[form].setup_ms = 1e3 * setup_seconds(model)
    clock = Clock(device)
    for entry in entries.values():
        warm_up(entry, timing, clock)
    run_rounds(entries, timing, clock, ("exact", "exact"), seed=0)
    return entries, calls


def row(setting: Setting, entries: dict[str, Entry], calls: dict[str, int]) -> str:
    times = [f"{median_interval(entries[form].samples_ms).median:.1f}" for form in FORMS]
    ratios = [shown(paired_ratio(entries[a].samples_ms, entries[b].samples_ms)) for a, b in RATIOS]
    launches = f"{calls['sdpa before']} → {calls['sdpa']}"
    cells = [setting.threads, f"{setting.side}×{setting.side}", setting.window, *times, *ratios, launches]
    cells.append(f"{entries['sdpa'].setup_ms:.1f}")
    return "| " + " | ".join(map(str, cells)) + " |"


def header() -> str:
    columns = ["threads", "image", "window", *(f"{form} ms" for form in FORMS)]
    columns += [f"{a} / {b}" for a, b in RATIOS] + ["calls a shifted layer", "setup ms"]
    return "| " + " | ".join(columns) + " |\n|" + "---|" * len(columns)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="swinir_denoise_w8")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--windows", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--sides", type=int, nargs="+", default=[128, 192], help="of the image, in pixels")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--budget", type=float, default=40.0, help="seconds a row, after which no round starts")
    chosen = parser.parse_args()
    timing = Timing(rounds=chosen.rounds, budget_s=chosen.budget)
    print(header(), flush=True)
    for threads, side, window in product(chosen.threads, chosen.sides, chosen.windows):
        setting = Setting(threads, side, window)
        print(row(setting, *measure(chosen.model, setting, timing, chosen.device)), flush=True)


if __name__ == "__main__":
    alone(main)
