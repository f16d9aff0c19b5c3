"""What ``_target_`` of a configuration may name: the things that options stand for, and nothing else.

A configuration comes with a plug-in, perhaps of somebody else: it must not call whatever Python can import.
"""

from __future__ import annotations

import inspect
import sysconfig
import typing
from pathlib import Path
from typing import Any

from nystra_bench.errors import UserError

CONTRACTS = {
    "nystra_bench.attention.base.Attention",
    "nystra_bench.tasks.base.Task",
    "nystra_bench.metrics.base.Metric",
    "nystra_bench.measure.base.Measurement",
    "nystra_bench.report.base.Table",
    "nystra_bench.report.base.Figure",
    "nystra_bench.sweep.executors.base.Executor",
    "nystra_bench.fetch.catalogue.Download",
}
"""The base classes of options; by name, since most of them import what planning is spared."""

MODULE = "torch.nn.modules.module.Module"
"""PyTorch's base class of models."""

_INSTALLED = [Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "platstdlib", "purelib", "platlib")]
_PROJECT = Path(__file__).resolve().parent


def check_target(target: str, found: Any) -> None:
    """Hold what ``_target_`` names to what options stand for.

    These are subclasses of ``CONTRACTS``; and what loads a model: a class of modules, a function that says so by its
    annotation, or any function of a plug-in's own files.

    Raises:
        UserError: it is something else: a function of the system, say.
    """
    if _derives(found, {*CONTRACTS, MODULE}) or _loads_a_model(found):
        return
    names = ", ".join(sorted(name.rpartition(".")[2] for name in CONTRACTS))
    raise UserError(
        f"_target_={target} is nothing that an option may stand for: accepted are subclasses of {names}, and functions "
        "that load a model, of a plug-in or annotated with the module that they give"
    )


def is_model(found: Any) -> bool:
    """Whether it is a class of PyTorch modules."""
    return _derives(found, {MODULE})


def _derives(found: Any, names: set[str]) -> bool:
    return inspect.isclass(found) and any(full_name(base) in names for base in found.__mro__)


def full_name(kind: type) -> str:
    """As ``_target_`` names it."""
    return f"{kind.__module__}.{kind.__qualname__}"


def _loads_a_model(found: Any) -> bool:
    if not inspect.isfunction(found):
        return False
    try:
        given = typing.get_type_hints(found).get("return")
    except (NameError, TypeError):  # names that only a type checker imports
        given = None
    return is_model(given) or _is_of_a_plugin(found)


def _is_of_a_plugin(function: Any) -> bool:
    """Whether a function is written in a file that belongs neither to Python, nor to a package, nor to this project."""
    file = Path(function.__code__.co_filename).resolve()
    return file.is_file() and not any(file.is_relative_to(folder) for folder in (*_INSTALLED, _PROJECT))
