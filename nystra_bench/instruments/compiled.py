"""Models compiled by ``torch.compile``, each with the attention that is in it, as one graph or not at all."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nystra_bench.errors import UserError
from nystra_bench.models.windows import attention_sites

LOOKS_AT_NUMBERS = "get value out of a tracing tensor"
"""What PyTorch's tracer says of operations whose course depends on the numbers in tensors."""


@dataclass(frozen=True)
class Form:
    """A compiled model: what is called, and the seconds that tracing and compiling took."""

    call: Callable[[Tensor], Tensor]
    seconds: float


class CompiledModels:
    """Calls models in compiled form, which is made at the first call and once for each attention and shape of input.

    A model runs once as it is, so that what its attentions keep is made. Then all operations of a pass are traced, with
    what is kept as constants, and the trace is compiled with static shapes. Dynamo alone would cut the graph at each
    layer, where our models look up what an attention keeps: this is what it would give without these cuts. Nothing
    falls back to eager: what is no one graph is an error.
    """

    def __init__(self) -> None:
        self._forms: dict[tuple, Form] = {}
        self._sites: dict[nn.Module, list] = {}

    def __call__(self, model: nn.Module, x: Tensor) -> Tensor:
        """The output for x (B, C, height, width).

        Raises:
            UserError: the model cannot be compiled with the attention that is in it, with the reason.
        """
        key = *self._plugged(model), x.shape, x.stride(), x.dtype, torch.is_inference_mode_enabled()
        if key not in self._forms:
            self._forms[key] = compiled(model, x)
        return self._forms[key].call(x)

    def seconds(self, model: nn.Module) -> float:
        """What compiling has taken of this model with the attentions that are in it now, for all shapes."""
        plugged = self._plugged(model)
        return sum(form.seconds for key, form in self._forms.items() if key[: len(plugged)] == plugged)

    def _plugged(self, model: nn.Module) -> tuple:
        if model not in self._sites:
            self._sites[model] = attention_sites(model)
        return model, *(site.attention for site in self._sites[model])


def compiled(model: nn.Module, x: Tensor) -> Form:
    """A model as one graph for inputs like x, with the attentions that are in it now.

    Raises:
        UserError: it is no one graph, or there is nothing to compile with; the message has the reason.
    """
    with torch.inference_mode(False), torch.no_grad():
        model(x.clone())  # what attentions keep is made now; inference tensors cannot be traced, and their copies can
    before, started = _graphs(), time.perf_counter()
    try:
        call = _traced_and_compiled(model, x)
        for _ in range(2):  # the second call finds what the first one left, as all later ones do
            call(x)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise _uncompilable(model, _reason(error)) from error
    if (graphs := _graphs() - before) != 1:
        raise _uncompilable(model, f"torch.compile made {graphs} graphs of it, where one is wanted")
    return Form(call, time.perf_counter() - started)


def _traced_and_compiled(model: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    from torch.fx.experimental.proxy_tensor import make_fx

    with torch.inference_mode(False), torch.no_grad():
        graph = make_fx(lambda image: model(image))(x.clone())
    return torch.compile(graph, fullgraph=True, dynamic=False)


def _graphs() -> int:
    """How many graphs this process has compiled."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


def _uncompilable(model: nn.Module, reason: str) -> UserError:
    names = dict.fromkeys(type(site.attention).__name__ for site in attention_sites(model))
    return UserError(
        f"runtime=compiled does not fit {type(model).__name__} with {', '.join(names)} ({reason}): accepted is "
        "runtime=eager"
    )


def _reason(error: BaseException) -> str:
    """What lies at the bottom of an error, in one line."""
    while inner := getattr(error, "inner_exception", None) or error.__cause__:
        error = inner
    said = str(error).strip()
    if LOOKS_AT_NUMBERS in said:
        return "its course depends on the numbers in tensors"
    return f"{type(error).__name__}: {said.splitlines()[0][:200]}" if said else type(error).__name__
