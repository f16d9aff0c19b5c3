"""The journal of a cell that takes long: what is done of it, so that a killed cell goes on where it stood."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from nystra_bench.sweep.cell import canonical_json, encode_numbers
from nystra_bench.sweep.files import make_room, write_atomically


class Journal:
    """One JSON object a line: first the header, then the records in the order in which they were appended.

    Args:
        file: where it is kept; made anew where it has another header, else freed of what is no record (a last line
            that was torn when its writer was killed).
        header: what the records depend on.
    """

    def __init__(self, file: Path, header: Mapping):
        self.file = file
        kept = [header, *_objects(file)[1:]] if _has_header(file, header) else [header]
        make_room(file)
        write_atomically(file, "".join(map(_line, kept)))

    def append(self, record: Mapping) -> None:
        """Add a record, which outlives this process; ``inf`` and ``nan`` come back as strings, as in results."""
        with self.file.open("a", encoding="utf-8") as file:
            file.write(_line(record))

    def records(self) -> list[dict]:
        """What was appended, by earlier processes too."""
        return _objects(self.file)[1:]


def _line(record: Mapping) -> str:
    return json.dumps(encode_numbers(record)) + "\n"


def _has_header(file: Path, header: Mapping) -> bool:
    return any(canonical_json(found) == canonical_json(header) for found in _objects(file)[:1])


def _objects(file: Path) -> list[dict]:
    """The lines of a file that are JSON objects, without a last one that lacks its end."""
    try:
        *lines, _ = file.read_bytes().split(b"\n")
    except OSError:
        return []
    return [found for line in lines if isinstance(found := _parsed(line), dict)]


def _parsed(line: bytes) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
