"""Timing forward passes of a model whose attention is swapped between the calls; what sweeps and the library share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from nystra_bench.attention.base import Attention
from nystra_bench.instruments.statistics import Ratio
from nystra_bench.instruments.timer import Clock, Entry, Timing, run_rounds, warm_up
from nystra_bench.models import forget, plug, setup_seconds
from nystra_bench.models.windows import WindowedModel
from nystra_bench.words import RELEASED


class ForwardPass:
    """A call of a model, which keeps its last output."""

    def __init__(self, forward: Callable[[WindowedModel], Tensor], model: WindowedModel):
        self.forward, self.model = forward, model
        self.output: Tensor | None = None

    def __call__(self) -> None:
        self.output = self.forward(self.model)


@dataclass(frozen=True)
class ForwardTimer:
    """Interleaved timing of a model under several attentions, and of the released model where that is another.

    Args:
        model: whose attention is replaced.
        forward: calls a model on the input.
        released: the model as released; None where it is not timed, or is ``model`` itself.
        compile: makes a model, with the attention that is plugged in, ready to be called where that is not part of a
            call; gives the seconds that it took.
    """

    model: WindowedModel
    forward: Callable[[WindowedModel], Tensor]
    timing: Timing
    clock: Clock
    released: WindowedModel | None = None
    compile: Callable[[WindowedModel], float] | None = None

    def entries(self, references: Mapping[str, Attention], others: Mapping[str, Attention]) -> dict[str, Entry]:
        """An entry for each attention by its name, and one for the released model; none is warmed up yet."""
        entries = {name: self._entry(self.model, attention) for name, attention in references.items()}
        if self.released is not None:
            entries[RELEASED] = self._entry(self.released, None)
        return entries | {name: self._entry(self.model, attention) for name, attention in others.items()}

    def _entry(self, model: WindowedModel, attention: Attention | None) -> Entry:
        def prepare() -> None:
            if attention is not None:
                plug(model, attention)

        return Entry(prepare, ForwardPass(self.forward, model))

    def model_of(self, name: str) -> WindowedModel:
        """The model that the entry of this name calls."""
        return self.released if name == RELEASED and self.released is not None else self.model

    def warm_up(self, name: str, entry: Entry) -> None:
        """The first calls of an entry; what its attention keeps is made in them, whatever was kept before."""
        forget(self.model_of(name))
        if self.compile is not None:
            entry.prepare()
            entry.compile_ms = 1e3 * self.compile(self.model_of(name))
        warm_up(entry, self.timing, self.clock)
        entry.setup_ms = 1e3 * setup_seconds(self.model_of(name))

    def run(
        self, entries: dict[str, Entry], pair: tuple[str, str], seed: int, compared: Iterable[str]
    ) -> tuple[dict[str, str], Ratio]:
        """Fill the samples of all entries, which are warm (see ``run_rounds``).

        Returns:
            The entries whose output is not finite, with a reason; and the A/A interval of ``pair``.
        """
        broken = _settle(entries)
        return broken, run_rounds(entries, self.timing, self.clock, pair, seed, compared)


def add_twin(entries: dict[str, Entry], references: Iterable[str]) -> tuple[str, str]:
    """A second entry of the first reference that runs: their ratio is the noise floor (A/A).

    Its first call counts for neither: it is the session's first, and fetches the memory from the system that all later
    calls find with the allocator. (18 GB of it made exact attention a fifth slower: 105 s instead of 85.)
    """
    name = next(name for name in [*references, *entries] if name in entries)
    entries[name].first_counts = False
    entries[f"{name}_again"] = replace(entries[name], samples_ms=[])
    return name, f"{name}_again"


def _settle(entries: dict[str, Entry]) -> dict[str, str]:
    """Call each once more before the first round; gives the entries whose output is not finite, with a reason.

    Of a long one the call that warmed it up is looked at.
    """
    broken = {}
    for name, entry in entries.items():
        if not entry.long:
            entry.prepare()
            entry.call()
        assert isinstance(entry.call, ForwardPass) and entry.call.output is not None
        if not entry.call.output.isfinite().all():
            broken[name] = "the output holds NaN or infinite numbers"
    return broken
