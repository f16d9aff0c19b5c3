"""Models, attentions, tasks and sweeps by the names of their configurations, and attentions put into models."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

from torch import nn

from nystra_bench import models
from nystra_bench.attention.base import Attention
from nystra_bench.configuration import Catalogue, configs_folder, instantiate
from nystra_bench.errors import UserError, did_you_mean
from nystra_bench.models import load_model, named_attention_sites
from nystra_bench.models.checkpoints import resolve
from nystra_bench.models.sites import adapters
from nystra_bench.tasks.base import Task

__all__ = ["load_model"]

Attentions = str | Attention | Iterable[str | Attention] | Mapping[str, str | Attention]
"""One attention or several: by name, ``"nystra"``, with parameters, ``"nystra(landmarks=8, iterations=6)"``, or as
objects; a mapping says what they are called."""

_CALL = re.compile(r"\s*([\w-]+)\s*(?:\((.*)\))?\s*", re.DOTALL)
_ACCEPTED = 'accepted are a name, "nystra", one with parameters, "nystra(landmarks=8)", and an Attention'


def catalogue() -> Catalogue:
    """The options that come with the package."""
    return Catalogue([configs_folder()])


def list_attentions() -> dict[str, dict[str, Any]]:
    """The attentions by name, each with its parameters and their values where none are given.

    >>> list_attentions()["nystra"]
    {'landmarks': 16, 'iterations': 2, 'init': 'global', 'guard': 5.0}
    """
    options = catalogue()
    return {name: options.parameters("attention", name) for name in options.names("attention")}


def list_models(ready: bool = False) -> dict[str, str]:
    """The models by name, each with what it is.

    Args:
        ready: only those whose weights are on this machine: bundled with the package, or fetched.

    >>> list_models()["swinir_denoise_w8"]
    'Bundled SwinIR for colour denoising at sigma 25, native window 8; its model card is beside the weights.'
    """
    options = catalogue()
    names = options.names("model")
    if ready:
        names = [name for name in names if _has_weights(options.option("model", name))]
    return {name: _comment(options, "model", name) for name in names}


def list_sweeps() -> dict[str, str]:
    """The sweeps by name (``python -m nystra_bench +sweep=NAME``), each with what it measures.

    >>> "denoise" in list_sweeps()
    True
    """
    options = catalogue()
    return {name: _comment(options, "sweep", name) for name in options.names("sweep")}


def list_layers(model: nn.Module) -> list[str]:
    """The layers of a model whose attention can be replaced, in the order of definition.

    Raises:
        UserError: there is none.

    >>> list_layers(load_model("swinir_denoise_w8"))[0]
    'layers.0.residual_group.blocks.0.attn'
    """
    check_sites(model)
    return list(named_attention_sites(model))


def load_attention(name: str, **parameters: Any) -> Attention:
    """An attention by name; parameters that are not given have their usual values.

    The text may hold parameters, too, as it stands in lists and labels.

    Raises:
        UserError: the name or a parameter is unknown, or a value is out of its range.

    >>> load_attention("nystra", landmarks=8).landmarks
    8
    >>> load_attention("nystra(landmarks=8, init=matrix)").init
    'matrix'
    """
    own, written = _parsed(name)
    return instantiate(_option("attention", own, written | parameters))


def load_task(name: str, **parameters: Any) -> Task:
    """A task by name: its ``samples()`` have a ``degraded`` and a ``clean`` image each, (height, width, C) in [0, 1].

    Raises:
        UserError: the name or a parameter is unknown, or a value is out of its range.

    >>> sample = next(load_task("denoise", sigma=25, limit=1, crop=64).samples())
    >>> sample.id, sample.degraded.shape
    ('astronaut', (64, 64, 3))
    """
    return instantiate(_option("task", name, parameters))


def plug(model: nn.Module, attention: str | Attention) -> nn.Module:
    """Replace every attention of a model, in place, by this one; returns the model.

    The model is one of ``load_model``, or one that spandrel loaded whose architecture has an adapter.

    Raises:
        UserError: the attention is unknown or refuses the model's windows, or the model has no attention to replace.

    >>> model = plug(load_model("swinir_denoise_w8"), "nystra(landmarks=8)")
    >>> model = unplug(model)
    """
    check_sites(model, adapted_too=True)
    try:
        return models.plug(model, attention_of(attention))
    except ValueError as error:
        raise UserError(f"attention={label_of(attention)}: {error}: accepted is one that fits the windows") from error


def unplug(model: nn.Module) -> nn.Module:
    """Give a model its exact attention back, in place; returns the model.

    Raises:
        UserError: the model has no attention to replace.
    """
    check_sites(model, adapted_too=True)
    return models.unplug(model)


# --------------------------------------------------------------------------- what the other functions need


def attention_of(given: str | Attention) -> Attention:
    """An attention by name or as it is.

    Raises:
        UserError: it is neither, or the name or a parameter does not fit.
    """
    if isinstance(given, Attention):
        return given
    if not isinstance(given, str):
        raise UserError(f"attention={given!r} is no attention: {_ACCEPTED}")
    return load_attention(given)


def label_of(given: str | Attention) -> str:
    """What an attention is called in tables: as it was written, or the name of its class."""
    return re.sub(r"\s+", " ", given.strip()) if isinstance(given, str) else type(given).__name__


def named(attentions: Attentions, known: Mapping[str, Attention] | None = None) -> dict[str, Attention]:
    """Attentions by what they are called, in their order.

    Args:
        known: taken for these names instead of new ones.

    Raises:
        UserError: there is none, one does not fit, or two have one name.
    """
    if isinstance(attentions, Mapping):
        pairs = list(attentions.items())
    else:
        given = [attentions] if isinstance(attentions, (str, Attention)) else list(attentions)
        pairs = [(label_of(attention), attention) for attention in given]
    found: dict[str, Attention] = {}
    for label, attention in pairs:
        if label in found:
            raise UserError(f"attentions: {label} is there twice: accepted is a mapping that gives each its name")
        is_known = isinstance(attention, str) and attention in (known or {})
        found[label] = (known or {})[attention] if is_known else attention_of(attention)
    if not found:
        raise UserError(f"attentions is empty: {_ACCEPTED}, or several of them")
    return found


def check_sites(model: object, adapted_too: bool = False) -> None:
    """Hold a model to one whose attention can be replaced; with ``adapted_too`` to one that can be adapted, too.

    Raises:
        UserError: it is none.
    """
    if isinstance(model, nn.Module) and named_attention_sites(model):
        return
    known = sorted(adapters()) if adapted_too else []
    if type(getattr(model, "model", model)).__name__ in known:
        return
    what = "has no attention that can be replaced" if isinstance(model, nn.Module) else "is no model"
    raise UserError(
        f"model={type(model).__name__} {what}: accepted are models of load_model(NAME), "
        f"{''.join(f'{name}, ' for name in known)}"
        "and models of other code whose attentions are nystra_bench.models.windows.WindowAttention"
    )


@contextmanager
def own_attention(model: nn.Module) -> Iterator[None]:
    """Give a model back afterwards the attentions that it had."""
    before = {site: site.attention for site in models.attention_sites(model)}
    try:
        yield
    finally:
        for site, attention in before.items():
            site.attention = attention


def _option(choice: str, name: str, parameters: Mapping[str, Any]) -> dict:
    """The content of a configuration with these parameters in it."""
    config = dict(catalogue().option(choice, name))
    accepted = [key for key in config if not key.startswith("_")]
    for key in parameters:
        if key not in accepted:
            listed = ", ".join(accepted) or "none"
            raise UserError(
                f"{choice}={name} has no parameter {key}{did_you_mean(key, accepted)}: accepted are {listed}"
            )
    return config | dict(parameters)


def _parsed(text: str) -> tuple[str, dict[str, Any]]:
    """The name and the parameters of ``name(parameter=value, …)``; a bare word is a text."""
    wrong = UserError(f"attention={text} is not understood: {_ACCEPTED}")
    match = _CALL.fullmatch(text)
    if match is None:
        raise wrong
    try:
        call = ast.parse(f"_({match[2] or ''})", mode="eval").body
        assert isinstance(call, ast.Call)  # as it is written above
        given = {word.arg: word.value for word in call.keywords}
        values: dict[Any, Any] = {
            key: v.id if isinstance(v, ast.Name) else ast.literal_eval(v) for key, v in given.items()
        }
    except (SyntaxError, ValueError, AttributeError) as error:
        raise wrong from error
    if call.args or None in values:
        raise wrong
    return str(match[1]), values


def _has_weights(config: Mapping) -> bool:
    try:
        resolve(config["weights"])
    except (UserError, TypeError):
        return False
    return bool(config["weights"])


def _comment(options: Catalogue, choice: str, name: str) -> str:
    """The first sentence of the comment at the head of an option's file; it ends with the paragraph, too."""
    file = next(f for folder in options.folders if (f := folder / choice / f"{name}.yaml").is_file())
    head = takewhile(lambda line: line.startswith("# "), file.read_text(encoding="utf-8").splitlines())
    paragraph = " ".join(line.removeprefix("#").strip() for line in head)
    return re.split(r"(?<=\.)\s", paragraph)[0]
