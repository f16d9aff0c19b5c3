"""The command line: ``python -m nystra_bench +sweep=NAME [option=value ...]``."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from nystra_bench import __version__
from nystra_bench.arguments import EXECUTOR, Arguments, parse, quoted, read, read_parameters
from nystra_bench.configuration import Catalogue, add_to_path, configs_folder
from nystra_bench.errors import UserError, did_you_mean, unknown, written
from nystra_bench.sweep.files import DISK
from nystra_bench.sweep.grid import AXES, blocks_of, untaken

USAGE = """\
usage: python -m nystra_bench +sweep=NAME [option=value ...]

  +sweep=NAME                      the sweep to run: {sweeps}
  mode=run|plan|report             run (default): measure what is missing and report; plan: only list the cells;
                                   report: only draw again from the store
  attention=[exact,nystra]         replaces the sweep's attentions: {attentions}
  attention.landmarks=[8,16]       a parameter of the attentions that take it
  model=NAME  model.weights=FILE   {models}
  task=NAME  task.images=DIR  task.limit=N
  window_size=[native,32]  position_bias=[native,interpolate,drop]
  device=cpu|cuda  dtype=float32|bfloat16|float16
  runtime=eager|compiled|graphs  threads=N  batch=N  memory_format=contiguous|channels_last
                                   how models are run (docs/RUNTIMES.md)
  measure=[quality,latency]        what is measured: {measures}
  tile=512                         cut images into tiles: for images too large for the memory
  executor={executors}       where it runs (docs/CLUSTERS.md): executor=slurm executor.partition=gpu
  name=FOLDER  results=DIR         results go to DIR/FOLDER
  plugins=[DIR]                    folder with options of your own (attention/NAME.yaml and its Python file)

  --cfg job                        print the settings of the run, without running it
  --version  --help

Names and paths stand as they are: results=~/my results. What may be several is given as a list, [a,b]; text with a
comma in it then takes two kinds of quotes: "task.images='a, b'". The other options, with what they
mean, are in {config}."""

MODES = ("run", "plan", "report")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 all done or skipped, 2 some cells failed, 1 anything else."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        if not argv:
            print(usage())
            return 1
        flags = [word for word in argv if word.startswith("-")]
        return _answer(flags[0], argv) if flags else _run(argv)
    except UserError as error:
        print(f"nystra_bench: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("nystra_bench: interrupted; what was measured is kept, the same command goes on", file=sys.stderr)
    except BrokenPipeError:  # the reader of our output went away, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno not in DISK:
            return _failed(error)
        where = f"{error.filename}: " if error.filename else ""
        accepted = "accepted are folders, of results= too, on a disk with room that this user may use"
        kept = "what was measured is kept, the same command goes on"
        said = f"a file cannot be read or written ({where}{error.strerror}): {accepted}; {kept}"
        print(f"nystra_bench: {said}", file=sys.stderr)
    except Exception as error:
        return _failed(error)
    return 1


def _failed(error: Exception) -> int:
    """What is nobody's mistake but this program's, with its traceback."""
    if logging.getLogger("nystra_bench").handlers:
        logging.getLogger("nystra_bench").error("the harness itself failed", exc_info=error)
    traceback.print_exception(error)
    print(f"nystra_bench: the harness itself failed: {type(error).__name__}: {error}", file=sys.stderr)
    return 1


def usage() -> str:
    catalogue = Catalogue([configs_folder()])
    names = {f"{choice}s": ", ".join(catalogue.names(choice)) for choice in ("sweep", "attention", "model", "measure")}
    names["executors"] = "|".join(catalogue.names(EXECUTOR))
    return USAGE.format(**names, config=configs_folder() / "config.yaml")


def _run(argv: list[str]) -> int:
    if sys.platform == "win32":
        raise UserError("Windows is not supported: accepted are Linux, macOS, and Linux under Windows (WSL)")
    arguments = parse(argv)
    config, catalogue = compose_config(arguments)
    from nystra_bench.sweep.engine import Engine

    engine = Engine(config, catalogue, arguments.overrides)
    with _asked_to_end():
        return {"run": engine.run, "plan": engine.show_plan, "report": engine.report_again}[config["mode"]]()


@contextmanager
def _asked_to_end() -> Iterator[None]:
    """Take what asks a process to end (a closed terminal, ``kill``, a cluster's end of time) as Ctrl-C.

    Else it would end without ending its jobs elsewhere, and without a word.
    """

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {}
    for asked in (signal.SIGTERM, signal.SIGHUP):
        try:
            if signal.getsignal(asked) == signal.SIG_DFL:  # nohup has a hang-up ignored
                before[asked] = signal.signal(asked, interrupt)
        except ValueError:  # this is not the main thread
            break
    try:
        yield
    finally:
        for asked, handler in before.items():
            signal.signal(asked, handler)


def _answer(flag: str, argv: list[str]) -> int:
    """The flags that a Hydra user may try: those that make sense here, and a sentence for the others.

    Raises:
        UserError: the flag is not accepted.
    """
    if flag in ("-h", "--help"):
        print(usage())
    elif flag == "--version":
        print(f"nystra_bench {__version__}")
    elif flag.partition("=")[0] in ("-c", "--cfg"):
        _show_settings(flag, argv)
    elif flag in ("-m", "--multirun"):
        raise UserError(
            f"{flag} is not accepted: one run takes lists and measures all their combinations, as "
            "attention=[exact,nystra] window_size=[16,32]"
        )
    else:
        raise UserError(
            f"{flag} is not accepted: accepted are option=value, --cfg job, --version and --help; folders with options "
            "of your own are given with plugins=[DIR]"
        )
    return 0


def _show_settings(flag: str, argv: list[str]) -> None:
    """What ``--cfg job`` prints: the settings as composed, with what the command line replaces in them."""
    words = [word for word in argv if word != flag]
    name, _, kind = flag.partition("=")
    if not kind:
        after = argv[argv.index(flag) + 1 :][:1]
        kind = after[0] if after else ""
        words = words[: argv.index(flag)] + words[argv.index(flag) + 1 :]
    if kind != "job":
        raise UserError(f"{name} {kind} is not accepted: accepted is {name} job")
    arguments = parse(words)
    config, _ = compose_config(arguments)
    given = {"axes": arguments.overrides.axes, "parameters": arguments.overrides.parameters}
    print(OmegaConf.to_yaml({**config, "given": given}), end="")


# --------------------------------------------------------------------------- composing


def compose_config(arguments: Arguments) -> tuple[dict, Catalogue]:
    """The run's settings, composed by Hydra, and the catalogue of options, with the user's folders first.

    Raises:
        UserError: an option, the sweep, or a value is unknown.
    """
    for folder in arguments.search:
        if not folder.is_dir():
            raise UserError(f"plugins={folder} is no folder: accepted are folders with attention/, task/, … in them")
    search = [folder.resolve() for folder in arguments.search]
    catalogue = Catalogue([*search, configs_folder()])
    add_to_path(search)
    read_parameters(arguments, catalogue)
    try:
        with initialize_config_dir(str(configs_folder()), version_base="1.3"):
            base = compose("config")
            _check_settings(arguments.settings, base)
            sweep = _check_sweep(arguments.sweep, catalogue)
            given = settings_of(sweep, catalogue)
            _check_settings(given, base)
            # Of two words for one setting the last counts: the user's.
            words = [*given, *arguments.settings]
            # Hydra would take it for a group of its own, whose folder it finds.
            executors = [word for word in words if read(word).key_or_group == EXECUTOR]
            composed = _composed(f"+sweep={sweep}", [word for word in words if word not in executors], search)
        config = cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True))
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        told = " ".join(str(error).split())[:300]
        raise UserError(f"the options do not fit together: {told}") from error
    config |= {"sweep_name": sweep, "plugins": [str(folder) for folder in search]}
    config["sweep"]["blocks"] = blocks_of(config["sweep"], catalogue, (sweep,))
    chosen = read(executors[-1]).value() if executors else config[EXECUTOR]
    config[EXECUTOR] = _executor(chosen, arguments.executor, catalogue)
    _check_values(config)
    return config, catalogue


def _executor(name: object, given: dict[str, Any], catalogue: Catalogue) -> dict[str, dict]:
    """The executor's option by its name, with the parameters that the user gave."""
    accepted = catalogue.names(EXECUTOR)
    if not isinstance(name, str) or name not in accepted:
        raise unknown(EXECUTOR, name, accepted)
    taken = catalogue.parameters(EXECUTOR, name)
    for parameter, value in given.items():
        if parameter not in taken:
            raise untaken(EXECUTOR, parameter, [value], set(taken))
    return {name: catalogue.option(EXECUTOR, name) | given}


def _composed(sweep: str, settings: list[str], search: list[Path]) -> DictConfig:
    """The settings, and the sweep, which alone is looked for in folders of plug-ins.

    In all of them Hydra would take a folder there that is called like a setting (``results/``) for its options.
    """
    path = [f"hydra.searchpath=[{','.join(quoted(f'file://{folder}') for folder in search)}]"] if search else []
    of_sweep = [word for word in settings if word.startswith("sweep.")]
    composed = compose("config", overrides=[word for word in settings if word not in of_sweep])
    with open_dict(composed):
        composed.sweep = compose("config", overrides=[*path, sweep, *of_sweep]).sweep
    return composed


def settings_of(sweep: str, catalogue: Catalogue) -> list[str]:
    """The settings that a sweep brings (``settings:`` in its file), as words that the user's own may follow.

    Raises:
        UserError: they are no mapping of options to values.
    """
    settings = catalogue.option("sweep", sweep).get("settings") or {}
    if not isinstance(settings, dict):
        raise UserError(f"sweep.settings={settings} is no mapping: accepted are options of config.yaml with values")
    return [f"{name}={json.dumps(value)}" for name, value in _flat(settings).items()]


def _flat(settings: dict, prefix: str = "") -> dict[str, object]:
    """Nested settings by their dotted names."""
    found: dict[str, object] = {}
    for name, value in settings.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def _check_sweep(name: str | None, catalogue: Catalogue) -> str:
    accepted = catalogue.names("sweep")
    if name is None:
        raise UserError(f"no sweep is given: add +sweep=NAME, accepted are {', '.join(accepted)}")
    if name not in accepted:
        raise unknown("sweep", name, accepted)
    return name


def _check_settings(words: list[str], base: DictConfig) -> None:
    known = [*_dotted(base), *AXES]
    for word in words:
        override = read(word)
        key = override.key_or_group
        group = OmegaConf.select(base, key)
        if isinstance(group, DictConfig) and not isinstance(override.value(), dict):
            raise UserError(f"{word}: {key} is a group of options: accepted are {', '.join(_dotted(group, f'{key}.'))}")
        if key not in known and group is None:
            hint = did_you_mean(key, known)
            raise UserError(f"{word}: the option {key} is unknown{hint}: accepted are {', '.join(known)}")


def _dotted(config: DictConfig, prefix: str = "") -> list[str]:
    keys = []
    for key, value in config.items():
        name = prefix + str(key)
        keys += _dotted(value, f"{name}.") if isinstance(value, DictConfig) and key != "sweep" else [name]
    return keys


def _check_values(config: dict) -> None:
    if config["mode"] not in MODES:
        raise unknown("mode", config["mode"], MODES)
    for key, kinds, least in (
        ("rounds", int, 2),
        ("min_rounds", int, 1),
        ("budget_s", (int, float), 0),
        ("warmup_s", (int, float), 0),
        ("min_sample_ms", (int, float), 0),
    ):
        _check_number(f"timing.{key}", config["timing"][key], kinds, least)
    switches = {f"timing.{name}": config["timing"][name] for name in ("again", "count_first")}
    for key, value in (switches | {"tf32": config["tf32"]}).items():
        if not isinstance(value, bool):
            raise UserError(f"{key}={value} is unknown: accepted are true and false")
    if config["tile"] is not None:
        _check_number("tile", config["tile"], int, 64)
        _check_number("tile_overlap", config["tile_overlap"], int, 0)
        if config["tile_overlap"] > config["tile"] // 2:
            raise UserError(
                f"tile_overlap={config['tile_overlap']} is out of range: accepted are numbers up to half of "
                f"tile={config['tile']}"
            )
    _check_number("timeout_s", config["timeout_s"], (int, float), 1)
    _check_number("seed", config["seed"], int, 0)
    _check_folders(config["results"], config["sweep_name"] if config["name"] is None else config["name"])


MOST = {
    "timing.rounds": 10_000,
    "timing.min_rounds": 10_000,
    "timing.budget_s": 7 * 86_400,
    "timing.warmup_s": 3_600,
    "timing.min_sample_ms": 60_000,
    "tile": 65_536,
    "timeout_s": 1_000_000,
    "seed": 2**32 - 1,
}
"""What is surely a slip of the hand above: a run would last for ever, or fail in each cell."""


def _check_number(name: str, value: Any, kinds: type | tuple, least: float) -> None:
    most = MOST.get(name, 10**9)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and isinstance(value, kinds)
    if not is_number or not least <= value <= most:
        what = "whole numbers" if kinds is int else "numbers"
        raise UserError(f"{name}={value} is out of range: accepted are {what} from {least} on, up to {most}")


LONGEST_NAME = 255
"""Bytes that file systems take."""


def _check_folders(results: object, name: object) -> None:
    if isinstance(results, (list, dict)) or not str(results or "").strip():
        raise UserError(f"results={written(results)} is no folder: accepted is a path")
    for option, part in [*(("results", part) for part in Path(str(results)).parts), ("name", str(name))]:
        if len(os.fsencode(part)) > LONGEST_NAME:
            raise UserError(
                f"{option}={results if option == 'results' else name} holds a name of {len(os.fsencode(part))} bytes: "
                f"accepted are up to {LONGEST_NAME}"
            )
    parts = str(name).split("/")
    fits = all(part.strip() and not part.startswith(".") for part in parts) and parts[0] != "store"
    if isinstance(name, (list, dict)) or not fits:
        raise UserError(
            f"name={name} is no folder name: accepted are names, or names joined by /, without a dot in front and "
            "other than store"
        )
