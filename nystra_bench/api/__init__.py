"""The library, for scripts and notebooks: what the sweeps do, on a model and an image in memory (docs/API.md)."""

from nystra_bench.api.acceleration import Acceleration, accelerate
from nystra_bench.api.analysis import attention_maps, spectra, time_attention
from nystra_bench.api.comparison import compare
from nystra_bench.api.options import (
    list_attentions,
    list_layers,
    list_models,
    list_sweeps,
    load_attention,
    load_model,
    load_task,
    plug,
    unplug,
)
from nystra_bench.api.table import Comparison
from nystra_bench.instruments.timer import Timing

__all__ = [
    "Acceleration",
    "Comparison",
    "Timing",
    "accelerate",
    "attention_maps",
    "compare",
    "list_attentions",
    "list_layers",
    "list_models",
    "list_sweeps",
    "load_attention",
    "load_model",
    "load_task",
    "plug",
    "spectra",
    "time_attention",
    "unplug",
]
