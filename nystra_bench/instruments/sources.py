"""Which code makes a number: the modules that a class needs, of this project and of plug-ins, with their digests."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from nystra_bench.errors import UserError

TIMED = ("nystra_bench.attention", "nystra_bench.kernels", "nystra_bench.models", "nystra_bench.baselines")
"""The packages whose code runs within a forward pass."""

COMPILED = (".cpp", ".h", ".cu")
"""Endings of sources that a package compiles when it is used."""


def sources_of(module: str, plugins: Iterable[str] = ()) -> dict[str, str]:
    """SHA-256 of the files of a module and of all that it imports, of ``TIMED`` and of the plug-ins, by module name.

    Args:
        plugins: folders with the code of plug-ins.
    """
    folders = tuple(str(Path(folder).resolve()) for folder in plugins)
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        file = _file(name)
        if name in found or file is None:
            continue
        if name == module or name.startswith(TIMED) or _inside(file, folders):
            found[name] = hashlib.sha256(_content(file)).hexdigest()
            waiting += _imported(name, file)
    return found


def _content(file: Path) -> bytes:
    """A file; that of a package with the sources in other languages below its folder, which its modules compile."""
    others = sorted(file.parent.rglob("*")) if file.name == "__init__.py" else []
    parts = [file, *(other for other in others if other.suffix in COMPILED)]
    return b"".join(part.read_bytes() for part in parts)


def _inside(file: Path, folders: tuple[str, ...]) -> bool:
    return any(file.is_relative_to(folder) for folder in folders)


@cache
def _file(name: str) -> Path | None:
    """The Python file of a module; None where there is none."""
    try:
        spec = importlib.util.find_spec(name)
    except (Exception, SystemExit):  # the package above it, which is imported for this, may raise anything
        return None
    origin = spec.origin if spec and spec.has_location else None
    return Path(origin).resolve() if origin and origin.endswith(".py") else None


def _imported(name: str, file: Path) -> Iterator[str]:
    """What a file imports anywhere in it, functions included: modules, and names that may be modules."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(_parsed(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(filter(None, [above, node.module]))
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _parsed(file: Path) -> ast.AST:
    try:
        return ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, RecursionError) as error:
        told = f"{error.msg}, line {error.lineno}" if isinstance(error, SyntaxError) else str(error)
        raise UserError(f"{file} cannot be read as Python ({told}): accepted is a module without mistakes") from error


def combined(*parts: dict[str, str]) -> str:
    """One digest of several answers of ``sources_of``, whatever they share."""
    files = {name: digest for part in parts for name, digest in part.items()}
    lines = "".join(f"{name} {files[name]}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()
