"""The journal of a cell that takes long: what is done of it, so that a killed cell goes on where it stood."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nystra_bench.sweep.cell import canonical_json, encode_numbers
from nystra_bench.sweep.files import make_room, remove, write_atomically

if TYPE_CHECKING:
    import numpy as np

INDEX = "index"
"""The entry of a file of arrays that says which array each name stands for: equal ones are there once."""


class Journal:
    """One JSON object a line: first the header, then the records in the order in which they were appended.

    Arrays, which are too large for a line, are files of a folder beside it that has its name.

    Args:
        file: where it is kept; made anew where it has another header, else freed of what is no record (a last line
            that was torn when its writer was killed).
        header: what the records depend on.
        others: journals of the same cell that other processes write; what they hold under this header counts, too.
    """

    def __init__(self, file: Path, header: Mapping, others: Iterable[Path] = ()):
        self.file = file
        self._read = [file, *(other for other in others if _has_header(other, header))]
        kept = [header]
        if _has_header(file, header):
            kept += _objects(file)[1:]
        else:
            remove(_folder(file))
        make_room(file)
        write_atomically(file, "".join(map(_line, kept)))

    def append(self, record: Mapping) -> None:
        """Add a record, which outlives this process; ``inf`` and ``nan`` come back as strings, as in results."""
        with self.file.open("a", encoding="utf-8") as file:
            file.write(_line(record))

    def records(self) -> list[dict]:
        """What was appended, by earlier processes too."""
        return [record for file in self._read for record in _objects(file)[1:]]

    def keep(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep arrays under a name of their own, whole or not at all."""
        import numpy as np

        index: dict[str, str] = {}
        distinct: dict[str, Any] = {}
        for key, array in arrays.items():
            index[key] = hashlib.sha256(f"{array.dtype} {array.shape} ".encode() + array.tobytes()).hexdigest()
            distinct[index[key]] = array
        content = io.BytesIO()
        distinct[INDEX] = np.array(json.dumps(index))
        np.savez(content, **distinct)
        write_atomically(_arrays(self.file, name), content.getvalue())

    def kept(self, name: str) -> dict[str, np.ndarray] | None:
        """The arrays of a name, equal ones as one; None where there are none, or their file is damaged."""
        import numpy as np

        for file in self._read:
            try:
                with np.load(_arrays(file, name), allow_pickle=False) as found:
                    index = json.loads(found[INDEX].item())
                    distinct = {entry: found[entry] for entry in set(index.values())}
                return {key: distinct[entry] for key, entry in index.items()}
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                continue
        return None


def _folder(file: Path) -> Path:
    """Where a journal's arrays are."""
    return file.with_suffix("")


def _arrays(file: Path, name: str) -> Path:
    return _folder(file) / f"{hashlib.sha256(name.encode()).hexdigest()}.npz"


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
