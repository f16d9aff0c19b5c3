"""A measurement: one kind of number that a sweep takes of its configurations.

A measurement is one subclass and one file ``configs/measure/<name>.yaml`` that names it in ``_target_``; its parameters
are the constructor's arguments, and may be swept as those of an attention. It is used in three places, and none of them
knows any measurement by name:

* planning asks which axes it ``needs`` and which ``settings`` and ``parts`` decide its numbers;
* the worker lets it ``run`` (or ``measure`` cell by cell) on a ``Workbench``;
* the report asks for the ``scalars`` of a table's row and for ``rows`` in long form.

Planning and the report import no torch, the worker no pandas: import both where they are used, not at the top.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from nystra_bench.configuration import instantiate
from nystra_bench.errors import UserError
from nystra_bench.report.column import Column
from nystra_bench.sweep.execution import EXECUTION

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nystra_bench.sweep.workbench import Job, Workbench

AXES = ("model", "task", "window_size", "position_bias", "attention", "device", "dtype")
"""The axes of a sweep that a measurement may need."""

ALWAYS = ("device", "dtype")
"""The axes that every measurement needs: it runs somewhere, in some precision."""


@dataclass(frozen=True)
class Circumstances:
    """What the plan knows of a cell beside its axes.

    Attributes:
        hardware: name of the processor or GPU.
        threads: of PyTorch on the CPU.
        torch: version of PyTorch.
        timing: the settings ``timing.…``.
        references: what stands for exact, sdpa and identity: role -> ``name``, ``version``, ``params``.
        metrics: name -> ``version``, ``params``, ``against``, and ``absent``, true where this machine lacks something.
        source: digest of the code that is run: of the attention, the model and the references, with all of this
            project and of plug-ins that they import.
    """

    hardware: str | None
    threads: int | None
    torch: str
    timing: Mapping[str, Any]
    references: Mapping[str, Mapping[str, Any]]
    metrics: Mapping[str, Mapping[str, Any]]
    source: str

    @property
    def machine(self) -> dict:
        """What makes costs comparable on one machine, running one code, alone."""
        return {"hardware": self.hardware, "threads": self.threads, "torch": self.torch, "source": self.source}


@dataclass(frozen=True)
class Measured:
    """What a measurement gives for a cell, where there is more to say than a value.

    Attributes:
        value: plain JSON; infinities and NaN may stand in it.
        status: ``done``, ``unstable`` or ``nonfinite``, the last two with a ``reason``.
        attach: writes further files into the folder that it is given.
    """

    value: dict
    status: str = "done"
    reason: str | None = None
    attach: Callable[[Path], None] | None = None


class Measurement:
    """Base class of measurements. ``needs`` and ``measure`` (or ``run``) have to be written, the rest may be."""

    version: ClassVar[str] = "1"
    """Raised whenever the numbers change for the same cell: it is part of a result's identity."""

    needs: ClassVar[tuple[str, ...]]
    """The axes that decide its numbers, of ``AXES``; the others are in none of its cells. ``device`` and ``dtype`` are
    always among them; ``window_size`` and ``position_bias`` go with ``model``."""

    execution: ClassVar[tuple[str, ...]] = ()
    """The axes of how a model is run that decide its numbers, of ``EXECUTION``; for all others it runs in the usual
    way. ``Workbench.forward`` obeys them."""

    quiet: ClassVar[bool] = False
    """Whether nothing else may run on the device meanwhile, as for timings."""

    by_image: ClassVar[bool] = False
    """Whether a cell can be spread over jobs: ``run`` then measures, where ``Workbench.images`` names a part of the
    images, these alone, and keeps what the cell's job puts together (``Store.journal``)."""

    trained: ClassVar[bool] = True
    """Whether it needs trained weights: False where random ones give the same numbers, as costs are."""

    tolerance: ClassVar[float] = 1e-3
    """The relative difference within which a cell that is measured again agrees; costs have a larger one."""

    place: ClassVar[int] = 100
    """Within a session measurements run by rising place: timings first, while the process is fresh."""

    columns: ClassVar[tuple[Column, ...]] = ()
    """What ``scalars`` gives, in the order of table.csv. A name belongs to one measurement alone."""

    row_columns: ClassVar[tuple[str, ...]] = ()
    """The columns of the long form, besides ``row``, which a table has even where it is empty."""

    # ----------------------------------------------------------------- planning

    def settings(self, known: Circumstances) -> dict:
        """What decides the numbers besides the axes; it is part of the cell. Plain JSON."""
        return {}

    def parts(self, known: Circumstances) -> dict[str, dict]:
        """What the value is put together from, by name, where parts are kept one by one: metrics, say.

        Each part has an identity (plain JSON). A stored value that lacks some is measured for these alone.
        """
        return {}

    def lacking(self, value: Mapping, parts: Mapping[str, dict]) -> list[str]:
        """Which of these parts a stored value does not have; ``value["parts"]`` holds the identities of its own."""
        had = value.get("parts") or {}
        return [name for name, identity in parts.items() if had.get(name) != identity]

    def refuses(self, layers: Sequence[str], sizes: Sequence[tuple[int, int]]) -> str | None:
        """Why it cannot be taken of a model, as one clause that names what is accepted; None where it can.

        It is asked where there is a model.

        Args:
            layers: names of the model's attentions, in their order.
            sizes: heights and widths of the degraded images; empty where there is no task, or it lacks its images.
        """
        return None

    # ----------------------------------------------------------------- measuring, in the worker

    def run(self, bench: Workbench, jobs: list[Job]) -> None:
        """Measure these cells of a session; one that fails does not stop the next."""
        bench.each(jobs, self.measure)

    def measure(self, bench: Workbench, job: Job) -> dict | Measured:
        """The value of one cell, plain JSON; its attention, where it has one, is plugged into ``bench.model``."""
        raise NotImplementedError

    # ----------------------------------------------------------------- reading, in the report

    def only(self, value: Mapping, parts: set[str] | None) -> Mapping:
        """A value as the next four are to see it: with these parts alone; None takes all."""
        return value

    def scalars(self, value: Mapping, cell: Mapping) -> dict[str, Any]:
        """Numbers for the table's row: column -> value."""
        return {}

    def rows(self, value: Mapping, cell: Mapping) -> list[dict]:
        """The long form, for figures and tables of its own: one record an image, layer, head, size, …"""
        return []

    def compared(self, value: Mapping, cell: Mapping) -> dict[str, Any]:
        """What a cell that is measured again is held to: by default all scalars."""
        return self.scalars(value, cell)

    def details(self, value: Mapping, cell: Mapping) -> dict[str, Any]:
        """What figures want to know of a row and no table shows."""
        return {}

    def describe(self, value: Mapping) -> dict[str, dict]:
        """Of scalars that only the value knows (metrics): name -> ``unit``, ``higher_is_better``, ``convention``."""
        return {}

    def unavailable(self, value: Mapping) -> dict[str, str]:
        """Scalars that could not be computed, with the reason."""
        return {}

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that table.csv has even where they are empty."""
        return tuple(column.name for column in self.columns)


def measurement(name: str, config: Mapping) -> Measurement:
    """The measurement of an option ``measure/<name>.yaml``.

    Raises:
        UserError: it cannot be made, or does not say what it needs.
    """
    made = instantiate(config)
    target = config["_target_"]
    if not isinstance(made, Measurement):
        raise UserError(
            f"measure={name}: {target} is no measurement: accepted are subclasses of "
            "nystra_bench.measure.base.Measurement"
        )
    needs = getattr(made, "needs", None)
    fits = isinstance(needs, (tuple, list)) and set(ALWAYS) <= set(needs) <= set(AXES)
    if needs is None or not fits or ("model" not in needs and {"window_size", "position_bias"} & set(needs)):
        said = "does not say which axes it needs" if needs is None else f"says needs={needs}"
        raise UserError(
            f"measure={name}: {target} {said}: accepted is a tuple of {', '.join(AXES)}, with device and dtype in it "
            "and, where window_size or position_bias is, model"
        )
    _check_execution(name, target, made.execution)
    return made


def _check_execution(name: str, target: str, said: object) -> None:
    if not isinstance(said, (tuple, list)) or not set(said) <= set(EXECUTION):
        raise UserError(
            f"measure={name}: {target} says execution={said}: accepted is a tuple of {', '.join(EXECUTION)}, or ()"
        )


def check_columns(measurements: Mapping[str, Measurement], taken: Mapping[str, str]) -> None:
    """Hold each column to one owner.

    Args:
        taken: columns that others give, and who that is.

    Raises:
        UserError: a measurement gives a column that another gives.
    """
    owners = dict(taken)
    for name, made in measurements.items():
        for column in made.names:
            if column in owners:
                raise UserError(
                    f"measure={name} gives the column {column}, which {owners[column]} gives: accepted are names that "
                    "no other has"
                )
            owners[column] = f"measure={name}"


def without_attention(layers: Sequence[str]) -> str | None:
    """Why a measurement that looks at attentions refuses a model without any."""
    return None if layers else "the model has no attention to look at: accepted are models with windowed attentions"


def number(value: Any) -> float:
    """A float of what JSON can hold: numbers, the strings ``inf``, ``-inf``, ``nan``, or null."""
    return float("nan") if value is None else float(value)
