"""How a model is run, beside where and in what precision: axes of a sweep with defaults that stay out of the keys.

A further axis is an entry of ``EXECUTION`` here and, in ``Workbench``, what it does to a run. It is then accepted on
the command line and in blocks, part of keys where it is not at its default, a reason for a session of its own, and a
column of the tables where some row is not at the default. Measurements name those that they obey
(``Measurement.execution``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product

from nystra_bench.errors import UserError, unknown, written
from nystra_bench.report.column import Column

Setting = tuple[tuple[str, str | int], ...]
"""The axes that are not at their defaults, each with its value, in the order of ``EXECUTION``."""


MOST_THREADS = "the cores of the machine, and null, for as many as it has"


@dataclass(frozen=True)
class ExecutionAxis:
    """An axis of how a model is run.

    Attributes:
        column: as tables show it; its name is the axis's, too.
        default: what holds where nothing is said, and in records that say nothing; None where the machine decides.
        words: what is accepted; empty where it is whole numbers.
        most: the largest number that is accepted.
        devices: of values that are there on one kind of device alone, that kind.
    """

    column: Column
    default: str | int | None
    words: tuple[str, ...] = ()
    most: int = 0
    devices: Mapping[str | int, str] = field(default_factory=dict)

    def check(self, value: object) -> None:
        """Raise ``UserError`` where a value is not accepted; the default always is."""
        name = self.column.name
        if value == self.default and not isinstance(value, bool):
            return
        if self.words:
            if value not in self.words:
                raise unknown(name, value, self.words)
        elif type(value) is not int or not 1 <= value <= self.most:
            most = self.most if self.default is not None else MOST_THREADS
            said = f"{name}={written(value)} is out of range"
            raise UserError(f"{said}: accepted are whole numbers from 1 on, up to {most}")


_AXES = (
    ExecutionAxis(
        Column("runtime", "runtime", "eager: operation by operation; compiled: the model with the attention in it as "
               "one graph, by torch.compile; graphs: as a CUDA graph, whose launches are recorded once."),
        "eager",
        words=("eager", "compiled", "graphs"),
        devices={"graphs": "cuda"},
    ),
    ExecutionAxis(Column("threads", "threads", "PyTorch's threads on the CPU.", 0), None, most=4096),
    ExecutionAxis(
        Column("batch", "batch", "So many images a call: times and memory are those of all of them.", 0), 1, most=1024
    ),
    ExecutionAxis(
        Column("memory_format", "memory format", "How images and the weights of convolutions lie in memory."),
        "contiguous",
        words=("contiguous", "channels_last"),
    ),
)  # fmt: skip

EXECUTION: dict[str, ExecutionAxis] = {axis.column.name: axis for axis in _AXES}


def settings(values_of: Callable[[str, object], Iterable]) -> list[Setting]:
    """All combinations of the axes.

    Args:
        values_of: gives the values of an axis from its name and its default.

    Raises:
        UserError: a value is not accepted.
    """
    values = {name: list(values_of(name, axis.default)) for name, axis in EXECUTION.items()}
    for name, given in values.items():
        for value in given:
            EXECUTION[name].check(value)
    combined = (dict(zip(values, chosen, strict=True)) for chosen in product(*values.values()))
    return [setting(named) for named in combined]


def setting(named: Mapping) -> Setting:
    """The axes that are not at their defaults."""
    told = ((name, named.get(name, axis.default), axis.default) for name, axis in EXECUTION.items())
    return tuple((name, value) for name, value, default in told if value != default)


def obeyed(given: Setting, axes: Iterable[str]) -> Setting:
    """What is left of a setting for a measurement that obeys these axes; the others are at their defaults for it."""
    return tuple(pair for pair in given if pair[0] in axes)


def on_machine(given: Setting, machine: Mapping) -> Setting:
    """A setting on a machine, whose own number of threads is the default.

    Args:
        machine: facts about the device: ``threads`` and ``cores``; without them nothing is known.

    Raises:
        UserError: more threads than the machine has cores.
    """
    threads, cores = dict(given).get("threads"), machine.get("cores")
    if isinstance(threads, int) and cores is not None and threads > cores:
        raise UserError(
            f"threads={threads} is out of range: accepted are whole numbers from 1 on, up to {MOST_THREADS} ({cores})"
        )
    return tuple(pair for pair in given if pair != ("threads", machine.get("threads")))


def refusal(given: Setting, machine: Mapping) -> str | None:
    """Why models cannot be run so on a device, in words that name what is accepted; None where nothing speaks against.

    Args:
        machine: facts about the device: its ``kind``; without it nothing is known.
    """
    kind = machine.get("kind")
    for name, value in given:
        axis = EXECUTION[name]
        needed = axis.devices.get(value, kind)
        if kind and needed != kind:
            others = ", ".join(word for word in axis.words if word not in axis.devices)
            return f"{name}={value} is there on device={needed} alone, not on {kind}: accepted there are {others}"
    return None
