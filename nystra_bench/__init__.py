"""nystra_bench: what replacing the attention of a pretrained restoration transformer costs and gains.

The library: ``from nystra_bench import load_model, plug, compare`` (docs/API.md).
The harness: ``python -m nystra_bench +sweep=NAME``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nystra_bench.api import (
        accelerate,
        attention_maps,
        compare,
        list_attentions,
        list_layers,
        list_models,
        list_sweeps,
        load_attention,
        load_model,
        load_task,
        plug,
        spectra,
        time_attention,
        unplug,
    )
    from nystra_bench.instruments.timer import Timing

__version__ = "0.1.0"
__all__ = [
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


def __getattr__(name: str) -> object:
    """Import torch and pandas only when something of the library is asked for: planning does without them."""
    if name in __all__:
        from nystra_bench import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__} has no attribute {name}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
