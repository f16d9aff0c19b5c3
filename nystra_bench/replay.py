"""Repeating one cell from its file alone: ``python -m nystra_bench.replay CELL``.

The cell's ``result.json`` says by which configurations it was measured (``recipe``), and of which code, weights, data
and versions it is. It is planned anew from these, measured in a store of its own, and compared: what differs, and
whether the numbers agree. Nothing is written to the results that the file is of.

A file of somebody else's runs no code of theirs: folders of plug-ins that it names are looked into only where the user
gives them.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nystra_bench.configuration import Catalogue, add_to_path, configs_folder
from nystra_bench.errors import UserError
from nystra_bench.fetch.command import Parser, guarded
from nystra_bench.measure.base import Measurement, measurement
from nystra_bench.sweep import execution, inspection
from nystra_bench.sweep.agreement import Compared, compare
from nystra_bench.sweep.cell import Cell
from nystra_bench.sweep.executors.base import SessionJob
from nystra_bench.sweep.executors.local import LocalExecutor
from nystra_bench.sweep.files import Damaged, read_object
from nystra_bench.sweep.grid import Combination, Option, Overrides
from nystra_bench.sweep.plan import Planned, Run, plan, request_of
from nystra_bench.sweep.progress import Progress
from nystra_bench.sweep.session import Session
from nystra_bench.sweep.store import MEASURED, RESULT, Store, check_identity
from nystra_bench.text import printable
from nystra_bench.words import RELEASED

PROGRAM = "python -m nystra_bench.replay"
ACCEPTED = "accepted is a result.json of results/store, or its folder"

RECIPE: dict[str, Any] = {
    **dict.fromkeys(("device", "references", "reference_names", "timing", "metrics", "measure"), dict),
    **dict.fromkeys(("model", "task", "attention", "tiling"), dict | None),
    **{"sys_path": list, "position_bias": str | None, "model_name": str | None, "tf32": bool},
}
"""What a recipe holds that is used here, and of which type (docs/SCHEMA.md)."""

PROVENANCE = {
    "code": ("source", "git_commit", "version"),
    "weights": ("model", "weights"),
    "data": ("task",),
    "versions": ("packages", "python", "torch"),
    "machine": ("cpu", "cores", "system", "device", "threads", "hardware", "tf32", "variables"),
    "settings": ("",),
}
"""What is told together, by the beginnings or the ends of the names of what differs; the first that fits takes it."""


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 the numbers agree, 2 some do not, 1 it could not be repeated."""
    return guarded(lambda: _run(sys.argv[1:] if argv is None else argv))


def _run(argv: list[str]) -> int:
    parser = Parser(prog=PROGRAM, description="Measure one cell again from its file, and say what differs.")
    parser.add_argument("cell", metavar="CELL", type=Path, help="a result.json of results/store, or its folder")
    parser.add_argument("--timeout", type=float, default=1800.0, metavar="S", help="seconds without any sign of life")
    parser.add_argument(
        "--plugins", type=Path, metavar="DIR", action="append", default=[],
        help="a folder of plug-ins that the cell was measured with, whose code is run; may be repeated",
    )
    arguments = parser.parse_args(argv)
    recorded = with_plugins(read_recorded(arguments.cell), arguments.plugins)
    print(f"{recorded.cell.describe()}\nmeasured {recorded.content.get('finished')}", flush=True)
    replayed = replay(recorded, arguments.timeout)
    for about, lines in differences(recorded.content, replayed.content).items():
        print("\n    ".join([f"{about}: {'differs' if lines else 'the same'}", *lines]))
    numbers = recorded.compare(replayed)
    for number in numbers:
        print(number)
    differing = sum(not number.agrees for number in numbers)
    print(f"{len(numbers)} numbers: " + (f"{differing} differ" if differing else "all agree"))
    return 2 if differing else 0


@dataclass(frozen=True)
class Recorded:
    """What a result's file holds (docs/SCHEMA.md)."""

    content: dict

    @property
    def cell(self) -> Cell:
        return Cell.of(self.content["cell"])

    @property
    def recipe(self) -> dict:
        return self.content["recipe"]

    @property
    def measurement(self) -> Measurement:
        return measurement(self.cell.measure, self.recipe["measure"])

    def compare(self, other: Recorded) -> list[Compared]:
        """The numbers that a repetition is held to, of both."""
        made = self.measurement
        before, after = (made.compared(of.content["value"], of.content["cell"]) for of in (self, other))
        return compare(before, after, made.describe(self.content["value"]), made.tolerance)


def read_recorded(path: Path) -> Recorded:
    """A result's file.

    Raises:
        UserError: there is none, it is damaged, or from before results had recipes.
    """
    file = path.expanduser() / RESULT if path.expanduser().is_dir() else path.expanduser()
    try:
        found = read_object(file)
        check_identity(found, found.get("key"))
        if found.get("status") not in MEASURED or not isinstance(found.get("value"), dict):
            raise Damaged("no result")
    except FileNotFoundError:
        raise UserError(f"CELL={path} is no file: {ACCEPTED}") from None
    except Damaged as damage:
        raise UserError(f"CELL={path} cannot be read as a result ({damage}): {ACCEPTED}") from damage
    if not isinstance(found.get("recipe"), dict):
        raise UserError(
            f"CELL={path} does not say by which configurations it was measured, as results of before 2026-11-26 do "
            "not: accepted are later ones"
        )
    for name, kind in RECIPE.items():
        if not isinstance(found["recipe"].get(name), kind):
            raise UserError(
                f"CELL={path} has a recipe whose {name} does not fit ({found['recipe'].get(name)!r:.60}): {ACCEPTED}"
            )
    return Recorded(found)


def with_plugins(recorded: Recorded, given: list[Path]) -> Recorded:
    """The same with the folders of plug-ins that the user gives in place of those that the file says.

    Raises:
        UserError: the file says some and the user gives none, or one that is no folder.
    """
    said = ", ".join(printable(str(folder)) for folder in recorded.recipe["sys_path"])
    if said and not given:
        raise UserError(
            f"the cell was measured with plug-ins of {said}, whose code a repetition runs: accepted is --plugins=DIR "
            "with that folder, or your own copy of it, where you trust it"
        )
    for folder in given:
        if not folder.expanduser().is_dir():
            raise UserError(f"--plugins={folder} is no folder: accepted are folders with attention/, task/, … in them")
    folders = [str(folder.expanduser().resolve()) for folder in given]
    return Recorded(recorded.content | {"recipe": recorded.recipe | {"sys_path": folders}})


def replay(recorded: Recorded, timeout_s: float) -> Recorded:
    """Measure the cell again, in a store of its own.

    Raises:
        UserError: weights, images or the device are absent, or it fails now, with the reason.
    """
    planned = replan(recorded)
    if planned.reason:
        raise UserError(f"the cell cannot be measured here: {printable(planned.reason)}; accepted is what is lacking")
    with tempfile.TemporaryDirectory(prefix="nystra_bench-replay-") as name:
        folder = Path(name)
        store = Store(folder / "store")
        store.folder.mkdir()
        common = {name: value for name, value in recorded.recipe.items() if name not in ("measure", "attention")}
        request = Session([planned]).request(common | {"store": str(store.folder)})
        job = SessionJob(request, timeout_s, recorded.measurement.quiet)
        progress = Progress({planned.cell.key: planned.cell.describe()})
        LocalExecutor().run([job], folder, progress)
        progress.close()
        result, failure = store.result(planned.cell.key), store.failure(planned.cell.key)
    if result is None:
        raise UserError(f"the cell has no result now: {failure and failure['reason']}")
    return Recorded(result)


def replan(recorded: Recorded) -> Planned:
    """The cell as it would be planned now, from the same configurations."""
    cell, recipe = recorded.content["cell"], recorded.recipe
    folders = [Path(folder) for folder in recipe["sys_path"]]
    add_to_path(folders)
    released = recipe["position_bias"] == RELEASED
    combination = Combination(
        model=_option(recipe["model_name"], recipe["model"]),
        task=_option(cell.get("task", {}).get("name"), recipe["task"]),
        window_size=None if "window" not in cell else RELEASED if released else recipe["window"],
        position_bias=recipe["position_bias"],
        attention=_option(cell.get("attention", {}).get("name"), recipe["attention"]),
        device=Option.of(cell["device"], recipe["device"]),
        dtype=cell["dtype"],
        measure=Option.of(cell["measure"]["name"], recipe["measure"]),
        measurement=recorded.measurement,
        execution=execution.setting(cell.get("execution", {})),
    )
    names = recipe["reference_names"]
    references = {role: Option.of(names[role], config) for role, config in recipe["references"].items()}
    metrics, timing, plugins = recipe["metrics"], recipe["timing"], tuple(recipe["sys_path"])
    run = Run(metrics, references, timing, plugins, recipe["tiling"], recipe["tf32"])
    catalogue = Catalogue([*folders, configs_folder()])
    (planned,) = plan([combination], inspection.look(request_of([combination], run)), catalogue, Overrides(), run)
    return planned


def _option(name: str | None, config: Mapping | None) -> Option | None:
    return Option.of(str(name), config) if config is not None else None


# --------------------------------------------------------------------------- what differs


def differences(before: Mapping, after: Mapping) -> dict[str, list[str]]:
    """What differs between two results besides their values, a line each, put together as ``PROVENANCE`` says."""
    was, now = _about(before), _about(after)
    told: dict[str, list[str]] = {kind: [] for kind in PROVENANCE}
    for name in dict.fromkeys([*was, *now]):
        pair = was.get(name, "absent"), now.get(name, "absent")
        if pair[0] != pair[1]:
            told[_kind(name)].append(f"{name}: {_shortened(pair[0])} -> {_shortened(pair[1])}")
    return told


def _about(result: Mapping) -> dict[str, Any]:
    """What a result is of, by dotted names: where it was measured, its cell, and its parts (metrics)."""
    parts = {"parts": result["value"].get("parts") or {}}
    return dict(_flat({**(result.get("environment") or {}), **result["cell"], **parts}))


def _kind(name: str) -> str:
    fits = ((kind, part) for kind, parts in PROVENANCE.items() for part in parts)
    return next(kind for kind, part in fits if name.startswith(part) or name.endswith(f".{part}"))


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings by their dotted names."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _shortened(value: Any) -> str:
    """A value for people; of digests the beginning."""
    text = printable(str(value))
    is_digest = len(text) >= 40 and set(text.removesuffix("+changes")) <= set("0123456789abcdef")
    return f"{text[:10]}…" if is_digest else text


if __name__ == "__main__":
    sys.exit(main())
