"""Records of earlier schemas, read as those of today's: results, failures and plans of old runs stay readable.

Each step takes a record of one schema to the next one. A record keeps the key that it was written under, which is the
digest of its cell as it was; a new run plans the cell anew, and measures it where its key is now another.
"""

from __future__ import annotations

from collections.abc import Callable

from nystra_bench.sweep.cell import SCHEMA
from nystra_bench.sweep.files import Damaged


def known_schema(record: dict) -> int:
    """The schema of a record.

    Raises:
        Damaged: it says none, or one that is not read: of a later version of this project, say.
    """
    said = record.get("schema")
    if type(said) is not int or said not in (*STEPS, SCHEMA):
        raise Damaged(f"schema {said!r:.40}, where {', '.join(map(str, STEPS))} and {SCHEMA} are read")
    return said


def migrated(record: dict, schema: int) -> dict:
    """A record with a cell, of this schema, as today's would be.

    Raises:
        Damaged: it does not hold what its schema says.
    """
    try:
        for number in range(schema, SCHEMA):
            record = STEPS[number](record)
    except (KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"it is no record of schema {schema}") from error
    return record


def _to_2(record: dict) -> dict:
    """Measurements became plug-ins with a version and parameters; metrics went from the cell to the value's parts."""
    cell = dict(record["cell"])
    settings = dict(cell["settings"])
    metrics = settings.pop("metrics", {})
    cell |= {"schema": 2, "measure": {"name": cell["measure"], "version": "1", "params": {}}, "settings": settings}
    found = record | {"cell": cell} | ({"schema": 2} if "schema" in record else {})
    if metrics and "value" in record:
        measured = {name: about for name, about in metrics.items() if not about.get("absent")}
        parts = {name: {key: about[key] for key in ("version", "params")} for name, about in measured.items()}
        found["value"] = record["value"] | {"parts": parts}
    return found


STEPS: dict[int, Callable[[dict], dict]] = {1: _to_2}
"""What takes a record of each earlier schema to the next."""
