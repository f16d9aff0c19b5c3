"""Checking published results against a fresh run: ``python -m nystra_bench.verify results/reference``.

A file ``NAME.csv`` is the table of a sweep (``table.csv``): of ``+sweep=NAME``, or of the words in ``NAME.command``
beside it. Its rows are found again among the cells that the sweep has now; those that are asked for are measured,
quality alone, and their numbers compared. Costs are of a machine, and are not compared. Plug-ins that such a file names
are used where the user's own words name them, too.
"""

from __future__ import annotations

import io
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from nystra_bench.arguments import parse
from nystra_bench.cli import compose_config
from nystra_bench.configuration import Catalogue, configs_folder
from nystra_bench.errors import UserError, unknown
from nystra_bench.fetch.command import Parser, guarded
from nystra_bench.measure.quality import Quality
from nystra_bench.report.frame import ReportData
from nystra_bench.report.reading import load
from nystra_bench.sweep.agreement import Compared, compare
from nystra_bench.sweep.engine import Engine
from nystra_bench.sweep.execution import EXECUTION
from nystra_bench.text import printable
from nystra_bench.words import IDENTITY

PROGRAM = "python -m nystra_bench.verify"

SAME = [name for name in [*IDENTITY, "task_parameters"] if name not in ("bias_use", "mask_use", "kernel")]
"""The columns by which a published row is found again."""

MEASURE, HELD = "quality", "psnr"
"""What is measured again, and the column that a row has where that was measured."""


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 all numbers agree, 2 some do not or were not checked, 1 none was."""
    return guarded(lambda: _run(sys.argv[1:] if argv is None else argv))


def _run(argv: list[str]) -> int:
    parser = Parser(prog=PROGRAM, description="Measure the quality cells of published tables again, and compare them.")
    parser.add_argument("folder", metavar="DIR", type=Path, help="with the tables, as results/reference")
    parser.add_argument("--sweep", metavar="NAME", action="append", help="the table NAME.csv alone; may be repeated")
    parser.add_argument("--rows", metavar="N", type=int, help="rows of each table, spread evenly; default: all of them")
    parser.add_argument("--results", metavar="DIR", type=Path, help="keep what is measured, to go on another time")
    parser.add_argument("words", nargs="*", metavar="option=value", help="further options of the runs")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.rows is not None and arguments.rows < 1:
        raise UserError(f"--rows={arguments.rows} is out of range: accepted are whole numbers from 1 on")
    tables = published(arguments.folder, arguments.sweep)
    with _results(arguments.results) as results:
        checks = [_check(table, results, arguments.rows, arguments.words) for table in tables]
    return _conclusion(checks)


@contextmanager
def _results(given: Path | None) -> Iterator[Path]:
    """The folder to measure into; one of its own, that is removed at the end, unless one is given."""
    if given is not None:
        yield given.expanduser()
        return
    with tempfile.TemporaryDirectory(prefix="nystra_bench-verify-") as folder:
        yield Path(folder)


# --------------------------------------------------------------------------- what is published


@dataclass(frozen=True)
class Published:
    """A published table, and the words of the command that it is of."""

    name: str
    rows: pd.DataFrame
    words: list[str]


def published(folder: Path, wanted: list[str] | None = None) -> list[Published]:
    """The tables of a folder that hold quality and that a sweep stands behind, with the rows that do.

    Raises:
        UserError: there are none, or one that is wanted is not among them.
    """
    sweeps = Catalogue([configs_folder()]).names("sweep")
    found: dict[str, Published] = {}
    for file in sorted(folder.expanduser().glob("*.csv")):
        command = file.with_suffix(".command")
        if not command.is_file() and file.stem not in sweeps:
            continue
        words = shlex.split(command.read_text(), comments=True) if command.is_file() else [f"+sweep={file.stem}"]
        rows = pd.read_csv(file, dtype=str, keep_default_na=False)
        if {*SAME, HELD} <= {*rows} and (rows[HELD] != "").any():
            found[file.stem] = Published(file.stem, rows[rows[HELD] != ""], words)
    if not found:
        raise UserError(f"DIR={folder} holds no table of a sweep: accepted is a folder with NAME.csv, of +sweep=NAME")
    for name in wanted or []:
        if name not in found:
            raise unknown("--sweep", name, found)
    return [found[name] for name in wanted or found]


# --------------------------------------------------------------------------- measuring and comparing


@dataclass(frozen=True)
class Check:
    """What became of a table.

    Attributes:
        numbers: of the rows that were measured, each with the row's name before it.
        problem: why there are none, where the sweep could not be planned.
    """

    name: str
    numbers: list[tuple[str, Compared]]
    problem: str | None = None


def _check(table: Published, results: Path, count: int | None, more: list[str]) -> Check:
    """Measure rows of a table again; one whose sweep cannot be planned here does not keep others from it."""
    try:
        return _checked(table, results, count, more)
    except UserError as error:
        return Check(table.name, [], str(error))


def _checked(table: Published, results: Path, count: int | None, more: list[str]) -> Check:
    own = [f"name=verify/{table.name}", f"results={results}", f"measure={MEASURE}", "tables=[]", "figures=[]"]
    arguments = parse([*_of_the_users(table, more), *own])
    config, catalogue = compose_config(arguments)
    engine = Engine(config, catalogue, arguments.overrides)
    planned = engine.plan()
    with engine.store.lock():
        engine.write_cells(planned)
        now = load(engine.results, engine.name, catalogue)
        pairs = _pairs(table.rows, now)
        chosen = _spread(pairs, count)
        absent = len(table.rows) - len(pairs)
        lacking = f"; {absent} are not in the sweep any more, or not on this machine" if absent else ""
        print(f"{table.name}: measuring {len(chosen)} of {len(table.rows)} rows{lacking}", flush=True)
        keys = now.cells.set_index("row")["key"]
        wanted = {keys[row] for _, row in chosen}
        engine.start_log()
        engine.measure([p for p in planned if p.cell.key in wanted and engine.status(p)[0] != "done"])
        now = load(engine.results, engine.name, catalogue)
    numbers = [(_called(now, row), n) for line, row in chosen for n in _compared(table.rows.loc[line], now, row)]
    return Check(table.name, numbers)


def _of_the_users(table: Published, more: list[str]) -> list[str]:
    """The table's own words, then the user's. A file beside a table runs no code that the user did not ask for.

    Raises:
        UserError: the table's words name folders of plug-ins, and the user's do not.
    """
    said = parse(table.words).search
    if said and not parse(more).search:
        raise UserError(
            f"{table.name}.command names plug-ins of {', '.join(map(str, said))}, whose code would run: accepted is "
            "plugins=[DIR] behind the folder, with that folder or your own copy of it, where you trust it"
        )
    words = [word for word in table.words if not parse([word]).search] if said else table.words
    return [*words, *more]


def _pairs(rows: pd.DataFrame, now: ReportData) -> list[tuple[int, int]]:
    """Published rows with the rows of the fresh plan that are the same configuration, and not skipped."""
    # Both as text by one writer: 8 is then 8, and what is empty is empty.
    written = pd.read_csv(io.StringIO(now.frame.to_csv(index=False)), dtype=str, keep_default_na=False)
    written.index = now.frame.index
    there = written[now.frame["status"] != "skipped"]
    same = [*SAME, *(name for name in EXECUTION if name in rows and name in written)]
    known = {tuple(row): index for index, row in zip(there.index, there[same].to_numpy(), strict=True)}
    found = ((line, known.get(tuple(row))) for line, row in zip(rows.index, rows[same].to_numpy(), strict=True))
    return [(line, index) for line, index in found if index is not None]


def _spread(pairs: list[tuple[int, int]], count: int | None) -> list[tuple[int, int]]:
    """So many of them, spread evenly, the first included."""
    if count is None or count >= len(pairs):
        return pairs
    return [pairs[number * len(pairs) // count] for number in range(count)]


def _called(now: ReportData, row: int) -> str:
    told = now.frame.loc[row]
    parameters = f"({told['parameters']})" if told["parameters"] else ""
    return f"{told['model']} window={told['window']} bias={told['bias']} {told['task']} {told['attention']}{parameters}"


def _compared(line: pd.Series, now: ReportData, row: int) -> list[Compared]:
    """The published numbers of quality, with the fresh ones of the same columns."""
    fresh = now.frame.loc[row]
    metrics = ["images", *(name for metric in now.descriptions for name in (metric, f"input_{metric}"))]
    before = {name: float(line[name]) for name in metrics if line.get(name)}
    if fresh["status"] != "done":
        return [Compared("status", "done", f"{fresh['status']} ({fresh['reason']})", agrees=False)]
    return compare(before, {name: float(fresh[name]) for name in before}, now.descriptions, Quality.tolerance)


def _conclusion(checks: list[Check]) -> int:
    """Tell what became of all; the exit code."""
    differing = [(check.name, row, number) for check in checks for row, number in check.numbers if not number.agrees]
    for name, row, number in differing:
        print(printable(f"{name}: {row}: {number}"))
    for check in checks:
        print(printable(_summary(check)))
    if not any(check.numbers for check in checks):
        accepted = "accepted are tables whose weights and images are here"
        raise UserError(f"no row could be measured again: {accepted}")
    return 2 if differing or any(check.problem for check in checks) else 0


def _summary(check: Check) -> str:
    """How many numbers agree, and by how much they differ at most, metric by metric."""
    if check.problem:
        return f"{check.name}: not checked: {check.problem}"
    agree = sum(number.agrees for _, number in check.numbers)
    largest: dict[str, float] = {}
    for _, number in check.numbers:
        if number.difference is not None:
            largest[number.name] = max(largest.get(number.name, 0.0), abs(number.difference))
    shown = ", ".join(f"{name} {value:.1g}" for name, value in largest.items() if value)
    told = f"; largest differences: {shown}" if shown else ""
    return f"{check.name}: {agree} of {len(check.numbers)} numbers agree{told}"


if __name__ == "__main__":
    sys.exit(main())
