"""A cell: one measurement, frozen and hashable, known by the digest of what it measures (docs/SCHEMA.md)."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

SCHEMA = 2


def encode_numbers(value: object) -> object:
    """The same with ``inf`` and ``nan``, which JSON cannot hold, as strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): encode_numbers(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode_numbers(item) for item in value]
    return value


def canonical_json(value: object) -> str:
    """JSON that is equal for equal content."""
    return json.dumps(encode_numbers(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def assignments(parameters: Mapping[str, object], without: str = "") -> str:
    """``name=value`` joined by a space, sorted by name."""
    return " ".join(f"{name}={_short(parameters[name])}" for name in sorted(parameters) if name != without)


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Cell:
    """One measurement; ``text`` is its canonical JSON, and two cells are equal where these are."""

    text: str

    @classmethod
    def of(cls, content: Mapping) -> Cell:
        return cls(canonical_json({"schema": SCHEMA, **content}))

    @cached_property
    def content(self) -> dict:
        return json.loads(self.text)

    @cached_property
    def key(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def measure(self) -> str:
        """Name of what measures it."""
        return self.content["measure"]["name"]

    def describe(self) -> str:
        """One line for people: what is measured, where; only of what decides it."""
        c = self.content
        words = [f"{_called(c['measure']):8}", *self._setting()]
        if "attention" in c:
            words.append(_called(c["attention"]))
        return " ".join([*words, c["device"], c["dtype"]])

    def describe_session(self) -> str:
        """What the cells share that are measured in one session with this one."""
        return " ".join([*self._setting(), self.content["device"], self.content["dtype"]])

    def _setting(self) -> list[str]:
        """Model, window, bias, task and how the model is run where that is not the usual way, in words."""
        c, words = self.content, []
        if "model" in c:
            words.append(c["model"]["name"])
        words += [f"{name}={c[key]}" for name, key in (("window", "window"), ("bias", "position_bias")) if key in c]
        if "task" in c:
            words.append(f"{c['task']['name']} {assignments(c['task']['params'], without='seed')}".rstrip())
        return [*words, *filter(None, [assignments(c.get("execution", {}))])]


def _called(option: Mapping) -> str:
    """An option with its parameters in brackets."""
    parameters = assignments(option["params"])
    return option["name"] + (f"({parameters})" if parameters else "")
