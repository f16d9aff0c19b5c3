"""From choices to cells: facts about weights, images and devices are put in, and what cannot be is given its reason."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from nystra_bench.configuration import Catalogue
from nystra_bench.errors import UserError
from nystra_bench.sweep.cell import Cell
from nystra_bench.sweep.grid import AVAILABLE, Combination, Option, Overrides
from nystra_bench.sweep.inspection import use


@dataclass(frozen=True)
class Planned:
    """A cell of a sweep with the configuration that makes it.

    Attributes:
        uses: what the attention makes of position bias and shift mask (``Attention.uses``).
        reason: why the cell is skipped, if it is.
    """

    cell: Cell
    choice: Combination
    window: int
    uses: dict[str, str]
    reason: str | None

    @property
    def status(self) -> str:
        return "skipped" if self.reason else "planned"


def request_of(
    choices: list[Combination],
    metrics: dict[str, dict],
    catalogue: Catalogue,
    sys_path: list[str],
    tiling: dict | None = None,
) -> dict:
    """What has to be known about these choices (``inspection.answer`` tells it)."""

    def configs(options: Iterable[Option]) -> dict[str, dict]:
        return {option.text: option.config for option in options}

    return {
        "sys_path": sys_path,
        "models": configs(choice.model for choice in choices),
        "tasks": configs(choice.task for choice in choices),
        "attentions": configs(choice.attention for choice in choices),
        "devices": configs(choice.device for choice in choices),
        "metrics": metrics,
        "tiling": tiling,
        "uses": list(map(list, dict.fromkeys((c.model.text, c.task.text, c.window_size) for c in choices))),
    }


def plan(
    choices: list[Combination], facts: dict, catalogue: Catalogue, overrides: Overrides, tiling: dict | None = None
) -> list[Planned]:
    """The cells of the choices, each once, in their order.

    Args:
        tiling: ``tile`` and ``overlap`` where images are cut into tiles; it stands with the task's parameters, since it
            changes what the model sees.

    Raises:
        UserError: a model does not fit a task, or a value that the user gave fits nowhere.
    """
    planned: dict[str, Planned] = {}
    for choice in choices:
        if choice.device.optional and facts["devices"][choice.device.text]["refusal"]:
            continue
        made = _resolve(choice, facts, catalogue, tiling)
        planned.setdefault(made.cell.key, made)
    found = list(planned.values())
    if not found:
        raise UserError("the choice leaves no cell to measure: no device of the sweep is on this machine")
    _refuse_what_fits_nowhere(found, overrides)
    return found


def _resolve(choice: Combination, facts: dict, catalogue: Catalogue, tiling: dict | None) -> Planned:
    model, task = facts["models"][choice.model.text], facts["tasks"][choice.task.text]
    attention, machine = facts["attentions"][choice.attention.text], facts["devices"][choice.device.text]
    _check_model_fits(choice, model, task)
    window = model["native_window"] if choice.window_size == "native" else choice.window_size
    bias = choice.position_bias
    if bias == "interpolate" and window == model["native_window"]:
        bias = "native"  # nothing is stretched: it is the same model
    content = {
        "measure": choice.measure,
        "model": {"name": _model_name(choice.model, catalogue)}
        | {k: model[k] for k in ("weights", "version", "native_window")},
        "window": window,
        "position_bias": bias,
        "task": {"name": choice.task.name, **{k: task[k] for k in ("version", "dataset", "data")}}
        | {"params": {**task["params"], **_tile_parameters(tiling)}},
        "attention": {"name": choice.attention.name, **{k: attention[k] for k in ("version", "params")}},
        "device": choice.device.name,
        "dtype": choice.dtype,
        "settings": _settings(choice, machine, facts),
    }
    resolved = replace(choice, position_bias=bias)
    sides = model["windows"][use(choice.task.text, choice.window_size)]
    reason = _refusal(window, sides, attention, machine, task)
    return Planned(Cell.of(content), resolved, window, attention["uses"], reason)


def _model_name(model: Option, catalogue: Catalogue) -> str:
    """What tables call a model: its option, or the file where the user gave other weights than the option's."""
    if model.config["weights"] == catalogue.option("model", model.name)["weights"]:
        return model.name
    return Path(str(model.config["weights"])).stem


def _tile_parameters(tiling: dict | None) -> dict:
    return {"tile": tiling["tile"], "tile_overlap": tiling["overlap"]} if tiling else {}


def _settings(choice: Combination, machine: dict, facts: dict) -> dict:
    if choice.measure == "quality":
        return {"metrics": facts["metrics"]}
    return {"hardware": machine.get("hardware"), "threads": machine.get("threads"), "torch": facts["torch"]}


def _check_model_fits(choice: Combination, model: dict, task: dict) -> None:
    for name in ("scale", "channels"):
        if model[name] != task[name]:
            raise UserError(
                f"model={choice.model.name} with its weights has {name} {model[name]}, but task={choice.task.name} "
                f"needs {name} {task[name]}: accepted are weights with {name} {task[name]}, or another task="
            )


def _refusal(window: int, sides: list[int], attention: dict, machine: dict, task: dict) -> str | None:
    if task["refusal"]:
        return task["refusal"]
    if window > task["largest_side"]:
        return f"window_size={window} exceeds the images, whose largest side is {task['largest_side']} pixels"
    refused = [reason for side in sides if (reason := attention["refusals"][str(side)])]
    return machine["refusal"] or next(iter(refused), None)


def _refuse_what_fits_nowhere(planned: list[Planned], overrides: Overrides) -> None:
    """A value of the user's that all cells with it refuse is a mistake; one that fits somewhere gives skipped rows."""
    for given, accepted, has in _given(overrides):
        with_it = [p for p in planned if has(p)]
        if not with_it:
            raise UserError(f"{given} is used by no cell: accepted beside it are position_bias=interpolate and drop")
        if all(p.reason for p in with_it):
            nearest = max(with_it, key=lambda p: p.window)
            tail = "" if "accepted" in nearest.reason else f"; accepted are {accepted}"
            raise UserError(f"{given} does not fit: {nearest.reason}{tail}")


def _given(overrides: Overrides) -> Iterable[tuple[str, str, Callable[[Planned], bool]]]:
    """What the user gave as ``option=value``, what is accepted instead, and whether a cell has it."""
    for value in overrides.axes.get("window_size", []):
        if value != "native":
            accepted = "native, and windows that images and attentions fit"
            yield f"window_size={value}", accepted, lambda p, v=value: p.window == v
    others = {
        "task": "tasks whose images are there",
        "device": "cpu, and what else this machine has",
        "attention": "attentions that fit the windows",
    }
    for axis, accepted in others.items():
        for value in overrides.axes.get(axis, []):
            if isinstance(value, str) and value != AVAILABLE:
                yield f"{axis}={value}", accepted, lambda p, a=axis, v=value: getattr(p.choice, a).name == v
    for axis, parameters in overrides.parameters.items():
        for name, values in parameters.items():
            for value in values:
                given = f"{axis}.{name}={value}"
                yield given, "values that fit", lambda p, a=axis, n=name, v=value: _has(getattr(p.choice, a), n, v)


def _has(option: Option, parameter: str, value: object) -> bool:
    return parameter in option.config and option.config[parameter] == value
