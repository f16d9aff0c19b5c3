"""Where the configuration files are, and reading them: one folder a choice, one file an option."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nystra_bench.errors import UserError, unknown

_HERE = Path(__file__).resolve().parent


def configs_folder() -> Path:
    """The folder ``configs``: inside the installed package, or at the top of a checkout."""
    packaged = _HERE / "configs"
    return packaged if packaged.is_dir() else _HERE.parent / "configs"


class Catalogue:
    """The options of every choice (``attention``, ``model``, …) that the configuration folders hold.

    Args:
        folders: searched in order; of two files with one name the first is taken.
    """

    def __init__(self, folders: list[Path]):
        self.folders = folders
        self._read: dict[tuple[str, str], dict] = {}

    def names(self, choice: str) -> list[str]:
        return sorted({file.stem for folder in self.folders for file in (folder / choice).glob("*.yaml")})

    def option(self, choice: str, name: str) -> dict:
        """The content of ``<choice>/<name>.yaml``.

        Raises:
            UserError: there is no such file, or it is no YAML mapping.
        """
        if (choice, name) not in self._read:
            self._read[choice, name] = self._load(choice, name)
        return self._read[choice, name]

    def _load(self, choice: str, name: str) -> dict:
        for folder in self.folders:
            file = folder / choice / f"{name}.yaml"
            if file.is_file():
                try:
                    content = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
                except (OmegaConfBaseException, OSError, ValueError) as error:
                    raise UserError(f"{file} cannot be read: {str(error).splitlines()[0]}") from error
                if not isinstance(content, dict):
                    raise UserError(f"{file} is no mapping of names to values")
                return content
        raise unknown(choice, name, self.names(choice))

    def parameters(self, choice: str, name: str) -> dict:
        """The option's parameters, with their values."""
        return {key: value for key, value in self.option(choice, name).items() if not key.startswith("_")}

    def choose(self, choice: str, wanted: str | list[str]) -> dict[str, dict]:
        """Several options by name; ``all`` takes all there are."""
        names = self.names(choice) if wanted == "all" else [wanted] if isinstance(wanted, str) else list(wanted)
        return {str(name): self.option(choice, str(name)) for name in names}


def locate(target: str) -> object:
    """The object that ``_target_`` names, as ``package.module.Name``.

    Raises:
        UserError: there is none.
    """
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"_target_={target} cannot be imported: {error}") from error


def instantiate(config: Mapping, **more: object) -> object:
    """Call what ``_target_`` names with the other entries as arguments, as Hydra's ``instantiate`` does.

    The worker and the library are spared Hydra's import by it. Mistakes in values are the user's.
    """
    arguments = {key: value for key, value in config.items() if not key.startswith("_")}
    try:
        return locate(config["_target_"])(**arguments, **more)
    except (ValueError, TypeError) as error:
        raise UserError(f"{config['_target_'].rpartition('.')[2]}: {error}") from error
