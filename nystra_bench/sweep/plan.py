"""From choices to cells: facts about weights, images and devices are put in, and what cannot be is given its reason."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from nystra_bench.configuration import Catalogue
from nystra_bench.errors import UserError
from nystra_bench.sweep.cell import Cell
from nystra_bench.sweep.grid import Choice, Option, Overrides


@dataclass(frozen=True)
class Planned:
    """A cell of a sweep with the configuration that makes it; ``reason`` says why it is skipped, if it is."""

    cell: Cell
    choice: Choice
    window: int
    reason: str | None

    @property
    def status(self) -> str:
        return "skipped" if self.reason else "planned"


def request_of(choices: list[Choice], metrics: dict[str, dict], catalogue: Catalogue, sys_path: list[str]) -> dict:
    """What has to be known about these choices (``inspection.answer`` tells it)."""

    def configs(options: Iterable[Option | None]) -> dict[str, dict]:
        return {option.text: option.config for option in options if option is not None}

    return {
        "sys_path": sys_path,
        "models": configs(choice.model for choice in choices),
        "tasks": configs(choice.task for choice in choices),
        "attentions": configs(choice.attention for choice in choices),
        "devices": configs([*(choice.device for choice in choices), *all_devices(catalogue)]),
        "metrics": metrics,
        "windows": sorted({choice.window_size for choice in choices if choice.window_size != "native"}),
    }


def all_devices(catalogue: Catalogue) -> list[Option]:
    return [Option.of(name, catalogue.option("device", name)) for name in catalogue.names("device")]


def plan(choices: list[Choice], facts: dict, catalogue: Catalogue, overrides: Overrides) -> list[Planned]:
    """The cells of the choices, each once, in their order.

    Raises:
        UserError: a model does not fit a task, or a value that the user gave fits nowhere.
    """
    planned: dict[str, Planned] = {}
    for choice in choices:
        for device in _devices(choice, facts, catalogue):
            made = _resolve(choice, device, facts)
            planned.setdefault(made.cell.key, made)
    found = list(planned.values())
    if not found:
        raise UserError("the choice leaves no cell to measure: no device of the sweep is on this machine")
    _refuse_what_fits_nowhere(found, overrides)
    return found


def _devices(choice: Choice, facts: dict, catalogue: Catalogue) -> list[Option]:
    if choice.device is not None:
        return [choice.device]
    return [option for option in all_devices(catalogue) if facts["devices"][option.text]["refusal"] is None]


def _resolve(choice: Choice, device: Option, facts: dict) -> Planned:
    model, task = facts["models"][choice.model.text], facts["tasks"][choice.task.text]
    attention, machine = facts["attentions"][choice.attention.text], facts["devices"][device.text]
    _check_model_fits(choice, model, task)
    window = model["native_window"] if choice.window_size == "native" else choice.window_size
    bias = choice.position_bias
    if bias == "interpolate" and window == model["native_window"]:
        bias = "native"  # nothing is stretched: it is the same model
    content = {
        "measure": choice.measure,
        "model": {"name": choice.model.name, **{k: model[k] for k in ("weights", "version", "native_window")}},
        "window": window,
        "position_bias": bias,
        "task": {"name": choice.task.name, **{k: task[k] for k in ("version", "dataset", "params", "data")}},
        "attention": {"name": choice.attention.name, **{k: attention[k] for k in ("version", "params")}},
        "device": device.name,
        "dtype": choice.dtype,
        "settings": _settings(choice, machine, facts),
    }
    resolved = Choice(**{**choice.__dict__, "device": device, "position_bias": bias})
    return Planned(Cell.of(content), resolved, window, _refusal(window, attention, machine, task))


def _settings(choice: Choice, machine: dict, facts: dict) -> dict:
    if choice.measure == "quality":
        return {"metrics": facts["metrics"]}
    return {"hardware": machine.get("hardware"), "threads": machine.get("threads"), "torch": facts["torch"]}


def _check_model_fits(choice: Choice, model: dict, task: dict) -> None:
    for name in ("scale", "channels"):
        if model[name] != task[name]:
            raise UserError(
                f"model={choice.model.name} with its weights has {name} {model[name]}, but task={choice.task.name} "
                f"needs {name} {task[name]}: accepted are weights with {name} {task[name]}, or another task="
            )


def _refusal(window: int, attention: dict, machine: dict, task: dict) -> str | None:
    if window > task["largest_side"]:
        return f"window_size={window} exceeds the images, whose largest side is {task['largest_side']} pixels"
    return machine["refusal"] or attention["refusals"][str(window)]


def _refuse_what_fits_nowhere(planned: list[Planned], overrides: Overrides) -> None:
    """A value of the user's that every cell with it refuses is a mistake; one that fits somewhere gives skipped rows."""
    for name, value, has in _given(overrides):
        with_it = [p for p in planned if has(p)]
        if with_it and all(p.reason for p in with_it):
            raise UserError(f"{name}={value} does not fit: {with_it[0].reason}; accepted are values that fit a window")


def _given(overrides: Overrides) -> Iterable[tuple[str, object, Callable[[Planned], bool]]]:
    for axis, values in overrides.axes.items():
        for value in values:
            if axis == "window_size" and value != "native":
                yield axis, value, lambda p, value=value: p.window == value
            elif axis in ("device", "attention"):
                yield axis, value, lambda p, axis=axis, value=value: getattr(p.choice, axis).name == value
    for axis, parameters in overrides.parameters.items():
        for parameter, values in parameters.items():
            for value in values:
                yield (
                    f"{axis}.{parameter}",
                    value,
                    lambda p, a=axis, n=parameter, v=value: getattr(p.choice, a).config.get(n, p) == v,
                )
