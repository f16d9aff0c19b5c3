"""The plan of a sweep as it is kept: ``results/<sweep>/cells.json`` (docs/SCHEMA.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from nystra_bench.errors import UserError
from nystra_bench.sweep.cell import SCHEMA, canonical_json
from nystra_bench.sweep.files import Damaged, read_object
from nystra_bench.sweep.migrations import known_schema, migrated
from nystra_bench.sweep.store import check_identity
from nystra_bench.text import printable
from nystra_bench.words import MACHINE

STATUSES = ("planned", "skipped")


def read_cells(path: Path) -> list[dict]:
    """The planned cells: ``key``, ``cell``, ``status`` and ``reason`` of each, and ``uses`` where it is told.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: the file is no plan that can be read.
    """
    try:
        plan = read_object(path)
        schema = known_schema(plan)
        cells = plan.get("cells")
        if not isinstance(cells, list):
            raise Damaged("no list of cells")
        for number, planned in enumerate(cells):
            _check(planned, f"cells[{number}]")
        return [migrated(planned, schema) for planned in cells]
    except Damaged as damage:
        raise UserError(
            f"{printable(str(path))} cannot be read as the plan of a sweep ({damage}): plan the sweep again, by the "
            "same command without mode=report"
        ) from damage


def of_other_machines(path: Path, own: Sequence[Mapping]) -> list[dict]:
    """The cells of a plan that are as these but for the device, or the hardware that it is: another machine's.

    A plan that cannot be read has none.
    """
    try:
        plan, here = read_object(path), {_machine(content) for content in own}
        found = [planned for planned in plan["cells"] if _machine(planned["cell"]) not in here]
        places = {_place(content) for content in own} if found and plan["schema"] == SCHEMA else ()
        found = [planned for planned in found if _place(planned["cell"]) in places]
        for planned in found:
            _check(planned, "cells")
    except (FileNotFoundError, Damaged, KeyError, TypeError, AttributeError):
        return []
    return found


def _machine(content: Mapping) -> tuple[str, str | None]:
    return content["device"], content["settings"].get(MACHINE)


def _place(content: Mapping) -> str:
    """What a cell measures, wherever it does."""
    return canonical_json({name: said for name, said in content.items() if name not in ("device", "settings")})


def _check(planned: object, name: str) -> None:
    if not isinstance(planned, dict):
        raise Damaged(f"{name} is no object")
    try:
        check_identity(planned, planned.get("key"))
    except Damaged as damage:
        raise Damaged(f"{name}: {damage}") from damage
    if planned.get("status") not in STATUSES:
        raise Damaged(f"{name}: status {planned.get('status')!r:.40}")
    if not isinstance(planned.get("reason"), str | None):
        raise Damaged(f"{name}: its reason is no text")
    if not isinstance(planned.get("uses"), dict | None):
        raise Damaged(f"{name}: its uses are no object")
