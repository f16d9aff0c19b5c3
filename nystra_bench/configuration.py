"""Where the configuration files are, and reading them: one folder a choice, one file an option."""

from __future__ import annotations

import importlib
import inspect
import math
import sys
import traceback
import typing
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nystra_bench.errors import UserError, unknown
from nystra_bench.targets import MODULE, check_target, full_name, is_model

_HERE = Path(__file__).resolve().parent

BIAS_MODES = ("native", "interpolate", "drop")
"""What becomes of position bias and shift mask: as released, stretched to another window, or left out."""


def configs_folder() -> Path:
    """The folder ``configs``: inside the installed package, or at the top of a checkout."""
    packaged = _HERE / "configs"
    return packaged if packaged.is_dir() else _HERE.parent / "configs"


class Catalogue:
    """The options of every choice (``attention``, ``model``, …) that the configuration folders hold.

    Args:
        folders: searched in order; of two files with one name the first is taken. A file in a folder of a choice's
            own is named with it: ``paper/table2`` is ``sweep/paper/table2.yaml``.
    """

    def __init__(self, folders: list[Path]):
        self.folders = folders
        self._read: dict[tuple[str, str], dict] = {}

    def names(self, choice: str) -> list[str]:
        files = ((folder / choice, file) for folder in self.folders for file in (folder / choice).rglob("*.yaml"))
        return sorted({file.relative_to(folder).with_suffix("").as_posix() for folder, file in files})

    def option(self, choice: str, name: str) -> dict:
        """The content of ``<choice>/<name>.yaml``.

        Raises:
            UserError: there is no such file, or it is no YAML mapping.
        """
        if (choice, name) not in self._read:
            self._read[choice, name] = self._load(choice, name)
        return self._read[choice, name]

    def _load(self, choice: str, name: str) -> dict:
        known = self.names(choice)
        for folder in self.folders if name in known else ():
            file = folder / choice / f"{name}.yaml"
            if file.is_file():
                try:
                    state = file.stat()
                    parsed = _parsed(file, state.st_mtime_ns, state.st_size)
                    content = OmegaConf.to_container(parsed, resolve=True)
                except (OmegaConfBaseException, yaml.YAMLError, OSError, ValueError) as error:
                    told = _problem(error)
                    raise UserError(f"{file} cannot be read ({told}): accepted is YAML, {MAPPING}") from error
                if not isinstance(content, dict):
                    raise UserError(f"{file} holds no mapping: accepted are {MAPPING}")
                return content
        raise unknown(choice, name, known)

    def parameters(self, choice: str, name: str) -> dict:
        """The option's parameters, with their values."""
        return {key: value for key, value in self.option(choice, name).items() if not key.startswith("_")}

    def choose(self, setting: str, choice: str, wanted: object) -> dict[str, dict]:
        """Several options by name; ``all`` takes all there are.

        Raises:
            UserError: a name is unknown; ``setting`` is what the user calls the list.
        """
        known = self.names(choice)
        names = known if wanted == "all" else wanted if isinstance(wanted, list) else [wanted]
        for name in names:
            if str(name) not in known:
                raise unknown(setting, name, ["all", *known])
        return {str(name): self.option(choice, str(name)) for name in names}


MAPPING = "names with values, as landmarks: 8"
"""What an option's file holds."""


def _problem(error: Exception) -> str:
    """What is wrong with a file of YAML, and where."""
    said, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    return f"{said}, line {mark.line + 1}" if said and mark else str(error).splitlines()[0]


@lru_cache(maxsize=1024)
def _parsed(file: Path, changed_ns: int, size: int) -> DictConfig | ListConfig:
    """An option's file, which is parsed once in a process as long as it stays as it is."""
    return OmegaConf.load(file)


def add_to_path(folders: Iterable[Path]) -> None:
    """Let Python find the code of plug-ins, those of this call before all others."""
    own = [str(folder) for folder in folders]
    sys.path[:] = own + [entry for entry in sys.path if entry not in own]


def locate(target: str) -> Any:
    """The object that ``_target_`` names, as ``package.module.Name``.

    Raises:
        UserError: there is none.
    """
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # whatever the user's own module raises, a syntax error too
        told = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"_target_={target} cannot be imported ({told}): accepted is package.module.Name") from error


def instantiate(config: Mapping) -> Any:
    """Call what ``_target_`` names with the other entries as arguments, as Hydra's ``instantiate`` does.

    The worker and the library are spared Hydra's import by it. Mistakes in values are the user's.

    Raises:
        UserError: nothing is named, or what no option stands for, or a value is not what the callee accepts.
    """
    if not isinstance(config.get("_target_"), str):
        beside = ", ".join(config) or "nothing"
        raise UserError(f"no _target_ is named beside {beside}: accepted is _target_: package.module.Name")
    arguments = {key: value for key, value in config.items() if not key.startswith("_")}
    callee = locate(config["_target_"])
    check_target(config["_target_"], callee)
    try:
        _check_names(callee, arguments)
        _check_types(callee, arguments)
        return callee(**arguments)
    except (ValueError, TypeError) as error:
        raise UserError(f"{config['_target_'].rpartition('.')[2]}: {error}") from error
    except _FAULTS as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        told = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"_target_={config['_target_']} cannot be made ({told}; {last.filename}, line {last.lineno}): accepted is "
            "what takes the entries beside it"
        ) from error


_FAULTS = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, OSError)
"""What the code of a plug-in may raise, besides what is wrong with a value; not what tells that memory ran out."""

_PLAIN = {int: "whole numbers", float: "numbers", bool: "true and false", NoneType: "null"}


def _check_names(callee: Callable, arguments: Mapping[str, object]) -> None:
    """Hold the entries to what the callee takes.

    Raises:
        ValueError: one is not taken, or one that has to be there is absent.
    """
    try:
        signature = inspect.signature(callee)
    except (TypeError, ValueError):  # of C code, which may not tell
        return
    if is_model(callee) and full_name(_constructed_by(callee)) == MODULE:  # PyTorch's own takes anything at first
        signature = inspect.Signature()
    try:
        signature.bind(**arguments)
    except TypeError as error:
        taken = ", ".join(signature.parameters) or "none"
        raise ValueError(f"{error}: accepted entries are {taken}") from error


def _constructed_by(kind: Any) -> type:
    """The class whose constructor makes instances of this one; tools may have wrapped that function itself."""
    return next(base for base in kind.__mro__ if "__init__" in vars(base))


def _check_types(callee: Callable, arguments: Mapping[str, object]) -> None:
    """Hold values to the callee's annotations where these are of plain numbers: ``landmarks=few`` is no whole number.

    Raises:
        ValueError: a value is of another type.
    """
    hints = _hints(callee)
    for name, value in arguments.items():
        kinds = _kinds(hints.get(name))
        taken = {*kinds, int} if float in kinds else kinds
        is_nan = isinstance(value, float) and math.isnan(value)
        if is_nan or (set(kinds) <= set(_PLAIN) and type(value) not in taken):
            accepted = " or ".join(_PLAIN[kind] for kind in kinds if kind in _PLAIN) or "other values"
            raise ValueError(f"{name}={value} does not fit: accepted are {accepted}")


def _hints(callee: Callable) -> dict[str, Any]:
    """Annotations of what is called; none where they hold names that only a type checker imports."""
    try:
        return typing.get_type_hints(callee.__init__ if inspect.isclass(callee) else callee)
    except (NameError, TypeError):
        return {}


def _kinds(hint: Any) -> tuple:
    """The types of which a value may be, of an annotation; a missing one takes what it may."""
    return typing.get_args(hint) if isinstance(hint, UnionType) else (hint,)


def takes_text(catalogue: Catalogue, choice: str, parameter: str, look: bool = True) -> bool | None:
    """Whether a parameter of a choice's options is text: by its value in their files, and where that is null by the
    annotation of what they name.

    Args:
        look: whether to import that; where not, an open question is answered by None.
    """
    options = []
    for name in catalogue.names(choice):
        with suppress(UserError):  # a file that cannot be read is a mistake where it is chosen
            options.append(catalogue.option(choice, name))
    having = [option for option in options if parameter in option]
    values = [option[parameter] for option in having if option[parameter] is not None]
    if values:
        return any(isinstance(value, str) for value in values)
    if having and not look:
        return None
    targets = dict.fromkeys(option["_target_"] for option in having if isinstance(option.get("_target_"), str))
    return any({str, Path} & {*_kinds(_hints(locate(target)).get(parameter))} for target in targets)
