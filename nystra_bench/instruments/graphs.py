"""Models as CUDA graphs: all launches of a pass are recorded once, and a call replays them without Python."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from nystra_bench.errors import UserError, root_reason
from nystra_bench.instruments.compiled import Form, PreparedModels

WARM_UP = 3
"""Passes before a graph is recorded, in which attentions and libraries make what they keep, as PyTorch advises."""


class GraphedModels(PreparedModels):
    """Calls models as CUDA graphs, each with the attention that is in it.

    A call copies its input to where the graph reads it, and its output from where the graph writes it: both are images,
    small beside what a pass moves, and part of what is timed.
    """

    def prepare(self, model: nn.Module, x: Tensor, called: str) -> Form:
        if x.device.type != "cuda":
            raise _ungraphable(called, f"it is on {x.device.type}, and CUDA graphs are of cuda alone")
        started = time.perf_counter()
        given = x.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                model(given)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                output = model(given)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # what waits for the GPU cannot be recorded: .item(), a loop until convergence
            raise _ungraphable(called, root_reason(error)) from error

        def call(x: Tensor) -> Tensor:
            given.copy_(x)
            graph.replay()
            return output.clone()

        graph.replay()
        torch.cuda.synchronize()
        return Form(call, time.perf_counter() - started)


def _ungraphable(called: str, reason: str) -> UserError:
    return UserError(f"runtime=graphs does not fit {called} ({reason}): accepted is runtime=eager")
