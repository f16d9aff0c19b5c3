"""Peak memory and operations of a forward pass, in a pass of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nystra_bench.measure.base import AXES, Circumstances, Measurement, number
from nystra_bench.report.column import Column

if TYPE_CHECKING:
    from nystra_bench.sweep.workbench import Job, Workbench


class Memory(Measurement):
    """On the task's first image; what the attention keeps between calls counts."""

    needs = AXES
    execution = ("runtime", "threads", "batch", "memory_format")
    trained = False
    tolerance = 0.05
    version = "2"  # 1: on a CPU the peak of resident memory, which depended on what ran before
    place = 20
    columns = (
        Column("peak_memory_mb", "peak memory (MB)", "Peak of what PyTorch allocates in one forward pass above the "
               "loaded model, what the attention keeps included; MB are 10^6 bytes.", 0),
        Column("gflops", "operations (GFLOP)", "Of one forward pass; a multiply-add counts as two.", 2),
        Column("attention_gflops", "attention (GFLOP)", "The operations of the attention alone.", 2),
    )

    def settings(self, known: Circumstances) -> dict:
        return known.machine

    def run(self, bench: Workbench, jobs: list[Job]) -> None:
        self._without_attention: int | None = None
        super().run(bench, jobs)

    def measure(self, bench: Workbench, job: Job) -> dict:
        from nystra_bench.instruments import memory
        from nystra_bench.instruments.flops import count_flops
        from nystra_bench.models import forget, plug

        def call() -> object:
            return bench.forward(bench.model, bench.first_input)

        call()  # what libraries allocate once is no cost of the attention
        forget(bench.model)  # what the attention keeps is
        peak, method = memory.peak_memory(call, bench.device)
        flops = count_flops(lambda: bench.call(bench.model, bench.first_input, eager=True))
        if self._without_attention is None:
            bare = bench.without_attention()
            self._without_attention = count_flops(lambda: bench.call(bare, bench.first_input, eager=True))
            plug(bench.model, job.attention)
        attention = flops - self._without_attention
        value = {"peak_mb": peak, "method": method, "gflops": flops / 1e9, "attention_gflops": attention / 1e9}
        batch, _, height, width = bench.first_input.shape
        return value | {"batch": batch, "height": height, "width": width}

    def scalars(self, value: Mapping, cell: Mapping) -> dict[str, Any]:
        names = {"peak_memory_mb": "peak_mb", "gflops": "gflops", "attention_gflops": "attention_gflops"}
        return {column: number(value.get(name)) for column, name in names.items()}
