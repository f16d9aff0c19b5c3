"""From the blocks of a sweep to the list of combinations: pure, without torch.

A block is a product of axes. An axis holds one value or a list. Those of the *option axes* (model, task, attention,
device, measure) are names of configuration files, or mappings ``{name: nystra, landmarks: [8, 16]}`` whose lists are
axes again. How a model is run (``execution``) are axes, too, with defaults. What the user gives on the command line
replaces that axis in every block.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from nystra_bench.configuration import BIAS_MODES, Catalogue
from nystra_bench.errors import UserError, did_you_mean, unknown
from nystra_bench.measure.base import AXES as NEEDED
from nystra_bench.measure.base import Measurement, measurement
from nystra_bench.sweep import execution
from nystra_bench.sweep.cell import canonical_json
from nystra_bench.sweep.execution import EXECUTION, Setting

OPTION_AXES = ("model", "task", "attention", "device", "measure")
AVAILABLE = "available"
"""As a device: every one that the machine has."""

DEFAULTS = {
    "window_size": "native",
    "position_bias": "native",
    "dtype": "float32",
    "measure": ["quality", "latency", "memory"],
    "device": AVAILABLE,
}
AXES = (*NEEDED, *EXECUTION, "measure")
DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class Option:
    """An option with its parameters, all of them; hashable by its canonical JSON."""

    name: str
    text: str
    config: dict = field(compare=False)
    optional: bool = False
    """Left out, rather than skipped with a reason, where the machine lacks it."""

    @classmethod
    def of(cls, name: str, config: Mapping) -> Option:
        return cls(name, canonical_json({"name": name, **config}), dict(config))


@dataclass(frozen=True)
class Combination:
    """What the configuration asks for; it becomes a cell once the weights, images and devices have been looked at.

    What its measurement does not need is None, and what of ``execution`` it does not obey is left out.
    """

    model: Option | None
    task: Option | None
    window_size: int | str | None
    position_bias: str | None
    attention: Option | None
    device: Option
    dtype: str
    measure: Option
    measurement: Measurement = field(compare=False)
    execution: Setting = ()


@dataclass(frozen=True)
class Overrides:
    """What the user gave: whole axes, and parameters of options as ``parameters["attention"]["landmarks"]``."""

    axes: dict[str, list] = field(default_factory=dict)
    parameters: dict[str, dict[str, list]] = field(default_factory=dict)


def listed(value: object) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def expand(blocks: list[Mapping], overrides: Overrides, catalogue: Catalogue) -> list[Combination]:
    """All combinations of a sweep, in the order of its blocks, each once.

    Raises:
        UserError: an axis, option, parameter or value is unknown, or nothing is left to measure.
    """
    if not isinstance(blocks, list) or not blocks:
        raise UserError(f"sweep.blocks={blocks} is no list of blocks: accepted is one or more, each a mapping of axes")
    for block in blocks:
        _check_block(block)
    _check_parameters(blocks, overrides, catalogue)
    combinations: dict[Combination, None] = {}
    for block in blocks:
        combinations |= dict.fromkeys(_expand_block(block, overrides, catalogue))
    if not combinations:
        raise UserError("the options leave no cell to measure: widen attention=, window_size= or position_bias=")
    _check_obeyed(combinations, overrides, catalogue)
    return list(combinations)


def blocks_of(sweep: Mapping, catalogue: Catalogue, inside: tuple[str, ...] = ()) -> list:
    """The blocks of a sweep: those of the sweeps that it includes, then its own.

    Raises:
        UserError: an included sweep is unknown, or includes itself.
    """
    blocks = []
    for name in listed(sweep.get("include") or []):
        if name in inside:
            raise UserError(f"sweep.include={name} includes itself: accepted are {', '.join(catalogue.names('sweep'))}")
        blocks += blocks_of(catalogue.option("sweep", str(name)), catalogue, (*inside, name))
    own = sweep.get("blocks") or []
    return [*blocks, *own] if isinstance(own, list) else own


def _check_block(block: object) -> None:
    if not isinstance(block, Mapping):
        raise UserError(f"sweep.blocks holds {block}, which is no block: accepted are mappings of axes to values")
    for axis in block:
        if axis not in AXES:
            raise unknown("sweep.blocks: the axis", axis, AXES)


def _expand_block(block: Mapping, overrides: Overrides, catalogue: Catalogue) -> Iterable[Combination]:
    measures = _values("measure", block, overrides, catalogue)
    if measures is None:
        raise _unnamed("measure", catalogue)
    made = {option: measurement(option.name, option.config) for option in measures}
    needed = {axis: option.name for option, its in made.items() for axis in its.needs}
    values = []
    for axis in NEEDED:
        given = _values(axis, block, overrides, catalogue)
        if given is None and axis in needed:
            raise _unnamed(axis, catalogue)
        values.append([None] if given is None else given)
    executed = execution.settings(lambda axis, default: listed(_narrowed(axis, block.get(axis, default), overrides)))
    product = itertools.product(*values, executed, measures)
    for model, task, window, bias, attention, device, dtype, how, measure in product:
        yield _normalised(
            Combination(model, task, window, bias, attention, device, dtype, measure, made[measure], how)
        )


def _values(axis: str, block: Mapping, overrides: Overrides, catalogue: Catalogue) -> list | None:
    """All values of an axis, options with their parameters; None where neither block nor user nor default names any."""
    given = _narrowed(axis, block.get(axis, DEFAULTS.get(axis)), overrides)
    if given is None:
        return None
    if axis in OPTION_AXES:
        parameters = overrides.parameters.get(axis, {})
        return [option for entry in listed(given) for option in _options(axis, entry, parameters, catalogue)]
    return [_checked(axis, value) for value in listed(given)]


def _unnamed(axis: str, catalogue: Catalogue) -> UserError:
    return UserError(f"sweep.blocks: a block names no {axis}: accepted are {', '.join(catalogue.names(axis))}")


def _narrowed(axis: str, in_block: object, overrides: Overrides) -> object:
    """The axis as the user wants it; an option that the block has, too, is all entries that the block has of it."""
    if axis not in overrides.axes:
        return in_block

    def of_block(value: object) -> list:
        return [entry for entry in listed(in_block) if _named(entry).get("name") == value]

    return [kept for value in overrides.axes[axis] for kept in of_block(value) or [value]]


def _named(entry: object) -> dict:
    """An entry of an axis with its name apart from its parameters."""
    return dict(entry) if isinstance(entry, Mapping) else {"name": entry}


def _options(axis: str, entry: object, given: Mapping, catalogue: Catalogue) -> list[Option]:
    """One option for each combination of its parameters' values."""
    if (axis, entry) == ("device", AVAILABLE):
        found = (_options(axis, name, given, catalogue) for name in catalogue.names(axis))
        return [replace(option, optional=True) for option in itertools.chain(*found)]
    entry = _named(entry)
    name = str(entry.pop("name", None))
    config = catalogue.option(axis, name)
    for parameter in entry:
        if parameter not in config:
            raise unknown(f"sweep.blocks: the parameter of {axis} {name}", parameter, catalogue.parameters(axis, name))
    entry |= {key: value for key, value in given.items() if key in config and not key.startswith("_")}
    names, lists = list(entry), [listed(value) for value in entry.values()]
    return [
        Option.of(name, config | dict(zip(names, values, strict=True))) for values in itertools.product(*lists)
    ]


def _check_parameters(blocks: list[Mapping], overrides: Overrides, catalogue: Catalogue) -> None:
    """A parameter that no chosen option takes is a mistake, not something to pass over."""
    for axis, given in overrides.parameters.items():
        taken: set[str] = set()
        for block in blocks:
            for entry in listed(_narrowed(axis, block.get(axis, DEFAULTS.get(axis)), overrides)):
                name = entry.get("name") if isinstance(entry, Mapping) else entry
                names = catalogue.names(axis) if (axis, name) == ("device", AVAILABLE) else [str(name)]
                taken |= {parameter for n in names for parameter in catalogue.parameters(axis, n)}
        for parameter, values in given.items():
            if parameter not in taken:
                raise untaken(axis, parameter, values, taken)


def _check_obeyed(combinations: Iterable[Combination], overrides: Overrides, catalogue: Catalogue) -> None:
    """A way to run models that no chosen measurement obeys is a mistake: all would run in the usual one."""
    taken = {pair for c in combinations for pair in c.execution}
    for axis, about in EXECUTION.items():
        for value in overrides.axes.get(axis, []):
            if value != about.default and (axis, value) not in taken:
                known = ((name, catalogue.option("measure", name)) for name in catalogue.names("measure"))
                obeying = ", ".join(name for name, config in known if axis in measurement(name, config).execution)
                chosen = ",".join(dict.fromkeys(c.measure.name for c in combinations))
                raise UserError(f"{axis}={value} changes nothing in measure={chosen}: accepted beside it are {obeying}")


def untaken(axis: str, parameter: str, values: list, taken: set[str]) -> UserError:
    """The error for a parameter that no chosen option of an axis takes; ``taken`` are those that are."""
    hint = did_you_mean(parameter, taken, prefix=f"{axis}.")
    accepted = ", ".join(f"{axis}.{name}" for name in sorted(taken)) or "none"
    shown = ",".join(map(str, values))
    return UserError(
        f"{axis}.{parameter}={shown} is a parameter of no chosen {axis}{hint}: accepted are {accepted}"
    )


def _checked(axis: str, value: object) -> object:
    """A value of window_size, position_bias or dtype, if it is one."""
    accepted = {"position_bias": BIAS_MODES, "dtype": DTYPES}
    if axis in accepted and value not in accepted[axis]:
        raise unknown(axis, value, accepted[axis])
    is_window = value == "native" or (isinstance(value, int) and not isinstance(value, bool) and value >= 2)
    if axis == "window_size" and not is_window:
        raise UserError(f"window_size={value} does not fit: accepted are native, or whole numbers from 2 on")
    return value


def _normalised(combination: Combination) -> Combination:
    """Only what its measurement needs. ``position_bias=native`` is the model as released, in its own window."""
    if combination.position_bias == "native" and combination.window_size != "native":
        combination = replace(combination, window_size="native")
    unneeded = set(NEEDED) - set(combination.measurement.needs)
    nothing: dict[str, Any] = dict.fromkeys(unneeded)
    how = execution.obeyed(combination.execution, combination.measurement.execution)
    return replace(combination, **nothing, execution=how)
