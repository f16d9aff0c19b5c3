"""A results folder that faults are injected into, the ways to run the sweep in it, and what has to hold afterwards."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from random import Random
from unittest import mock

import torch
from faults.toys import PATIENCE_S, Toys

from nystra_bench import cli
from nystra_bench.arguments import Arguments
from nystra_bench.cli import compose_config
from nystra_bench.configuration import Catalogue
from nystra_bench.sweep import inspection
from nystra_bench.sweep.cell import canonical_json
from nystra_bench.sweep.inspection import child_environment
from nystra_bench.sweep.store import Store

PARENT = """
import json, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests may run in the background, where both are ignored
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from pathlib import Path
from nystra_bench import cli
from nystra_bench.configuration import Catalogue, add_to_path, configs_folder
from nystra_bench.sweep import inspection

known, words = json.loads(Path(sys.argv[1]).read_text()), sys.argv[2:]

def composed(arguments):
    add_to_path(arguments.search)
    arguments.overrides.parameters.update(known["parameters"])
    (results,) = [word.removeprefix("results=") for word in words if word.startswith("results=")]
    return known["config"] | {"results": results}, Catalogue([*arguments.search, configs_folder()])

inspection.look = lambda request: known["facts"]
if known["config"]:
    cli.compose_config = composed
sys.exit(cli.main(words))
"""
"""The command, but for the process that looks at model and images, and for Hydra: what these tell was asked before."""

LOCAL = {"local": {"_target_": "nystra_bench.sweep.executors.local.LocalExecutor"}}

CELLS = 5
"""Of the sweep ``faulty``."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    code: int
    out: str
    err: str


class Ground:
    """What all arenas share: the toys, what the inspection tells of them, and an undisturbed run."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.toys = Toys(folder / "toys")
        self._facts: dict[str, dict] = {}
        self._composed: dict[str, tuple[dict, Catalogue, Arguments]] = {}
        self.undisturbed = Arena(folder / "undisturbed", self)
        with self.cured():
            outcome = self.undisturbed.here()
        assert outcome.code == 0, outcome.err
        assert len(self.undisturbed.rows()) == CELLS
        (facts,), ((config, _, arguments),) = self._facts.values(), self._composed.values()
        known = {"facts": facts, "parameters": arguments.overrides.parameters}
        for name, told in (("known", config | {"executor": LOCAL}), ("asked", None)):
            (folder / f"{name}.json").write_text(json.dumps(known | {"config": told}))

    def compose(self, arguments: Arguments, results: Path) -> tuple[dict, Catalogue]:
        """The settings of a command, composed by Hydra once for all results folders."""
        others = sorted(word for word in arguments.settings if not word.startswith("results="))
        asked = repr((arguments.sweep, others, arguments.parameters, arguments.overrides.axes))
        if asked not in self._composed:
            self._composed[asked] = (*compose_config(arguments), arguments)
        config, catalogue, first = self._composed[asked]
        arguments.overrides, arguments.executor = first.overrides, first.executor
        return deepcopy(config) | {"results": str(results)}, catalogue

    def look(self, request: dict) -> dict:
        """The inspection's answer, from this process, once for each question."""
        asked = canonical_json(request)
        if asked not in self._facts:
            self._facts[asked] = json.loads(json.dumps(inspection.answer(json.loads(json.dumps(request)))))
        return self._facts[asked]

    @contextmanager
    def cured(self) -> Iterator[None]:
        """Let all methods behave."""
        self.toys.cured.touch()
        try:
            yield
        finally:
            self.toys.cured.unlink()

    @cached_property
    def rows(self) -> dict[str, dict]:
        return self.undisturbed.rows()


class Arena:
    """A results folder of its own.

    Attributes:
        after: what is to be undone at the end: file systems that were mounted, say.
    """

    def __init__(self, folder: Path, ground: Ground):
        self.folder, self.ground, self.after = folder, ground, ExitStack()
        folder.mkdir(parents=True, exist_ok=True)
        self.results = folder / "results"

    def __enter__(self) -> Arena:
        return self

    def __exit__(self, *of: object) -> None:
        self.after.close()

    def words(self, *more: str, sweep: str = "faulty") -> list[str]:
        words = [f"+sweep={sweep}", f"plugins=['{self.ground.toys.folder}']", f"results={self.results}"]
        return [*words, "device.threads=1", f"timeout_s={PATIENCE_S}", *more]

    # ----------------------------------------------------------------- running

    def here(self, *more: str, executor: str = "in_process", sweep: str = "faulty") -> Outcome:
        """Run the command in this process; its worker, too, unless another executor is named."""
        threads, out, err = torch.get_num_threads(), io.StringIO(), io.StringIO()
        try:
            with ExitStack() as patched:
                patched.enter_context(mock.patch.object(inspection, "look", self.ground.look))
                compose = partial(self.ground.compose, results=self.results)
                patched.enter_context(mock.patch.object(cli, "compose_config", compose))
                patched.enter_context(redirect_stdout(out))
                patched.enter_context(redirect_stderr(err))
                code = cli.main(self.words(*more, f"executor={executor}", sweep=sweep))
        finally:
            torch.set_num_threads(threads)
        return Outcome(code, out.getvalue(), err.getvalue())

    @contextmanager
    def running(self, composed: bool = True, **about) -> Iterator[Run]:
        """Run the command in processes of its own; whatever is left of them is killed at the end.

        Args:
            composed: whether the settings are those that Hydra composed before.
        """
        known = self.ground.folder / ("known.json" if composed else "asked.json")
        command = [sys.executable, "-c", PARENT, str(known), *self.words()]
        about["env"] = child_environment() | about.get("env", {})
        with subprocess.Popen(
            command, bufsize=0, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True, **about
        ) as process:
            run = Run(process)
            try:
                yield run
            finally:
                run.signal_all(signal.SIGKILL)

    def survives(self, told: int) -> Survival:
        """Go on with the sweep, undisturbed, and compare with a run that never was disturbed.

        Args:
            told: cells that the disturbed run said to be done.
        """
        kept = self.done()
        with self.ground.cured():
            resumed = self.here()
        now = self.done()
        lost = max(0, told - len(kept)) + sum(now.get(key) != content for key, content in kept.items())
        measured = f"{CELLS - len(kept)} to measure" in resumed.out
        left = [*self.results.rglob(".new-*")]
        return Survival(resumed.code == 0 and measured and not left, lost, self.rows() == self.ground.rows, resumed)

    # ----------------------------------------------------------------- looking

    def done(self) -> dict[str, bytes]:
        """Key -> the file of each result that can be read."""
        store = Store(self.results / "store")
        files = store.folder.glob("*/result.json")
        return {file.parent.name: file.read_bytes() for file in files if store.result(file.parent.name)}

    def rows(self) -> dict[str, dict]:
        """Key -> status and the numbers of all images."""
        found = {key: json.loads(content) for key, content in self.done().items()}
        return {key: {"status": r["status"], "images": r["value"]["images"]} for key, r in found.items()}

    def table(self, sweep: str = "faulty") -> dict[str, dict[str, str]]:
        """The rows of table.csv, by attention and parameters."""
        with (self.results / sweep / "table.csv").open(newline="", encoding="utf-8") as file:
            return {f"{row['attention']} {row['parameters']}".strip(): row for row in csv.DictReader(file)}

    def copy_undisturbed(self) -> None:
        shutil.copytree(self.ground.undisturbed.results, self.results)


@dataclass(frozen=True)
class Survival:
    """What became of a disturbed sweep.

    Attributes:
        resumed: whether the next run measured what was missing, that alone, and left nothing unfinished behind.
        lost: cells that were done and are not any more, or are others.
        equal: whether all rows are those of an undisturbed run.
        outcome: of that next run.
    """

    resumed: bool
    lost: int
    equal: bool
    outcome: Outcome

    def __bool__(self) -> bool:
        return self.resumed and not self.lost and self.equal


class Run:
    """The command in a process of its own."""

    def __init__(self, process: subprocess.Popen):
        self.process, self.told, self.said = process, 0, ""

    def wait_for_a_moment(self, chance: Random, least: int = 1) -> None:
        """Wait until at least so many cells are done, and some time more, by chance."""
        wanted = chance.randint(least, 3)
        while self.told < wanted:
            line = self.process.stderr.readline().decode()
            assert line, f"the run ended before it was disturbed: {self.said}"
            self.said += line
            self.told += " done" in line
        time.sleep(chance.uniform(0, 3.0 if wanted == 0 else 0.8))

    @property
    def worker(self) -> int | None:
        """The process that measures; None where there is none just now."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0]) if children else None

    def signal_all(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def ends(self) -> Outcome:
        """Wait for its end."""
        rest = self.process.communicate(timeout=120)[1].decode(errors="replace")
        self.said += rest
        self.told += rest.count(" done")
        return Outcome(self.process.returncode, "", self.said)


def gone(pid: int, within_s: float = 30.0) -> bool:
    """Whether a process ends by itself in this time."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False
