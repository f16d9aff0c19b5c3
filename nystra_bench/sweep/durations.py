"""How long cells will take, by what cells like them took."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime

from nystra_bench.sweep.cell import Cell, assignments

APART_S = 1.0
"""When a cell was finished is kept to the second: those that seem to have begun no more apart were timed together."""


class Durations:
    """Mean seconds of cells, of the nearest kind that something was measured of.

    Args:
        results: from the store (docs/SCHEMA.md).
    """

    def __init__(self, results: Iterable[Mapping]):
        self._seconds: dict[tuple, list[float]] = defaultdict(list)
        sessions: dict[tuple, list[Mapping]] = defaultdict(list)
        for result in results:
            sessions[result.get("session"), result["cell"]["measure"]["name"]].append(result)
        for together in sessions.values():
            for result, seconds in _shares(together):
                for kind in _kinds(Cell.of(result["cell"])):
                    self._seconds[kind].append(seconds)

    def of(self, cell: Cell) -> float | None:
        """Seconds that a cell will take; None where nothing like it was measured."""
        for kind in _kinds(cell):
            if alike := self._seconds.get(kind):
                return sum(alike) / len(alike)
        return None

    def total(self, cells: Iterable[Cell]) -> tuple[float, int]:
        """Seconds of the cells of which something is known, one after the other, and the number of the others."""
        found = [self.of(cell) for cell in cells]
        return sum(seconds for seconds in found if seconds is not None), found.count(None)


def _kinds(cell: Cell) -> list[tuple]:
    """What cells are compared by: the same model, task and window, or the model, or the measurement alone."""
    c = cell.content
    model, task = (c.get(axis, {}).get("name") for axis in ("model", "task"))
    measure, where = c["measure"]["name"], (c["device"], c["dtype"], assignments(c.get("execution", {})))
    return [(measure, *where, model, task, c.get("window")), (measure, *where, model), (measure, *where)]


def _shares(results: list[Mapping]) -> Iterable[tuple[Mapping, float]]:
    """Each cell of one session and measurement with its own seconds: those timed together all tell the time of all."""
    timed = [r for r in results if isinstance(r.get("seconds"), (int, float)) and r.get("finished")]
    groups: list[list[Mapping]] = []
    for result in sorted(timed, key=_began):
        long = result["seconds"] > APART_S
        if groups and long and groups[-1][0]["seconds"] > APART_S and _began(result) - _began(groups[-1][0]) <= APART_S:
            groups[-1].append(result)
        else:
            groups.append([result])
    for group in groups:
        yield from ((result, max(r["seconds"] for r in group) / len(group)) for result in group)


def _began(result: Mapping) -> float:
    return datetime.fromisoformat(result["finished"]).timestamp() - result["seconds"]
