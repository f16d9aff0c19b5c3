"""What only the real objects can tell a plan: windows, weights, images, devices, refusals.

Planning imports no torch; it asks this module in a process of its own (``look``), which answers with plain data.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Any, TextIO

from nystra_bench.errors import Absent, UserError
from nystra_bench.instruments.environment import ROOT
from nystra_bench.instruments.sources import sources_of
from nystra_bench.sizes import Size, plain, sides, size_text

PATIENCE_S = 300
"""Seconds for which the inspection may do nothing at all."""

LIFE_S, IDLE_S = 2.0, 0.01
"""How often it looks whether it has used the processor, and seconds of the processor that are as good as none."""


def look(request: dict, patience_s: float = PATIENCE_S) -> dict:
    """Answer a request (see ``answer``) in a child process, which ends with this one.

    Args:
        patience_s: for how long the child may use no processor: it then waits for a file that does not answer.

    Raises:
        UserError: something that the user gave does not fit, or a file does not answer.
        RuntimeError: the inspection itself failed; the text has its traceback.
    """
    from nystra_bench.sweep.session import events

    answered = None
    command = [sys.executable, "-m", "nystra_bench.sweep.inspection"]
    with tempfile.TemporaryFile() as errors:
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, env=child_environment()) as child:
            assert child.stdin is not None
            try:
                with contextlib.suppress(BrokenPipeError):  # it has ended: why is told below
                    child.stdin.write(json.dumps(request).encode() + b"\n")
                    child.stdin.flush()
                for event in events(child, patience_s):
                    answered = event.get("answer", answered)
            except TimeoutError:
                raise UserError(_waiting(request, patience_s)) from None
            finally:
                child.kill()  # does nothing where it has ended
        errors.seek(0)
        said = errors.read().decode(errors="backslashreplace")
    if answered is None:
        raise RuntimeError(f"the inspection ended with exit code {child.returncode}\n{said}")
    if "error" in answered:
        raise UserError(answered["error"])
    return answered


def _waiting(request: dict, patience_s: float) -> str:
    """What to say where a file does not answer: which options lead to files."""
    options = [("model", "weights"), ("task", "images"), ("task", "root")]
    given = [
        f"{kind}.{name}={config[name]}"
        for kind, name in options
        for config in request[f"{kind}s"].values()
        if config.get(name)
    ]
    listed = ", ".join(dict.fromkeys(given)) or "the plug-ins"
    return f"a file of {listed} does not answer for {patience_s:g} s: accepted are files on disks that can be read"


def child_environment() -> dict[str, str]:
    """The environment of child processes: they find this package wherever the parent was started."""
    paths = [str(ROOT.parent), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}


def own_stdout() -> TextIO:
    """Standard output for this process's answers alone: whatever else is printed, by C code too, goes to stderr."""
    sink = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return sink


def answer(request: dict) -> dict:
    """Facts about the options in ``request``.

    ``models``, ``tasks``, ``attentions``, ``devices``: {identity: configuration}; ``metrics``: {name: configuration};
    ``references``: {role: ``name`` and ``config``}; ``uses``: which [model, task, window size] occur together, the task
    None where there is none; ``tiling``: None, or ``tile`` and ``overlap``;
    ``sys_path``: folders with the code of plug-ins.
    """
    sys.path[:0] = request["sys_path"]
    # Many options share a module, and all modules share what they import: each is looked at once.
    sources = cache(partial(sources_of, plugins=request["sys_path"]))
    tasks = {key: _task(config) for key, config in request["tasks"].items()}
    models = {key: _model(config, _uses(request, key, tasks), sources) for key, config in request["models"].items()}
    occurring = _ordered(size for facts in models.values() for sizes in facts["windows"].values() for size in sizes)
    import torch

    return {
        "models": models,
        "tasks": tasks,
        "attentions": {key: _attention(config, occurring, sources) for key, config in request["attentions"].items()},
        "references": {role: _reference(config, sources) for role, config in request["references"].items()},
        "metrics": {name: _metric(config) for name, config in request["metrics"].items()},
        "devices": {key: _device(config) for key, config in request["devices"].items()},
        "torch": torch.__version__,
    }


def _uses(request: dict, model: str, tasks: dict) -> list[tuple[str | None, int | str, list]]:
    """Task, window size and the sizes of the images, or of their tiles, of each use of a model."""
    tile = (request["tiling"] or {}).get("tile", math.inf)
    sizes = {key: [[min(side, tile) for side in size] for size in task["sizes"]] for key, task in tasks.items()}
    return [(task, window, sizes.get(task, [])) for m, task, window in request["uses"] if m == model]


def use(task: str | None, window: int | str | None) -> str:
    """The key of a task and a window size in a model's ``windows``."""
    return f"{window} {task}"


def _model(config: dict, uses: list[tuple[str | None, int | str, list]], sources: Callable) -> dict:
    """Of a model whose official weights were not fetched there is nothing to tell but how to get them."""
    from nystra_bench.models import load_configured, named_attention_sites

    try:
        model = load_configured(config)
    except Absent as absent:
        return {"refusal": str(absent), "windows": {use(task, window): [] for task, window, _ in uses}}
    return {
        "refusal": None,
        "native_window": model.window_size,
        "resizable": getattr(model, "resizable", True),
        "kept": _kept(model),
        **_weights(config, model),
        "version": model.version,
        "settings": dict(getattr(model, "settings", {})),
        "scale": model.scale,
        "channels": model.channels,
        "layers": list(named_attention_sites(model)),
        "sources": _sources(model, sources),
        "windows": {use(task, window): _sides(model, window, sizes) for task, window, sizes in uses},
    }


def _kept(model: Any) -> dict[str, int]:
    """Which attentions of the model are not replaced, and how many of each kind."""
    return model.kept() if hasattr(model, "kept") else {}


def _sources(model, sources: Callable) -> dict[str, str]:
    """Those of the model's own module and, where they are others', of the modules of its attention sites."""
    from nystra_bench.models import attention_sites

    modules = dict.fromkeys([type(model).__module__, *(type(site).__module__ for site in attention_sites(model))])
    return {name: digest for module in modules for name, digest in sources(module).items()}


def _weights(config: dict, model) -> dict:
    """The digest of a model's weights, and what random ones are made from."""
    from nystra_bench.models.checkpoints import resolve, sha256
    from nystra_bench.models.untrained import digest, made_from

    untrained = made_from(model)
    return {"weights": digest(model) if untrained else sha256(resolve(config["weights"])), "untrained": untrained}


def _sides(model, window: int | str | None, sizes: list) -> list[Size]:
    """Sizes of all windows that a model cuts images of these sizes into."""
    window = model.window_size if window in (None, "native") else window
    found = _ordered(size for height, width in sizes for size in model.windows(window, height, width))
    return found or ([window] if isinstance(window, int) else [])


def _ordered(sizes: Iterable) -> list[Size]:
    """Each size of windows once, the smaller first."""
    return sorted(set(map(plain, sizes)), key=sides)


def _task(config: dict) -> dict:
    from nystra_bench.configuration import instantiate

    task = instantiate(config)
    reason = task.available()
    all_sizes = [] if reason else [tuple(size) for size in task.sizes()]
    sizes = sorted(set(all_sizes))
    return {
        "refusal": reason,
        "version": task.version,
        "dataset": None if reason else task.dataset,
        "params": task.identity(),
        "data": None if reason else task.digest(),
        "scale": task.scale,
        "channels": task.channels,
        "sizes": sizes,
        "images": len(all_sizes),
        "notes": [] if reason else task.notes(),
        "largest_side": max(map(max, sizes), default=0),
    }


def _attention(config: dict, windows: list[Size], sources: Callable) -> dict:
    from nystra_bench.configuration import instantiate

    attention = instantiate(config)
    return {
        "version": attention.version,
        "params": {key: value for key, value in config.items() if not key.startswith("_")},
        "sources": sources(type(attention).__module__),
        "uses": attention.uses() | {"exact": attention.exact},
        "refusals": {size_text(size): attention.refuses(*sides(size)) for size in windows},
    }


def _reference(config: dict, sources: Callable) -> dict:
    """The same of a reference; ``config`` has the option's ``name``, too."""
    name, config = config["name"], config["config"]
    return {"name": name, **_attention(config, [], sources)}


def _metric(config: dict) -> dict:
    from nystra_bench.configuration import instantiate

    metric = instantiate(config)
    params = {key: value for key, value in config.items() if not key.startswith("_")}
    known = {"version": metric.version, "params": params, "against": metric.against}
    return {**known, "absent": True} if metric.available() else known


def _device(config: dict) -> dict:
    import torch

    from nystra_bench.instruments.environment import hardware
    from nystra_bench.instruments.threads import thread_count

    kind, threads = config.get("_type_"), thread_count(config.get("threads"))
    if kind == "cuda" and not torch.cuda.is_available():
        return {"refusal": "PyTorch finds no CUDA GPU on this machine"}
    if kind not in ("cpu", "cuda"):
        raise UserError(f"device: _type_={kind} is unknown: accepted are cpu, cuda")
    cores = os.cpu_count() or 1
    return {"refusal": None, "kind": kind, "hardware": hardware(kind), "threads": threads, "cores": cores}


def end_with_parent() -> None:
    """End this process when standard input closes, which it does when the parent ends, however it ends."""

    def wait() -> None:
        # Not sys.stdin: at the end of the interpreter its lock, held by this thread, would be a fatal error.
        while os.read(0, 4096):
            pass
        os._exit(3)

    threading.Thread(target=wait, daemon=True).start()


def _show_life(tell: Callable[[dict], None]) -> None:
    """Say now and then that this process lives, as long as it uses the processor."""

    def show() -> None:
        used = time.process_time()
        while True:
            time.sleep(LIFE_S)
            before, used = used, time.process_time()
            if used - before > IDLE_S:
                tell({"event": "alive"})

    threading.Thread(target=show, daemon=True).start()


def main() -> None:
    request = json.loads(sys.stdin.buffer.readline())
    sink, one_at_a_time = own_stdout(), threading.Lock()

    def tell(event: dict) -> None:
        with one_at_a_time:
            print(json.dumps(event), file=sink, flush=True)

    end_with_parent()
    _show_life(tell)
    try:
        answered = answer(request)
    except UserError as error:
        answered = {"error": str(error)}
    except Exception:
        traceback.print_exc()
        sys.exit(1)
    tell({"event": "answer", "answer": answered})


if __name__ == "__main__":
    main()
