"""Models compiled by ``torch.compile``, each with the attention that is in it, as one graph or not at all."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nystra_bench.errors import UserError, root_reason
from nystra_bench.models.windows import attention_sites

LOOKS_AT_NUMBERS = "get value out of a tracing tensor"
"""What PyTorch's tracer says of operations whose course depends on the numbers in tensors."""


@dataclass(frozen=True)
class Form:
    """What was prepared: what is called, and the seconds that preparing it took."""

    call: Callable[..., Tensor]
    seconds: float


class PreparedModels(ABC):
    """Calls models in another form than the eager one, made at the first call and once for each attention and shape."""

    def __init__(self) -> None:
        self._forms: dict[tuple, Form] = {}
        self._sites: dict[nn.Module, list] = {}

    @abstractmethod
    def prepare(self, model: nn.Module, x: Tensor, called: str) -> Form:
        """The form of a model for inputs like x.

        Args:
            called: what it is, for errors.

        Raises:
            UserError: there is none of the model with the attention that is in it; the message has the reason.
        """

    def __call__(self, model: nn.Module, x: Tensor) -> Tensor:
        """The output for x (B, C, height, width); raises what ``prepare`` raises."""
        plugged = self._plugged(model)
        key = *plugged, x.shape, x.stride(), x.dtype, torch.is_inference_mode_enabled()
        if key not in self._forms:
            names = dict.fromkeys(type(attention).__name__ for attention in plugged[1:])
            self._forms[key] = self.prepare(model, x, f"{type(model).__name__} with {', '.join(names)}")
        return self._forms[key].call(x)

    def seconds(self, model: nn.Module) -> float:
        """What preparing has taken of this model with the attentions that are in it now, for all shapes."""
        plugged = self._plugged(model)
        return sum(form.seconds for key, form in self._forms.items() if key[: len(plugged)] == plugged)

    def _plugged(self, model: nn.Module) -> tuple:
        if model not in self._sites:
            self._sites[model] = attention_sites(model)
        return model, *(site.attention for site in self._sites[model])


class CompiledModels(PreparedModels):
    """Calls models in compiled form.

    Dynamo alone would cut a model's graph in each layer, where it is looked up what the attention keeps; a form has no
    such cuts, and is what a model without that book-keeping would give.
    """

    def prepare(self, model: nn.Module, x: Tensor, called: str) -> Form:
        return compiled(model, x, called=called)


def compiled(call: Callable[..., Tensor], *inputs: Tensor, called: str) -> Form:
    """A model or function as one graph for inputs like these.

    It runs once as it is, so that what attentions keep is made. Then all operations of a call are traced, with what is
    kept as constants, and the trace is compiled with static shapes. Nothing falls back to eager.

    Args:
        called: what it is, for errors.

    Raises:
        UserError: it is no one graph, or there is nothing to compile with; the message has the reason.
    """
    with torch.inference_mode(False), torch.no_grad():
        call(*_traceable(inputs))
    before, started = _graphs(), time.perf_counter()
    try:
        form = _traced_and_compiled(call, inputs)
        for _ in range(2):  # the second call finds what the first one left, as all later ones do
            form(*inputs)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise _uncompilable(called, _reason(error)) from error
    if (graphs := _graphs() - before) != 1:
        raise _uncompilable(called, f"torch.compile made {graphs} graphs of it, where one is wanted")
    return Form(form, time.perf_counter() - started)


def _traced_and_compiled(call: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Callable[..., Tensor]:
    from torch.fx.experimental.proxy_tensor import make_fx

    with torch.inference_mode(False), torch.no_grad():
        graph = make_fx(lambda *traced: call(*traced))(*_traceable(inputs))
    return torch.compile(graph, fullgraph=True, dynamic=False)


def _traceable(inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Tensors of inference mode cannot be traced; their copies can."""
    return [x.clone() if x.is_inference() else x for x in inputs]


def _graphs() -> int:
    """How many graphs this process has compiled."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


def _uncompilable(called: str, reason: str) -> UserError:
    return UserError(f"runtime=compiled does not fit {called} ({reason}): accepted is runtime=eager")


def _reason(error: BaseException) -> str:
    said = root_reason(error)
    return "its course depends on the numbers in tensors" if LOOKS_AT_NUMBERS in said else said
