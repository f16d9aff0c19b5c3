"""From combinations to cells: facts about weights, images and devices are put in; what cannot be gets its reason."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from nystra_bench.configuration import Catalogue
from nystra_bench.errors import UserError
from nystra_bench.instruments.sources import combined
from nystra_bench.measure.base import Circumstances
from nystra_bench.sizes import Size, size_text
from nystra_bench.sweep import execution
from nystra_bench.sweep.cell import Cell
from nystra_bench.sweep.execution import EXECUTION
from nystra_bench.sweep.grid import AVAILABLE, Combination, Option, Overrides
from nystra_bench.sweep.inspection import use

FEW = 3
"""So many sizes of windows a table names one by one."""


@dataclass(frozen=True)
class Run:
    """The settings of a run that decide numbers beside the axes.

    Attributes:
        metrics: configurations by name.
        references: what stands for exact, sdpa and identity.
        timing: the settings ``timing.…``.
        plugins: folders with the user's own options.
        tiling: ``tile`` and ``overlap`` where images are cut into tiles; it stands with the task's parameters, since it
            changes what the model sees.
        tf32: whether matrix products of float32 may be computed in TF32 on a GPU.
    """

    metrics: Mapping[str, dict]
    references: Mapping[str, Option]
    timing: Mapping[str, object]
    plugins: tuple[str, ...] = ()
    tiling: Mapping[str, int] | None = None
    tf32: bool = False


@dataclass(frozen=True)
class Planned:
    """A cell of a sweep with the configuration that makes it.

    Attributes:
        window: side of the windows in tokens, or in words where a model's own are no squares (``8×32``); None where the
            cell has no model.
        uses: what the attention makes of position bias and shift mask (``Attention.uses``), and whether it is
            ``exact``; which attentions of the model are ``kept`` as they are, and how many.
        reason: why the cell is skipped, if it is.
        parts: what its value is put together from (``Measurement.parts``).
        unfit: whether it is the measurement that refuses.
        images: of the task; 0 where there is none.
    """

    cell: Cell
    combination: Combination
    window: int | str | None
    uses: dict[str, str | bool]
    reason: str | None
    parts: dict[str, dict]
    unfit: bool = False
    images: int = 0

    @property
    def status(self) -> str:
        return "skipped" if self.reason else "planned"


def request_of(combinations: list[Combination], run: Run) -> dict:
    """What has to be known about these combinations (``inspection.answer`` tells it)."""

    def configs(options: Iterable[Option | None]) -> dict[str, dict]:
        return {option.text: option.config for option in options if option}

    uses = dict.fromkeys(
        (c.model.text, c.task.text if c.task else None, c.window_size) for c in combinations if c.model
    )
    return {
        "sys_path": list(run.plugins),
        "models": configs(c.model for c in combinations),
        "tasks": configs(c.task for c in combinations),
        "attentions": configs(c.attention for c in combinations),
        "devices": configs(c.device for c in combinations),
        "metrics": dict(run.metrics),
        "references": {role: {"name": o.name, "config": o.config} for role, o in run.references.items()},
        "tiling": run.tiling,
        "uses": list(map(list, uses)),
    }


def plan(
    combinations: list[Combination], facts: dict, catalogue: Catalogue, overrides: Overrides, run: Run
) -> list[Planned]:
    """The cells of the combinations, each once, in their order.

    Raises:
        UserError: a model does not fit a task, or a value that the user gave fits nowhere.
    """
    _refuse_absent_devices(combinations, facts["devices"], overrides)
    planner = Planner(facts, catalogue, run)
    planned: dict[str, Planned] = {}
    for combination in combinations:
        if combination.device.optional and facts["devices"][combination.device.text]["refusal"]:
            continue
        made = planner.resolve(combination)
        planned.setdefault(made.cell.key, made)
    found = list(planned.values())
    if not found:
        raise UserError("the options leave no cell to measure: no device of the sweep is on this machine")
    _refuse_what_fits_nowhere(found, overrides)
    return found


class Planner:
    """Makes cells of combinations, from the facts that ``inspection.answer`` told."""

    def __init__(self, facts: dict, catalogue: Catalogue, run: Run):
        self.facts, self.catalogue, self.run = facts, catalogue, run

    def resolve(self, c: Combination) -> Planned:
        model, task = self._about("models", c.model), self._about("tasks", c.task)
        attention, machine = self._about("attentions", c.attention), self.facts["devices"][c.device.text]
        if model and task and not model["refusal"]:
            _check_model_fits(c, model, task)
        window = c.window_size if isinstance(c.window_size, int) else model.get("native_window") if model else None
        if c.position_bias == "interpolate" and window == model.get("native_window"):
            c = replace(c, position_bias="native")  # nothing is stretched: it is the same model
        c = replace(c, execution=execution.on_machine(c.execution, machine))
        known = self._circumstances(machine | dict(c.execution), attention, model)
        content = {"measure": self._measure(c), **self._content(c, window)}
        content |= {"device": c.device.name, "dtype": c.dtype, "settings": self._settings(c, machine, known)}
        content |= {"execution": dict(c.execution)} if c.execution else {}
        refused = _untrained(c, model) or _own_windows(c, model, window)
        refused = refused or execution.refusal(c.execution, machine)
        reason = refused or _refusal(self._sides(c, model), window, attention, machine, model, task)
        unfit = self._unfit(c, model, task) if model and not reason else None
        uses = dict(attention["uses"]) if attention else {}
        uses |= {"kept": model["kept"]} if model and model.get("kept") else {}
        parts, images = c.measurement.parts(known), task["images"] if task else 0
        return Planned(Cell.of(content), c, window, uses, reason or unfit, parts, bool(unfit), images)

    @staticmethod
    def _unfit(c: Combination, model: dict, task: dict | None) -> str | None:
        """Why the measurement cannot be taken of this model and these images."""
        sizes = [(height, width) for height, width in task["sizes"]] if task else []
        return c.measurement.refuses(model["layers"], sizes)

    def _content(self, c: Combination, window: int | None) -> dict:
        """What is measured: model, window, bias, task and attention, each where the measurement needs it."""
        content: dict = {}
        if c.model:
            about = self._about("models", c.model)
            kept = {k: about.get(k) for k in ("weights", "version", "native_window")}
            kept |= {k: about[k] for k in ("untrained", "settings") if about.get(k)}
            name = _model_name(c.model, about.get("settings", {}), self.catalogue)
            content["model"] = {"name": name, **kept}
        if c.window_size:
            content["window"] = window if isinstance(window, int) else self._in_words(c, window)
        if c.position_bias:
            content["position_bias"] = c.position_bias
        if c.task:
            task = self._about("tasks", c.task)
            content["task"] = {"name": c.task.name, **{k: task[k] for k in ("version", "dataset", "data")}}
            content["task"]["params"] = {**task["params"], **_tile_parameters(self.run.tiling)}
        if c.attention:
            kept = {k: self._about("attentions", c.attention)[k] for k in ("version", "params")}
            content["attention"] = {"name": c.attention.name, **kept}
        return content

    def _in_words(self, c: Combination, window: str | None) -> str | None:
        """The windows that the images are really cut into, where they are few; else what the model calls them."""
        sizes = self._sides(c, self._about("models", c.model))
        return ", ".join(map(size_text, sizes)) if 0 < len(sizes) <= FEW else window

    def _about(self, kind: str, option: Option | None) -> Any:
        """What is known of an option; None where the combination has none."""
        return self.facts[kind][option.text] if option else None

    @staticmethod
    def _measure(c: Combination) -> dict:
        params = {key: value for key, value in c.measure.config.items() if not key.startswith("_")}
        return {"name": c.measure.name, "version": c.measurement.version, "params": params}

    def _circumstances(self, machine: dict, attention: dict | None, model: dict | None) -> Circumstances:
        references = self.facts["references"]
        code = [about["sources"] for about in (attention, model, *references.values()) if about and "sources" in about]
        return Circumstances(
            hardware=machine.get("hardware"),
            threads=machine.get("threads"),
            torch=self.facts["torch"],
            timing=self.run.timing,
            references={
                role: {"name": about["name"], "version": about["version"], "params": about["params"]}
                for role, about in references.items()
            },
            metrics=self.facts["metrics"],
            source=combined(*code),
        )

    def _settings(self, c: Combination, machine: dict, known: Circumstances) -> dict:
        """What the measurement names; and TF32 where it is on, which makes float32 another precision on a GPU."""
        tf32 = self.run.tf32 and machine.get("kind") == "cuda" and c.dtype == "float32"
        return c.measurement.settings(known) | ({"tf32": True} if tf32 else {})

    @staticmethod
    def _sides(c: Combination, model: dict | None) -> list[Size]:
        return model["windows"][use(c.task.text if c.task else None, c.window_size)] if model else []


def _tile_parameters(tiling: Mapping[str, int] | None) -> dict:
    return {"tile": tiling["tile"], "tile_overlap": tiling["overlap"]} if tiling else {}


def _model_name(model: Option, settings: Mapping[str, object], catalogue: Catalogue) -> str:
    """What tables call a model: its option, or the file where the user gave other weights than the option's."""
    given = model.config["weights"] != catalogue.option("model", model.name)["weights"]
    name = Path(str(model.config["weights"])).stem if given else model.name
    return " ".join([name, *(f"{setting}={value}" for setting, value in settings.items())])


def _check_model_fits(c: Combination, model: dict, task: dict) -> None:
    assert c.model and c.task
    for name in ("scale", "channels"):
        if model[name] != task[name]:
            raise UserError(
                f"model={c.model.name} with its weights has {name} {model[name]}, but task={c.task.name} "
                f"needs {name} {task[name]}: accepted are weights with {name} {task[name]}, or another task="
            )


def _own_windows(c: Combination, model: dict | None, window: int | str | None) -> str | None:
    """Why a model that works in its own windows alone is not run in others."""
    if not model or c.model is None or model.get("resizable", True) or window == model["native_window"]:
        return None
    return f"{c.model.name} works in its own windows alone ({model['native_window']}), not in window_size={window}"


def _untrained(c: Combination, model: dict | None) -> str | None:
    """Why a measurement that looks at what a model does is not taken of one with random weights."""
    if not model or not model.get("untrained") or not c.measurement.trained:
        return None
    assert c.model
    return f"the weights of {c.model.name} are random, so measure={c.measure.name} would say nothing"


def _refusal(
    sides: list[Size],
    window: int | str | None,
    attention: dict | None,
    machine: dict,
    model: dict | None,
    task: dict | None,
) -> str | None:
    """What is lacking, model and task together, else why the window, the attention or the device does not fit."""
    lacking = [about["refusal"] for about in (model, task) if about and about["refusal"]]
    if lacking:
        return "; ".join(lacking)
    if task and isinstance(window, int) and window > task["largest_side"]:
        return f"window_size={window} exceeds the images, whose largest side is {task['largest_side']} pixels"
    refused = [reason for side in sides if attention and (reason := attention["refusals"][size_text(side)])]
    return machine["refusal"] or next(iter(refused), None)


def _refuse_absent_devices(combinations: list[Combination], devices: dict, overrides: Overrides) -> None:
    """A device that the user gave and the machine lacks is the mistake, whatever else does not fit."""
    for name in overrides.axes.get("device", []):
        refusals = [devices[c.device.text]["refusal"] for c in combinations if c.device.name == name]
        if refusals and all(refusals):
            raise UserError(f"device={name} does not fit: {refusals[0]}; accepted are cpu, and what else it has")


def _refuse_what_fits_nowhere(planned: list[Planned], overrides: Overrides) -> None:
    """A value of the user's that all cells with it refuse is a mistake; one that fits somewhere gives skipped rows."""
    for given, accepted, has in _given(overrides):
        with_it = [p for p in planned if has(p)]
        if not with_it:
            raise UserError(f"{given} is used by no cell: accepted beside it are position_bias=interpolate and drop")
        if all(p.reason for p in with_it):
            nearest = max(with_it, key=lambda p: p.window if isinstance(p.window, int) else 0)
            reason = str(nearest.reason)
            if all(p.unfit for p in with_it):
                raise UserError(f"measure={nearest.cell.measure}: {reason}")
            tail = "" if "accepted" in reason else f"; accepted are {accepted}"
            raise UserError(f"{given} does not fit: {reason}{tail}")


def _given(overrides: Overrides) -> Iterable[tuple[str, str, Callable[[Planned], bool]]]:
    """What the user gave as ``option=value``, what is accepted instead, and whether a cell has it."""
    for axis, known in EXECUTION.items():
        for value in overrides.axes.get(axis, []):
            if value in known.devices:
                yield f"{axis}={value}", "another device", partial(_runs, axis, value)
    for value in overrides.axes.get("window_size", []):
        if value != "native":
            accepted = "native, and windows that images and attentions fit"
            yield f"window_size={value}", accepted, partial(_works_in, value)
    others = {
        "model": "models whose weights are there",
        "task": "tasks whose images are there",
        "device": "cpu, and what else this machine has",
        "attention": "attentions that fit the windows",
    }
    for axis, accepted in others.items():
        for value in overrides.axes.get(axis, []):
            if isinstance(value, str) and value != AVAILABLE:
                yield f"{axis}={value}", accepted, partial(_named, axis, value)
    for axis, parameters in overrides.parameters.items():
        for name, values in parameters.items():
            for value in values:
                given = f"{axis}.{name}={value}"
                yield given, "values that fit", partial(_has, axis, name, value)


def _works_in(window: object, p: Planned) -> bool:
    return p.window == window


def _named(axis: str, name: str, p: Planned) -> bool:
    option: Option | None = getattr(p.combination, axis)
    return option is not None and option.name == name


def _runs(axis: str, value: object, p: Planned) -> bool:
    return dict(p.combination.execution).get(axis) == value


def _has(axis: str, parameter: str, value: object, p: Planned) -> bool:
    option: Option | None = getattr(p.combination, axis)
    return option is not None and parameter in option.config and option.config[parameter] == value
