"""Models with seeded random weights: for what a forward pass costs, which the weights do not decide.

A published model's size is enough to time it. Nothing that such a model gives is an image restored, so measurements
that look at outputs or attention refuse it (``Measurement.trained``), and tables call its weights random.
"""

from __future__ import annotations

import hashlib
import typing
from collections.abc import Mapping

import torch
from torch import nn

from nystra_bench.configuration import locate
from nystra_bench.errors import UserError
from nystra_bench.sweep.cell import canonical_json
from nystra_bench.targets import is_model

RANDOM = "random"
"""What ``weights`` says in the configuration of such a model."""


def load_untrained(architecture: str, shape: Mapping[str, object], seed: int = 0, weights: str = RANDOM) -> nn.Module:
    """A model in evaluation mode, float32, on the CPU, as its class initialises it after ``torch.manual_seed(seed)``.

    Args:
        architecture: ``package.module.Name`` of a class that takes one dataclass, its spec.
        shape: entries of the spec that are not its defaults.
        weights: ``random``.

    Returns:
        The model; its attribute ``untrained`` says what its weights are made from: canonical JSON of the arguments.

    Raises:
        UserError: the shape is none of the architecture's, or other weights are asked for.
    """
    if weights != RANDOM:
        raise UserError(f"model.weights={weights} does not fit: accepted is {RANDOM}, or another model=")
    if not is_model(locate(architecture)):
        raise UserError(f"model.architecture={architecture} is no class of PyTorch modules: accepted is one of a model")
    made_from = canonical_json({"architecture": architecture, "shape": shape, "seed": seed, "weights": weights})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = locate(architecture)(_spec(architecture, shape))
    model.untrained = made_from
    return model.eval().requires_grad_(False)


def _spec(architecture: str, shape: Mapping[str, object]) -> object:
    """The dataclass that the architecture's constructor takes."""
    (spec,) = (hint for name, hint in typing.get_type_hints(locate(architecture).__init__).items() if name != "return")
    try:
        return spec(**{name: tuple(value) if isinstance(value, list) else value for name, value in shape.items()})
    except (TypeError, ValueError) as error:
        raise UserError(f"model.shape={dict(shape)} does not fit {architecture}: {error}") from error


def made_from(model: nn.Module) -> str | None:
    """What the random weights of a model are made from; None where they are trained ones."""
    return getattr(model, "untrained", None)


def digest(model: nn.Module) -> str:
    """What stands for the SHA-256 of a file: that of what the weights are made from."""
    return hashlib.sha256((made_from(model) or "").encode()).hexdigest()
