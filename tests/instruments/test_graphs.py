"""Models as CUDA graphs. Where there is no GPU a stand-in records what is called, and replays it, as PyTorch's does."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

from nystra_bench.attention.exact import ExactAttention
from nystra_bench.attention.identity import IdentityAttention
from nystra_bench.errors import UserError
from nystra_bench.instruments import graphs
from nystra_bench.instruments.graphs import GraphedModels
from nystra_bench.models.swinir import SwinIR, SwinIRSpec
from nystra_bench.models.windows import plug


class Recorded:
    """A graph that does anew what was done while it was recorded, in the same memory, and nothing else."""

    def __init__(self):
        self.calls = 0

    def replay(self):
        self.calls += 1
        self.output.copy_(self.model(self.given))


class Machine:
    """What ``torch.cuda`` is told, on a machine without a GPU."""

    def __init__(self):
        self.recording: Recorded | None = None
        self.graphs: list[Recorded] = []
        self.passes = 0

    def stand_ins(self):
        stream = SimpleNamespace(wait_stream=lambda other: None)
        return {
            "Stream": lambda: stream,
            "current_stream": lambda: stream,
            "stream": lambda one: nullcontext(),
            "CUDAGraph": self.new_graph,
            "graph": self.record,
            "synchronize": lambda: None,
        }

    def new_graph(self):
        self.graphs.append(Recorded())
        return self.graphs[-1]

    @contextmanager
    def record(self, graph):
        self.recording = graph
        yield
        self.recording = None

    def watch(self, model):
        """Let a model tell what it is called with while a graph is recorded."""
        usual = model.forward

        def forward(x):
            self.passes += 1
            out = usual(x)
            if self.recording is not None:
                self.recording.model, self.recording.given, self.recording.output = usual, x, out
            return out

        model.forward = forward


@pytest.fixture
def machine(monkeypatch):
    made = Machine()
    for name, stand_in in made.stand_ins().items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return made


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SwinIR(SwinIRSpec(dim=8, depths=(2,), heads=(2,), window=4, mlp_ratio=1.0)).eval()


def images(count):
    return torch.rand(count, 1, 3, 8, 8, generator=torch.Generator().manual_seed(1)).unbind()


def prepared(model, machine):
    """The form of a model, its input taken for one on a GPU."""
    machine.watch(model)

    class Models(GraphedModels):
        def prepare(self, model, x, called):
            return super().prepare(model, SimpleNamespace(device=SimpleNamespace(type="cuda"), clone=x.clone), called)

    return Models()


@torch.inference_mode()
def test_a_replay_reads_its_input_and_later_ones_leave_its_output(model, machine):
    first, second = images(2)
    expected = [plug(model, ExactAttention())(x) for x in (first, second)]
    models = prepared(model, machine)
    found = [models(model, x) for x in (first, second, first)]
    for actual, wanted in zip(found, [*expected, expected[0]], strict=True):
        torch.testing.assert_close(actual, wanted)
    (graph,) = machine.graphs
    assert machine.passes == graphs.WARM_UP + 1 and graph.calls == 1 + 3
    assert models.seconds(model) > 0


@torch.inference_mode()
def test_each_attention_has_a_graph_of_its_own(model, machine):
    (x,) = images(1)
    models = prepared(model, machine)
    exact, nothing = ExactAttention(), IdentityAttention()
    outputs = [models(plug(model, attention), x) for attention in (exact, nothing, exact)]
    assert len(machine.graphs) == 2 and torch.equal(outputs[0], outputs[2])
    assert not torch.allclose(outputs[0], outputs[1])


def test_what_waits_for_the_gpu_is_an_error_in_one_sentence(model, machine, monkeypatch):
    (x,) = images(1)
    models = prepared(model, machine)

    @contextmanager
    def refuse(graph):
        raise RuntimeError("operation not permitted when stream is capturing\nwith details")
        yield

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    with pytest.raises(UserError) as error:
        models(model, x)
    assert str(error.value) == (
        "runtime=graphs does not fit SwinIR with ExactAttention (RuntimeError: operation not permitted when stream is "
        "capturing): accepted is runtime=eager"
    )


def test_on_a_cpu_there_are_none(model):
    with pytest.raises(UserError, match="^runtime=graphs does not fit SwinIR .*on cpu.*: accepted is runtime=eager$"):
        GraphedModels()(model, images(1)[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@torch.inference_mode()
def test_a_graph_gives_what_the_model_gives(model):
    model, xs = model.cuda(), [x.cuda() for x in images(3)]
    expected = [model(x) for x in xs]
    models = GraphedModels()
    for x, wanted in zip(xs, expected, strict=True):
        torch.testing.assert_close(models(model, x), wanted)
