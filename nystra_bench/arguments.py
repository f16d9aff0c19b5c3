"""The command line, taken apart: the sweep, what replaces axes, their parameters, and the settings for Hydra.

Names and paths stay as they are written: ``name=1.10`` is no number, and ``results=~/a (b)`` needs no quotes. All other
values follow Hydra's grammar of overrides.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nystra_bench.configuration import Catalogue, takes_text
from nystra_bench.errors import UserError
from nystra_bench.sweep.execution import EXECUTION
from nystra_bench.sweep.grid import AXES, OPTION_AXES, Overrides

TEXTS = ("name", "results")
"""Settings that are one name or path."""

NAMES = ("metrics", "tables", "figures", "retry")
"""Settings that are lists of names."""

EXECUTOR = "executor"
"""The choice of where sessions run: one option with parameters, which is no axis."""

NUMBERS = ("window_size", *(name for name, axis in EXECUTION.items() if not axis.words))
"""Axes of numbers, beside what else they take."""

PLUGINS = ("plugins", "hydra.searchpath")
"""What names folders of the user's own."""

_WORD = re.compile(r"\+{0,2}([A-Za-z_][\w.]*)=(.*)", re.DOTALL)
_ITEM = re.compile(r"""\s*(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)"|([^,]*?))\s*(?:,|$)""", re.DOTALL)
"""An item of a list, in quotes or without, with the comma behind it."""


@dataclass
class Arguments:
    """What the words say.

    Attributes:
        parameters: of options, as they are written: ``parameters["attention"]["landmarks"] == "[8,16]"``.
        overrides: what the user gave for axes; ``read_parameters`` adds the parameters.
        executor: parameters of the executor; ``read_parameters`` adds them.
        settings: for Hydra.
        search: folders with the user's own options.
    """

    sweep: str | None = None
    overrides: Overrides = field(default_factory=Overrides)
    parameters: dict[str, dict[str, str]] = field(default_factory=dict)
    executor: dict[str, Any] = field(default_factory=dict)
    settings: list[str] = field(default_factory=list)
    search: list[Path] = field(default_factory=list)


def parse(argv: list[str]) -> Arguments:
    """Tell the sweep, the axes, their parameters and the settings apart.

    Raises:
        UserError: a word is no ``option=value``, or has no value.
    """
    arguments = Arguments()
    for word in argv:
        key, written = _key_and_value(word)
        choice, _, parameter = key.partition(".")
        if key == "sweep":
            arguments.sweep = _sweep(word, written)
        elif key in PLUGINS:
            arguments.search += [_folder(text) for text in _texts(word, written) if text]
        elif key in AXES:
            arguments.overrides.axes[key] = _axis(word, key, written)
        elif choice in (*OPTION_AXES, EXECUTOR) and parameter:
            arguments.parameters.setdefault(choice, {})[parameter] = written
        else:
            arguments.settings.append(_setting(word, key, written))
    return arguments


def read_parameters(arguments: Arguments, catalogue: Catalogue) -> None:
    """Read the parameters as the options take them: text as it is written, else by Hydra's grammar.

    Raises:
        UserError: a value cannot be read.
    """
    for choice, given in arguments.parameters.items():
        for parameter, written in given.items():
            word = f"{choice}.{parameter}={written}"
            values = _values(word, written, partial(takes_text, catalogue, choice, parameter))
            if choice == EXECUTOR:
                arguments.executor[parameter] = _single(word, values)
            else:
                arguments.overrides.parameters.setdefault(choice, {})[parameter] = values


# --------------------------------------------------------------------------- single words


def _key_and_value(word: str) -> tuple[str, str]:
    found = _WORD.fullmatch(word)
    if not found:
        raise UserError(f"{word} is not accepted: an option is given as option=value")
    return found[1], found[2]


def _sweep(word: str, written: str) -> str:
    names = _items(written.strip().removeprefix("[").removesuffix("]"))
    if len(names) != 1:
        raise UserError(
            f"{word} names {len(names)} sweeps: accepted is one; a sweep of your own takes in others by "
            "include: [one,other]"
        )
    return names[0][0]


def _folder(text: str) -> Path:
    return Path(text.removeprefix("file://")).expanduser()


def _axis(word: str, axis: str, written: str) -> list:
    """Values of an axis: names, or what Hydra's grammar has besides (numbers, mappings)."""
    if axis in NUMBERS or "{" in written:
        values = _by_grammar(word)
    else:
        inner = _without_brackets(written)
        if inner.startswith("["):
            raise _unreadable(word)
        values = [name for name, _ in _items(inner)]
    return _some(word, values)


def _setting(word: str, key: str, written: str) -> str:
    """A setting as a word for Hydra."""
    if key in TEXTS:
        text = _one_text(word, written)
        return f"{key}=null" if text is None else f"{key}={quoted(text)}"
    if key in NAMES and "{" not in written and written.strip() not in ("null", "all"):
        return f"{key}=[{','.join(quoted(name) for name, _ in _items(_without_brackets(written)))}]"
    if read(word).is_sweep_override():
        lists = "attention=[exact,nystra] or window_size=[16,32]"
        raise UserError(f"{word} holds several values: accepted is one; what takes several are axes, as {lists}")
    return word


def _single(word: str, values: list) -> Any:
    if len(values) != 1:
        raise UserError(f"{word} holds several values: accepted is one")
    return values[0]


def read(word: str) -> Override:
    """A word by Hydra's grammar."""
    try:
        override = OverridesParser.create().parse_override(word)
    except (HydraException, ValueError, RecursionError) as error:  # numbers and nesting beyond all measure, too
        raise _unreadable(word) from error
    if override.is_delete() or override.package is not None:
        raise UserError(f"{word} is not accepted: an option is given as option=value")
    return override


def _unreadable(word: str) -> UserError:
    key = word.partition("=")[0]
    return UserError(
        f"{word:.300} cannot be read as an option: accepted is option=value, with lists as [a,b], and text with any of "
        f"()[]{{}},:'\" in two kinds of quotes, as \"{key}='a, b'\""
    )


# --------------------------------------------------------------------------- values by Hydra's grammar


def _by_grammar(word: str) -> list:
    """The values as a list: from ``a``, ``[a,b]``, ``a,b`` or ``range(1,5)``."""
    override = read(word)
    try:
        if override.is_sweep_override():
            return [_plain(value) for value in override.sweep_iterator(lambda value: value)]
    except HydraException as error:
        raise UserError(f"{word} cannot be read: accepted are value, [value,value] and range(first,last)") from error
    value = override.value()
    found = [_plain(v) for v in value] if isinstance(value, list) else [_plain(value)]
    return _resolved(word, found) if "${" in word else found


def _plain(value: object) -> object:
    """Without the quotes that Hydra's grammar keeps, in mappings and lists too."""
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.text if isinstance(value, QuotedString) else value


def _resolved(word: str, values: list) -> list:
    """With ``${oc.env:HOME}`` and the like put in."""
    try:
        return cast(list, OmegaConf.to_container(OmegaConf.create(values), resolve=True))
    except OmegaConfBaseException as error:
        raise UserError(
            f"{word} cannot be resolved ({str(error).splitlines()[0]}): accepted are ${{oc.env:NAME}} and plain values"
        ) from error


def _some(word: str, values: list) -> list:
    if not values:
        raise UserError(f"{word} holds no value: accepted are one or more, as [value,value]")
    return values


# --------------------------------------------------------------------------- values that may be text


def _values(word: str, written: str, is_text: Callable[[bool], bool | None]) -> list:
    """Values of a parameter, as text where it is one.

    Args:
        is_text: tells whether it is; without imports, for False, perhaps None. A number that is written as Python
            writes it, or a mapping, is worth no import.
    """
    known = is_text(False)
    if not known:
        try:
            values = _by_grammar(word)
        except UserError:
            if known is False or not is_text(True):
                raise
        else:
            is_plain = any(isinstance(v, dict) for v in values) or _written(values) == _without_blanks(written)
            if known is False or is_plain or not is_text(True):
                return _some(word, values)
    return _some(word, _texts(word, written))


def _without_blanks(written: str) -> str:
    return _without_brackets(written).replace(" ", "")


def _written(values: list) -> str | None:
    """Whole and decimal numbers, and null, as they are written; None where there may be text."""
    if all(value is None or (type(value) in (int, float) and math.isfinite(value)) for value in values):
        return ",".join("null" if value is None else str(value) for value in values)
    return None


def _texts(word: str, written: str) -> list[str | None]:
    """One text, or several as ``[a,b]``; only a comma outside of quotes would leave open which is meant."""
    inner = _without_brackets(written)
    items = _items(inner)
    if len(items) > 1 and inner == written.strip():
        key = word.partition("=")[0]
        raise UserError(
            f"{word} holds a comma: accepted are lists, {key}=[{written}], and one text in two kinds of quotes, "
            f"\"{key}='{written}'\""
        )
    return _resolved_texts(word, [None if (text, bare) == ("null", True) else text for text, bare in items])


def _resolved_texts(word: str, texts: list) -> list[str | None]:
    resolved = _resolved(word, texts) if any("${" in (text or "") for text in texts) else texts
    return [None if text is None else _at_home(str(text)) for text in resolved]


def _at_home(text: str) -> str:
    return str(Path(text).expanduser()) if text == "~" or text.startswith("~/") else text


def _one_text(word: str, written: str) -> str | None:
    """One text with whatever characters; None for null."""
    text = written.strip()
    if text.startswith("[") and text.endswith("]"):
        raise UserError(f"{word} is a list: accepted is one name or path (one in brackets stands in quotes)")
    items = _items(text)
    if len(items) == 1 and not items[0][1]:
        return items[0][0]
    return None if text == "null" else text


def _without_brackets(written: str) -> str:
    text = written.strip()
    return text[1:-1].strip() if text.startswith("[") and text.endswith("]") else text


def _items(text: str) -> list[tuple[str, bool]]:
    """What stands between commas, and whether it is bare, without quotes around it. Nothing at all is no item."""
    found: list[tuple[str, bool]] = []
    position = 0 if text.strip() else len(text) + 1
    while position <= len(text):
        item = _ITEM.match(text, position)
        assert item, "the last alternative of the pattern takes anything"
        single, double, bare = item.groups()
        if bare is None:
            found.append((double.replace('\\"', '"') if single is None else single.replace("\\'", "'"), False))
        else:
            found.append((bare, True))
        position = item.end() if item[0].endswith(",") else len(text) + 1
    return found


def quoted(text: str) -> str:
    """Text as Hydra's grammar takes any."""
    return QuotedString(text=text, quote=Quote.single).with_quotes()
