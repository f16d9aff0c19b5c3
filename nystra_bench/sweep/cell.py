"""A cell: one measurement, frozen and hashable, known by the digest of what it measures (docs/SCHEMA.md)."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

SCHEMA = 1
MEASURES = ("quality", "latency", "memory", "bound")
USUAL_MEASURES = MEASURES[:3]
"""What a block of a sweep measures unless it says otherwise."""


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
        return self.content["measure"]

    def describe(self) -> str:
        """One line for people: what is measured, where."""
        c = self.content
        parameters = assignments(c["attention"]["params"])
        attention = c["attention"]["name"] + (f"({parameters})" if parameters else "")
        task = f"{c['task']['name']} {assignments(c['task']['params'], without='seed')}".rstrip()
        return (
            f"{c['measure']:8} {c['model']['name']} window={c['window']} bias={c['position_bias']} "
            f"{task} {attention} {c['device']} {c['dtype']}"
        )
