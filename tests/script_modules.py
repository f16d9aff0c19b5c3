"""The scripts of the folder ``scripts``, which is no package, as modules."""

import importlib.util
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "scripts"


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
