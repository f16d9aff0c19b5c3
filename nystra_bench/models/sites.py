"""Attention in models of other libraries: an adapter says where it is, and it is then replaced as in our own models.

An adapter is one file in ``nystra_bench/models/adapters``, or in a folder ``nystra_adapters`` of a plug-in. It names
the architecture by the class of its models, and gives some classes of modules a mixin: a :class:`Site` where attention
is computed, which takes over ``forward``, or any other class that changes a method around it. A module keeps its
parameters, buffers, hooks and the keys of its state dict; only its class becomes one of the mixin and its own.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from nystra_bench.errors import UserError
from nystra_bench.models.windows import ShiftedMaps, ShiftRegions, WindowAttention
from nystra_bench.sizes import Size

PACKAGES = ("nystra_bench.models.adapters", "nystra_adapters")
"""Where adapters are looked for; the second is a namespace that any folder on ``sys.path`` may have a part of."""

_MAPS = "nystra_bench_maps"
"""Name of the submodule (without parameters) that keeps the shift regions of an adapted model."""


class Site(WindowAttention):
    """Takes the place of the class of a module that computes attention within windows.

    Write ``window_of_module`` and ``forward``, with the arguments and the result of the module's own; it calls
    ``self.attend(q, k, v, regions, size)`` or, where it has the whole map, ``self.over_map``, which calls its
    ``project`` and ``finish``. Where the module has a position bias, write ``position_bias`` and ``bias_weights``, else
    set ``has_bias = False``.
    """

    if TYPE_CHECKING:  # a site has the attributes of the module that it takes the place of

        def __getattr__(self, name: str) -> Any: ...

    maps: ShiftedMaps
    told: Any
    """What a module around it, or the last call, told the site: for the adapter to use as it likes."""

    def window_of_module(self) -> Size | None:
        """Size of its windows, from the module's own attributes; None where they follow the image."""
        raise NotImplementedError

    def regions(self, height: int, width: int, shifted: bool, device: torch.device) -> ShiftRegions | None:
        """The shift regions of maps of (height, width) tokens; None where the windows are not shifted."""
        return self.maps(height, width, self.size, device) if shifted else None


class Adapter:
    """How attention is reached in the models of one architecture."""

    architecture: ClassVar[str]
    """Name of the class of its models, which is what spandrel calls it, too."""

    version: ClassVar[str] = "1"
    """Raised whenever the numbers that an adapted model gives change."""

    mixins: ClassVar[dict[str, type]] = {}
    """Name of a class of modules -> what it is mixed with: sites, and what has to change around them."""

    kept: ClassVar[dict[str, str]] = {}
    """Name of a class of modules whose attention stays -> why, as one clause."""

    def multiple_of(self, model: nn.Module) -> int:
        """What the sides of an image have to be multiples of, beside what the model pads itself."""
        return 1


def adapters() -> dict[str, Adapter]:
    """All adapters by their architecture; those of plug-ins come last, and may replace ours.

    Raises:
        UserError: the file of an adapter cannot be imported.
    """
    found = {}
    for module in _modules():
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Adapter) and value.__module__ == module.__name__:
                found[value.architecture] = value()
    return found


def _modules() -> Iterator:
    for package in PACKAGES:
        try:
            path = importlib.import_module(package).__path__
        except ModuleNotFoundError:
            continue  # no plug-in brings any
        for _, name, _ in pkgutil.iter_modules(path, f"{package}."):
            try:
                yield importlib.import_module(name)
            except Exception as error:
                raise UserError(f"the adapter {name} cannot be imported ({error}): mend it, or move it away") from error


def adapter_for(model: nn.Module) -> Adapter:
    """The adapter of a model's architecture.

    Raises:
        UserError: there is none.
    """
    name, known = type(model).__name__, adapters()
    if name not in known:
        raise UserError(f"{name} is an architecture without an adapter: accepted are {', '.join(sorted(known))}")
    return known[name]


def adapt(model: nn.Module) -> nn.Module:
    """Make the attentions of a model of another library replaceable, in place; returns the model.

    Until something is plugged in they are exact. A model that is adapted already is left as it is.

    Raises:
        UserError: its architecture has no adapter, or it has nothing that can be replaced.
    """
    if is_adapted(model):
        return model
    adapter, maps = adapter_for(model), ShiftedMaps()
    chosen = [(module, adapter.mixins.get(type(module).__name__)) for module in model.modules()]
    if not any(mixin is not None and issubclass(mixin, Site) for _, mixin in chosen):
        raise UserError(f"this {adapter.architecture} has no attention that can be replaced: accepted is another model")
    for module, mixin in chosen:
        if mixin is None:
            continue
        before = {name: module.__dict__.pop(name) for name in _NAMES & module.__dict__.keys()}
        module.__dict__["_before"] = type(module), before
        kind: Any = type(module)
        module.__class__ = _mixed(mixin, kind)
        if isinstance(module, Site):
            module.__dict__["maps"] = maps  # not as a submodule of each
            module._prepare(module.window_of_module())
    model.add_module(_MAPS, maps)
    return model


_NAMES = {name for kind in (Site, WindowAttention) for name in vars(kind) if not name.startswith("__")}
_NAMES |= {"size", "caches", "maps", "told", "_seen"}
"""What a site uses: attributes of these names that a module had before are put aside."""


@cache
def _mixed(mixin: type, original: type) -> type:
    return type(original.__name__, (mixin, original), {"__module__": mixin.__module__})


def is_adapted(model: nn.Module) -> bool:
    """Whether a model is one of another library, made replaceable by :func:`adapt`."""
    return hasattr(model, _MAPS)


def module_of(model) -> nn.Module:
    """The module of a model that is given as such, or as what spandrel puts around it.

    Raises:
        UserError: it is neither.
    """
    module = model if isinstance(model, nn.Module) else getattr(model, "model", None)
    if not isinstance(module, nn.Module):
        what = type(model).__name__
        raise UserError(f"{what} is no model: accepted are modules of PyTorch and spandrel's descriptors")
    return module


def release(model: nn.Module) -> nn.Module:
    """Undo :func:`adapt`, in place: every module is of its own class again; returns the model."""
    for module in model.modules():
        if "_before" not in module.__dict__:
            continue
        original, before = module.__dict__.pop("_before")
        if isinstance(module, Site):
            del module.attention
            for name in _NAMES & module.__dict__.keys():
                del module.__dict__[name]
        module.__class__ = original
        module.__dict__.update(before)
    if is_adapted(model):
        delattr(model, _MAPS)
    return model


def kept_as_they_are(model: nn.Module) -> dict[str, str]:
    """The attentions of an adapted model that are not replaced, by the names of their layers: why, as one clause."""
    kept = adapter_for(model).kept
    return {name: kept[type(m).__name__] for name, m in model.named_modules() if type(m).__name__ in kept}

