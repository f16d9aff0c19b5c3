"""nystra_bench: what replacing the attention of a pretrained restoration transformer costs and gains.

The library: ``from nystra_bench import load_model, plug, unplug``. The harness: ``python -m nystra_bench +sweep=NAME``.
"""

__version__ = "0.1.0"
__all__ = ["load_model", "plug", "unplug"]


def __getattr__(name: str):
    """Import torch only when a model is asked for: planning and reporting do without it."""
    if name in __all__:
        from nystra_bench import models

        return getattr(models, name)
    raise AttributeError(f"module {__name__} has no attribute {name}")
