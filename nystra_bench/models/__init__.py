"""Restoration models whose attention can be replaced.

``load_model`` gives a model by the name of its configuration; ``plug`` replaces its attention, ``unplug`` restores it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from nystra_bench.attention.base import Attention
from nystra_bench.configuration import BIAS_MODES, Catalogue, configs_folder, instantiate
from nystra_bench.errors import UserError, unknown
from nystra_bench.models.sites import adapt, is_adapted, module_of, release
from nystra_bench.models.windows import (
    WindowedModel,
    attention_sites,
    calibrate,
    forget,
    named_attention_sites,
    setup_seconds,
)
from nystra_bench.models.windows import plug as _plug
from nystra_bench.models.windows import unplug as _unplug

__all__ = [
    "attention_sites",
    "calibrate",
    "forget",
    "load_configured",
    "load_model",
    "named_attention_sites",
    "plug",
    "setup_seconds",
    "unplug",
]


Model = TypeVar("Model")
"""A module, or what spandrel puts around one."""


def plug(model: Model, attention: Attention) -> Model:
    """Replace every attention of a model, in place, by this one; returns the model.

    Args:
        model: one of ours, one of spandrel (or its descriptor) whose architecture has an adapter, or any module with
            attention sites in it.

    Raises:
        UserError: the model is of another library, and its architecture has no adapter.
        ValueError: the attention refuses the model's windows, or has not been calibrated. Nothing is replaced then.
    """
    module = module_of(model)
    _plug(module if attention_sites(module) else adapt(module), attention)
    return model


def unplug(model: Model) -> Model:
    """Give a model its exact attention back, in place; returns the model. One of spandrel is then as it was."""
    module = module_of(model)
    release(module) if is_adapted(module) else _unplug(module)
    return model


def load_model(
    name: str,
    weights: str | Path | None = None,
    window_size: int | str | None = None,
    position_bias: str = "native",
) -> WindowedModel:
    """Load a model on images (B, C, height, width) in [0, 1], in evaluation mode, on the CPU, in float32.

    Args:
        name: of a file ``configs/model/<name>.yaml``.
        weights: bundled weights by name, or a ``.pth`` or ``.safetensors`` file; default: what the configuration names.
        window_size: side of the attention windows in tokens; default: as released (``model.window_size``).
        position_bias: at another window, ``interpolate`` stretches the bias and keeps the shift mask, ``drop`` leaves
            both out; ``native`` is the model as released.

    Raises:
        UserError: a name, file, window or mode does not fit.
    """
    config = dict(Catalogue([configs_folder()]).option("model", name))
    if weights is not None:
        config["weights"] = str(weights)
    return load_configured(config, window_size, position_bias)


def load_configured(
    config: dict, window_size: int | str | None = None, position_bias: str = "native"
) -> WindowedModel:
    """The same from the content of a configuration file."""
    if not config.get("weights"):
        raise UserError("model.weights is not given: accepted is the path of a .pth or .safetensors file")
    if position_bias not in BIAS_MODES:
        raise unknown("position_bias", position_bias, BIAS_MODES)
    model: WindowedModel = instantiate(config)
    native = model.window_size
    if window_size not in (None, native) and (not isinstance(window_size, int) or window_size < 2):
        raise UserError(f"window_size={window_size} does not fit: accepted are whole numbers from 2 on")
    if position_bias == "native":
        if window_size not in (None, native):
            raise UserError(
                f"position_bias=native is the released window {native}, not window_size={window_size}: "
                "accepted beside it are position_bias=interpolate and position_bias=drop"
            )
        return model
    return model.resize_windows(window_size if window_size is not None else native, position_bias)
