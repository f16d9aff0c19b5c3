"""The command line: ``python -m nystra_bench.fetch NAME``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from nystra_bench.errors import UserError, did_you_mean
from nystra_bench.fetch.catalogue import Download, cache_folder, find, names

PROGRAM = "python -m nystra_bench.fetch"


class Parser(argparse.ArgumentParser):
    """Mistakes on the command line are errors of the user like all others."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}: see {self.prog} --help")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 when everything named is there and right, 1 otherwise."""
    return guarded(lambda: _run(sys.argv[1:] if argv is None else argv))


def guarded(run: Callable[[], int]) -> int:
    """Run a command; what goes wrong becomes a sentence and the exit code 1."""
    try:
        return run()
    except UserError as error:
        print(f"nystra_bench: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("nystra_bench: interrupted; what came so far is kept, the same command goes on", file=sys.stderr)
    except BrokenPipeError:  # the reader of our output went away, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        where = error.filename or cache_folder()
        print(f"nystra_bench: {where} cannot be used: {error.strerror or error}", file=sys.stderr)
    return 1


def _run(argv: list[str]) -> int:
    parser = Parser(prog=PROGRAM, description="Fetch official weights and data; without a name, list what there is.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to fetch; --list shows all names")
    parser.add_argument("--list", action="store_true", help="list everything, with kind, size and whether it is there")
    parser.add_argument("--from", dest="source", metavar="PATH", type=Path, help="take this file instead of fetching")
    parser.add_argument("--force", action="store_true", help="replace what is there and wrong")
    arguments = parser.parse_args(argv)
    if arguments.list or not arguments.names:
        show()
        return 0
    if arguments.source is not None and len(arguments.names) != 1:
        raise UserError(f"--from={arguments.source} is for one download: accepted is one NAME beside it")
    downloads = [_find(name) for name in arguments.names]
    from nystra_bench.fetch.fetching import fetch

    source = arguments.source and arguments.source.expanduser()
    for download in downloads:
        fetch(download, source, arguments.force)
    return 0


def _find(name: str) -> Download:
    if name not in names():
        raise UserError(f"{name} is no download{did_you_mean(name, names())}: {PROGRAM} --list shows all")
    return find(name)


def show() -> None:
    """Print what can be fetched, as a table."""
    rows = [_row(find(name)) for name in names()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _row(download: Download) -> tuple[str, ...]:
    size = "size unknown" if download.size is None else f"{download.size / 1e6:.1f} MB"
    state = "fetched" if download.target.exists() else "not fetched" if download.url else "by hand (--from)"
    return download.name, download.kind, size, state, download.what
