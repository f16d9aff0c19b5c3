"""The options of a folder, each as the subject of tests."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import traceback
from functools import cached_property
from pathlib import Path
from typing import Any

from nystra_bench.configuration import Catalogue, configs_folder, instantiate, locate
from nystra_bench.errors import UserError, unknown
from nystra_bench.sweep.inspection import child_environment

CHOICES = (
    *("attention", "metric", "task", "model", "measure", "table", "figure", "sweep"),
    *("device", "executor", "download"),
)
"""The folders with options; those of a choice have their tests in ``test_<choice>.py``."""

SETTINGS = ("sweep", "device")
"""Choices whose options are settings alone, without a class."""

_COLLECTING = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class OptionFolder:
    """A folder of options, found beside the project's own: ``DIR/attention/NAME.yaml`` and so on."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.catalogue = Catalogue([folder, configs_folder()])
        self._own = Catalogue([folder])
        self._subjects: dict[str, list[Subject]] = {}

    @property
    def plugins(self) -> list[Path]:
        """What a user gives with ``plugins=``; empty for the project's own options."""
        return [] if self.folder == configs_folder() else [self.folder]

    def subjects(self, choice: str) -> list[Subject]:
        """The folder's own options of a choice, the same objects at every call."""
        if choice not in self._subjects:
            self._subjects[choice] = [Subject(self, choice, name) for name in self._own.names(choice)]
        return self._subjects[choice]

    def python(self, *arguments: str) -> subprocess.CompletedProcess:
        """Run Python in a process of its own, where the folder's modules are found."""
        environment = child_environment()
        paths = [*map(str, self.plugins), environment["PYTHONPATH"]]
        # Hashes of text differ between processes, unless they are told otherwise; here they surely do.
        environment |= {"PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": "7"}
        return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)


class Subject:
    """One option under test, called ``attention/nystra``."""

    def __init__(self, tested: OptionFolder, choice: str, name: str):
        self.tested, self.choice, self.name = tested, choice, name
        self._told = False

    def __str__(self) -> str:
        return f"{self.choice}/{self.name}"

    @property
    def config(self) -> dict:
        """The content of its file."""
        return self.tested.catalogue.option(self.choice, self.name)

    @property
    def parameters(self) -> dict:
        """Its parameters with their values."""
        return self.tested.catalogue.parameters(self.choice, self.name)

    def make(self, **changes: object) -> Any:
        """What the option stands for; ``changes`` replace those of its parameters that it has."""
        return instantiate(self.config | {name: value for name, value in changes.items() if name in self.config})

    def arguments(self) -> set[str]:
        """Names of the arguments of what ``_target_`` names."""
        return {p.name for p in self._signature() if p.kind not in _COLLECTING}

    def _signature(self) -> list[inspect.Parameter]:
        return list(inspect.signature(locate(self.config["_target_"])).parameters.values())

    @cached_property
    def fault(self) -> str | None:
        """Why nothing can be made of the file, with the option's name; None where it can.

        Of a model without its weights only the entries are looked at.
        """
        try:
            self._try(self.config)
        except Exception as error:  # whatever a plug-in's code raises
            return f"{self} cannot be made: {self._told_of(error)}"
        return None

    @cached_property
    def absent(self) -> str | None:
        """Why the weights of a model, or the images of a task, are not on this machine; None where nothing is amiss."""
        reason = self._lacks_weights()
        if self.choice == "task":
            reason = self.make().available()
        return f"{self}: {reason}" if reason else None

    def require(self) -> None:
        """End the test where the option cannot be made: as a failure that says why at first, as a skip afterwards."""
        import pytest  # here, since options are listed where there is no pytest, too

        if self.fault and self._told:
            pytest.skip(f"{self} cannot be made")
        if self.fault:
            self._told = True
            pytest.fail(self.fault, pytrace=False)

    def _lacks_weights(self) -> str | None:
        if self.choice != "model":
            return None
        from nystra_bench.models.checkpoints import resolve
        from nystra_bench.models.untrained import RANDOM

        if not self.config.get("weights"):
            return "its file names no weights"
        if self.config["weights"] == RANDOM:
            return "its weights are random, and so of no interest; its architecture is tested with trained ones"
        try:
            resolve(self.config["weights"])
        except UserError as error:
            return str(error)
        return None

    def _try(self, config: dict) -> None:
        """Make it, of entries that are arguments, where these are all that is taken."""
        if self.choice in SETTINGS:
            return
        if not isinstance(config.get("_target_"), str):
            raise UserError(f"{self}.yaml names no _target_: accepted is package.module.Name")
        if not any(p.kind in _COLLECTING for p in self._signature()):
            for name in self.parameters:
                if name not in self.arguments():
                    raise unknown(f"the entry of {self}.yaml", name, sorted(self.arguments()))
        if not self._lacks_weights():
            self.make()

    def _told_of(self, error: Exception) -> str:
        """An error in a line or two, with the place in the plug-in's own files where it comes from one of these."""
        if isinstance(error, UserError) and error.__cause__ is None:
            return str(error)
        frames = traceback.extract_tb((error.__cause__ or error).__traceback__)
        own = [frame for frame in frames if Path(frame.filename).is_relative_to(self.tested.folder)]
        where = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
        said = str(error) if isinstance(error, UserError) else "".join(traceback.format_exception_only(error)).strip()
        return said + where
