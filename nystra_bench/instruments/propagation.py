"""How the error of replaced attentions travels through a model, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nystra_bench.attention.base import Attention
from nystra_bench.models.windows import WindowAttention, named_attention_sites, plug


def propagation(
    model: nn.Module, x: Tensor, attention: Attention, restore: Callable[[Tensor], object] | None = None
) -> list[dict]:
    """Relative errors of the features after each layer, when every attention is replaced and when its own alone is.

    A layer is a place of an attention; the features after it are the output of the block that it stands in: the
    nearest module around it that is an element of a list or sequence of modules (``blocks.3``, say), which in residual
    models is the stream of features after attention, MLP and skip connections; else the module that holds it. The
    error is ``|f' - f| / |f|`` with Euclidean norms over the whole map, f the features of the model as it is.

    The model runs twice: as it is, where each block is run a second time on its own input with the replacement in it
    (what comes before such a layer is the original, so nothing else has to be run again), and with every attention
    replaced. Blocks must not write to their inputs. The features after all blocks are held in memory meanwhile.
    Afterwards the model is as it was.

    Args:
        model: with the attentions that are the original plugged in.
        x: its input, (B, C, height, width).
        attention: the replacement.
        restore: what runs the model on an input where that is not ``model`` itself; it may call the model several times
            (tiles), and errors are then over all calls.

    Returns:
        A record for each layer, in the order of the forward pass: ``layer``, ``block`` (their names), ``all`` and
        ``alone`` (the errors; 0 where nothing differs, infinite where f is 0 and f' is not).

    Raises:
        ValueError: the model has no windowed attention, or the attention refuses its windows.
    """
    return Propagation(model, attention, restore).run(x)


class Propagation:
    """The same with what else is found: ``original`` and ``output``, what ``restore`` gave before and after."""

    def __init__(self, model: nn.Module, attention: Attention, restore: Callable[[Tensor], object] | None = None):
        self.model, self.attention, self.restore = model, attention, restore or model
        self.sites = named_attention_sites(model)
        self.blocks = {name: block_of(model, name) for name in self.sites}
        self.original: Any = None
        self.output: Any = None
        self._again = False

    @torch.inference_mode()
    def run(self, x: Tensor) -> list[dict]:
        """The records (see ``propagation``)."""
        with _restored(self.sites):
            replacements = self._replacements()
        alone = {name: _Error() for name in self.sites}
        every = {name: _Error() for name in self.sites}
        features: dict[str, list[Tensor]] = {}

        def after_original(block: str, module: nn.Module, inputs: tuple, named: dict, output: Tensor) -> None:
            features.setdefault(block, []).append(output)
            for name in self._within(block):
                with _restored({name: self.sites[name]}):
                    self.sites[name].attention = replacements[name]
                    alone[name].add(output, self._run_again(module, inputs, named))

        def after_replaced(block: str, module: nn.Module, inputs: tuple, named: dict, output: Tensor) -> None:
            original = features[block].pop(0)
            for name in self._within(block):
                every[name].add(original, output)

        self.original = self._pass(x, after_original)
        with _restored(self.sites):
            for name, site in self.sites.items():
                site.attention = replacements[name]
            self.output = self._pass(x, after_replaced)
        order = [name for block in features for name in self._within(block)]
        return [
            {"layer": name, "block": self.blocks[name], "all": every[name].relative, "alone": alone[name].relative}
            for name in order
        ]

    def _run_again(self, module: nn.Module, inputs: tuple, named: dict) -> Tensor:
        """A block on its own input, without heed to the blocks within it."""
        self._again = True
        try:
            return module.forward(*inputs, **named)
        finally:
            self._again = False

    def _replacements(self) -> dict[str, Attention]:
        plug(self.model, self.attention)  # it sees that the windows are served
        return {name: site.attention for name, site in self.sites.items()}

    def _within(self, block: str) -> list[str]:
        return [name for name, its in self.blocks.items() if its == block]

    def _pass(self, x: Tensor, after: Callable) -> object:
        """A forward pass in which ``after`` is called with each block's name, module, inputs and output."""
        with ExitStack() as hooks:
            for block in dict.fromkeys(self.blocks.values()):

                def hook(module, inputs, named, output, block=block) -> None:
                    if not self._again:
                        after(block, module, inputs, named, output)

                handle = self.model.get_submodule(block).register_forward_hook(hook, with_kwargs=True)
                hooks.callback(handle.remove)
            return self.restore(x)


def block_of(model: nn.Module, site: str) -> str:
    """The name of the block that an attention's place (by its name) stands in: see ``propagation``."""
    parts = site.split(".")
    for length in range(len(parts) - 1, 0, -1):
        holder = model.get_submodule(".".join(parts[: length - 1]))
        if isinstance(holder, (nn.ModuleList, nn.Sequential)):
            return ".".join(parts[:length])
    return ".".join(parts[:-1]) or site


@contextmanager
def _restored(sites: dict[str, WindowAttention]) -> Iterator[None]:
    """Give the places their attentions back at the end."""
    before = {name: site.attention for name, site in sites.items()}
    try:
        yield
    finally:
        for name, site in sites.items():
            site.attention = before[name]


class _Error:
    """Sums of squares of a difference and of what it is compared with."""

    def __init__(self):
        self.difference = self.size = 0.0

    def add(self, original: Tensor, other: Tensor) -> None:
        original, other = original.double(), other.double()
        self.difference += (other - original).square().sum().item()
        self.size += original.square().sum().item()

    @property
    def relative(self) -> float:
        if self.difference == 0:
            return 0.0
        return (self.difference / self.size) ** 0.5 if self.size else float("inf")
