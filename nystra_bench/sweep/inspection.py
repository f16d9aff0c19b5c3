"""What only the real objects can tell a plan: windows, weights, images, devices, refusals.

Planning imports no torch; it asks this module in a process of its own (``look``), which answers with plain data.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import TextIO

from nystra_bench.errors import UserError
from nystra_bench.instruments.environment import ROOT
from nystra_bench.instruments.sources import sources_of
from nystra_bench.sizes import Size, plain, sides, size_text


def look(request: dict) -> dict:
    """Answer a request (see ``answer``) in a child process.

    Raises:
        UserError: something that the user gave does not fit.
        RuntimeError: the inspection itself failed; the text has its traceback.
    """
    command = [sys.executable, "-m", "nystra_bench.sweep.inspection"]
    run = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, env=child_environment())
    lines = run.stdout.strip().splitlines()
    if run.returncode or not lines:
        raise RuntimeError(f"the inspection ended with exit code {run.returncode}\n{run.stderr}")
    answered = json.loads(lines[-1])
    if "error" in answered:
        raise UserError(answered["error"])
    return answered


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
    from nystra_bench.models import load_configured
    from nystra_bench.models.checkpoints import resolve, sha256

    model = load_configured(config)
    path = resolve(config["weights"])
    return {
        "native_window": model.window_size,
        "resizable": model.resizable,
        "weights": sha256(path),
        "path": str(path),
        "version": model.version,
        "scale": model.scale,
        "channels": model.channels,
        "sources": sources(type(model).__module__),
        "windows": {use(task, window): _sides(model, window, sizes) for task, window, sizes in uses},
    }


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
    sizes = [] if reason else sorted({tuple(size) for size in task.sizes()})
    return {
        "refusal": reason,
        "version": task.version,
        "dataset": None if reason else task.dataset,
        "params": task.identity(),
        "data": None if reason else task.digest(),
        "scale": task.scale,
        "channels": task.channels,
        "sizes": sizes,
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

    from nystra_bench.instruments.environment import hardware, usable_cores

    kind, threads = config.get("_type_"), config.get("threads")
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise UserError(f"device.threads={threads} is out of range: accepted are whole numbers from 1 on, or null")
    if kind == "cuda" and not torch.cuda.is_available():
        return {"refusal": "PyTorch finds no CUDA GPU on this machine"}
    if kind not in ("cpu", "cuda"):
        raise UserError(f"device: _type_={kind} is unknown: accepted are cpu, cuda")
    return {"refusal": None, "kind": kind, "hardware": hardware(kind), "threads": threads or usable_cores()}


def main() -> None:
    sink = own_stdout()
    try:
        answered = answer(json.load(sys.stdin))
    except UserError as error:
        answered = {"error": str(error)}
    except Exception:
        traceback.print_exc()
        sys.exit(1)
    print(json.dumps(answered), file=sink, flush=True)


if __name__ == "__main__":
    main()
