"""The command line: ``python -m nystra_bench.conformance DIR``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from nystra_bench.conformance.subjects import CHOICES, OptionFolder
from nystra_bench.errors import UserError

HERE = Path(__file__).parent
COMMAND = "python -m nystra_bench.conformance"
LAYOUT = f"a folder with NAME.yaml files in {', '.join(CHOICES[:-1])} or {CHOICES[-1]}"

USAGE = f"""\
usage: {COMMAND} DIR [option of pytest ...]

  DIR         {LAYOUT},
              and the Python files that their _target_ names; only these options are tested
  -k NAME     only tests with NAME in theirs, or in their option's name
  -x          end at the first failure

Exit code: 0 all passed, 2 something failed, 1 nothing could be tested."""


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 all passed, 2 something failed, 1 nothing could be tested."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        if {"-h", "--help"} & set(argv):
            print(USAGE)
            return 0
        return _run(_folder(argv), argv[1:])
    except UserError as error:
        print(f"nystra_bench: {error}", file=sys.stderr)
        return 1


def _folder(argv: list[str]) -> Path:
    if not argv or argv[0].startswith("-"):
        raise UserError(f"no folder is given: accepted is {COMMAND} DIR, with DIR {LAYOUT}")
    folder = Path(argv[0]).expanduser()
    if not folder.is_dir():
        raise UserError(f"DIR={argv[0]} is no folder: accepted is {LAYOUT}")
    return folder.resolve()


def _run(folder: Path, further: list[str]) -> int:
    tested = OptionFolder(folder)
    chosen = [choice for choice in CHOICES if tested.subjects(choice)]
    if not chosen:
        raise UserError(f"DIR={folder} holds no option: accepted is {LAYOUT}")
    try:
        import pytest
    except ImportError as error:
        raise UserError("the conformance tests need pytest: pip install pytest") from error
    modules = [HERE / f"test_{name}.py" for name in ("options", *chosen)]
    # Neither the settings nor the cache of a project that the user happens to be in.
    words = ["-c", os.devnull, f"--rootdir={HERE}", "-p", "no:cacheprovider", "--import-mode=importlib"]
    words += ["--quiet", "--no-header", "--tb=short", "-rN", "--disable-warnings", f"--options={folder}"]
    code = int(pytest.main([*words, *(str(module) for module in modules if module.is_file()), *further]))
    return {int(pytest.ExitCode.OK): 0, int(pytest.ExitCode.TESTS_FAILED): 2}.get(code, 1)
