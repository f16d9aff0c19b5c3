"""The command line: ``python -m nystra_bench +sweep=NAME [option=value ...]``."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nystra_bench.configuration import Catalogue, add_to_path, configs_folder
from nystra_bench.errors import UserError, did_you_mean, unknown
from nystra_bench.sweep.files import DISK
from nystra_bench.sweep.grid import AXES, OPTION_AXES, Overrides, blocks_of

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
  device=cpu|cuda  dtype=float32
  measure=[quality,latency]        what is measured: {measures}
  tile=512                         cut images into tiles: for images too large for the memory
  name=FOLDER  results=DIR         results go to DIR/FOLDER
  plugins=[DIR]                    folder with options of your own (attention/NAME.yaml and its Python file)

The other options, with what they mean, are in {config}."""

MODES = ("run", "plan", "report")


@dataclass
class Arguments:
    """The command line, taken apart: ``sweep``, what replaces axes, and what Hydra composes."""

    sweep: str | None = None
    overrides: Overrides = field(default_factory=Overrides)
    settings: list[str] = field(default_factory=list)
    search: list[Path] = field(default_factory=list)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 all done or skipped, 2 some cells failed, 1 anything else."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        if not argv or {"-h", "--help"} & set(argv):
            print(usage())
            return 0 if argv else 1
        return _run(argv)
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
    return USAGE.format(**names, config=configs_folder() / "config.yaml")


def _run(argv: list[str]) -> int:
    arguments = parse(argv)
    config, catalogue = compose_config(arguments)
    from nystra_bench.sweep.engine import Engine

    engine = Engine(config, catalogue, arguments.overrides)
    return {"run": engine.run, "plan": engine.show_plan, "report": engine.report_again}[config["mode"]]()


# --------------------------------------------------------------------------- taking the command line apart


def parse(argv: list[str]) -> Arguments:
    """Tell the sweep, the axes and the settings apart; values follow Hydra's grammar of overrides.

    Raises:
        UserError: a word is no ``option=value``, or has no value.
    """
    arguments = Arguments()
    for word in argv:
        override = _parse_word(word)
        key = override.key_or_group
        choice, _, parameter = key.partition(".")
        if key == "sweep":
            arguments.sweep = str(override.value())
        elif key in ("hydra.searchpath", "plugins"):
            arguments.search += [Path(str(v).removeprefix("file://")).expanduser() for v in _values(override)]
        elif key in AXES:
            arguments.overrides.axes[key] = _some_values(word, override)
        elif choice in OPTION_AXES and parameter:
            arguments.overrides.parameters.setdefault(choice, {})[parameter] = _some_values(word, override)
        else:
            arguments.settings.append(word)
    return arguments


def _parse_word(word: str) -> Override:
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException as error:
        raise UserError(
            f"{word} cannot be read as an option: accepted is option=value, with lists as [a,b] and text with "
            "blanks or commas in quotes"
        ) from error
    if override.is_delete() or override.package is not None:
        raise UserError(f"{word} is not accepted: an option is given as option=value")
    return override


def _some_values(word: str, override: Override) -> list:
    try:
        values = _values(override)
    except HydraException as error:
        raise UserError(f"{word} cannot be read: accepted are value, [value,value] and range(first,last)") from error
    if not values:
        raise UserError(f"{word} holds no value: accepted are one or more, as [value,value]")
    return values


def _values(override: Override) -> list:
    """The values as a list: from ``a``, ``[a,b]``, ``a,b`` or ``range(1,5)``."""
    if override.is_sweep_override():
        return [_plain(value) for value in override.sweep_iterator(lambda value: value)]
    value = override.value()
    return [_plain(v) for v in value] if isinstance(value, list) else [_plain(value)]


def _plain(value: object) -> object:
    """Without the quotes that Hydra's grammar keeps, in mappings and lists too."""
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.text if isinstance(value, QuotedString) else value


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
    words = [f"hydra.searchpath=[{','.join(map(_quoted, search))}]"] if search else []
    try:
        with initialize_config_dir(str(configs_folder()), version_base="1.3"):
            base = compose("config")
            _check_settings(arguments.settings, base)
            _check_sweep(arguments.sweep, catalogue)
            given = settings_of(arguments.sweep, catalogue)
            _check_settings(given, base)
            # Of two words for one setting the last counts: the user's.
            words += [f"+sweep={arguments.sweep}", *given, *arguments.settings]
            composed = compose("config", overrides=words)
        config = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        told = " ".join(str(error).split())[:300]
        raise UserError(f"the options do not fit together: {told}") from error
    config |= {"sweep_name": arguments.sweep, "plugins": [str(folder) for folder in search]}
    add_to_path(search)
    config["sweep"]["blocks"] = blocks_of(config["sweep"], catalogue, (arguments.sweep,))
    _check_values(config)
    return config, catalogue


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


def _quoted(folder: Path) -> str:
    """A folder for Hydra's search path; in quotes, since names may hold blanks and commas."""
    escaped = str(folder).replace("'", "\\'")
    return f"'file://{escaped}'"


def _check_sweep(name: str | None, catalogue: Catalogue) -> None:
    accepted = catalogue.names("sweep")
    if name is None:
        raise UserError(f"no sweep is given: add +sweep=NAME, accepted are {', '.join(accepted)}")
    if name not in accepted:
        raise unknown("sweep", name, accepted)


def _check_settings(words: list[str], base: DictConfig) -> None:
    known = [*_dotted(base), *AXES]
    for word in words:
        override = _parse_word(word)
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
        nested = isinstance(value, DictConfig) and key != "sweep"
        keys += _dotted(value, f"{prefix}{key}.") if nested else [f"{prefix}{key}"]
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
    for key, value in (("timing.again", config["timing"]["again"]), ("tf32", config["tf32"])):
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


def _check_number(name: str, value: object, kinds: type | tuple, least: float) -> None:
    fits = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value) and value >= least
    if not fits:
        what = "whole numbers" if kinds is int else "numbers"
        raise UserError(f"{name}={value} is out of range: accepted are {what} from {least} on")


def _check_folders(results: object, name: object) -> None:
    if isinstance(results, (list, dict)) or not str(results or "").strip():
        raise UserError(f"results={results} is no folder: accepted is a path")
    parts = str(name).split("/")
    fits = all(part.strip() and not part.startswith(".") for part in parts) and parts[0] != "store"
    if isinstance(name, (list, dict)) or not fits:
        raise UserError(
            f"name={name} is no folder name: accepted are names, or names joined by /, without a dot in front and "
            "other than store"
        )
