"""Train a bundled model from a recipe: ``python scripts/train.py scripts/recipes/NAME.yaml --photos DIR``.

The run can be stopped at any time (Ctrl-C, kill) and goes on where it stood when started again: checkpoints are
written atomically, and the batch of a step depends on the seed and the step alone. It writes to
``runs/NAME/``: ``checkpoint.pt``, ``log.csv``, and at the end ``NAME.safetensors`` with its model card
``NAME.json``, which are to be copied to ``nystra_bench/weights``.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import platform
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from nystra_bench.configuration import Catalogue, configs_folder, instantiate, locate  # noqa: E402
from nystra_bench.errors import UserError  # noqa: E402
from nystra_bench.instruments.environment import KEEP_MEMORY  # noqa: E402
from nystra_bench.metrics.psnr import Psnr  # noqa: E402
from nystra_bench.models.checkpoints import read_state_dict  # noqa: E402
from nystra_bench.tasks.base import SyntheticTask  # noqa: E402
from nystra_bench.tasks.datasets import pictures  # noqa: E402
from nystra_bench.tasks.degradations import generator  # noqa: E402

LOSSES = {"l1": F.l1_loss, "mse": F.mse_loss}


# --------------------------------------------------------------------------- data


def load_photos(folder: Path, held_out_every: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Training and held-out photographs, uint8; every n-th by name is held out."""
    photos = [picture.read() for picture in pictures(str(folder))]
    held_out = photos[::held_out_every]
    return [photo for i, photo in enumerate(photos) if i % held_out_every], held_out


def make_task(recipe) -> SyntheticTask:
    """The task that the recipe names, an option of ``configs/task`` with the recipe's parameters."""
    given = dict(recipe.task)
    return instantiate(Catalogue([configs_folder()]).option("task", given.pop("name")) | given)


def pair(photo: np.ndarray, task: SyntheticTask, recipe, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A degraded and a clean patch, randomly flipped and turned.

    The degradation sees ``margin`` pixels more on each side, which are cut off again, so that borders are as within an
    image.
    """
    margin = recipe.get("margin", 0)
    side = recipe.patch + 2 * margin
    y, x = (int(rng.integers(length - side + 1)) for length in photo.shape[:2])
    clean = np.rot90(photo[y : y + side, x : x + side], int(rng.integers(4)) if recipe.get("turn", True) else 0)
    clean = clean[:, ::-1] if rng.integers(2) else clean
    clean = np.ascontiguousarray(clean, np.float32) / 255
    return _cut(task.degrade(clean, rng), margin // task.scale), _cut(clean, margin)


def _cut(image: np.ndarray, margin: int) -> np.ndarray:
    return image[margin : image.shape[0] - margin, margin : image.shape[1] - margin]


def batch(photos: list[np.ndarray], task: SyntheticTask, recipe, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Degraded and clean patches (B, 3, height, width)."""
    rng = generator(recipe.seed, "step", step)
    pairs = [pair(photos[rng.integers(len(photos))], task, recipe, rng) for _ in range(recipe.batch)]
    return tuple(torch.from_numpy(np.stack(side)).permute(0, 3, 1, 2).contiguous() for side in zip(*pairs, strict=True))


@torch.no_grad()
def held_out_psnr(model, photos: list[np.ndarray], task: SyntheticTask, crop: int, device) -> tuple[float, float]:
    """Mean PSNR in dB in the task's convention on central crops of the held-out photographs: output's and input's."""
    scores, psnr = [], Psnr()
    for i, photo in enumerate(photos):
        y, x = (max(side - crop, 0) // 2 for side in photo.shape[:2])
        clean = task.prepare(photo[y : y + crop, x : x + crop].astype(np.float32) / 255)
        degraded = task.degrade(clean, generator("held out", i))
        out = model(torch.from_numpy(degraded).permute(2, 0, 1)[None].to(device))[0].permute(1, 2, 0).cpu().numpy()
        scores.append([psnr(image, clean, task.convention) for image in (out, task.as_output(degraded))])
    output, nothing = np.mean(scores, axis=0)
    return float(output), float(nothing)


# --------------------------------------------------------------------------- model and state


def build_model(recipe):
    """A new model, or one that starts from other weights: their windows are resized, and what fits is taken."""
    model_class, spec_class = locate(recipe.model["class"]), locate(recipe.model["class"] + "Spec")
    spec = dict(OmegaConf.to_container(recipe.model.spec))
    model = model_class(spec_class(**{key: tuple(v) if isinstance(v, list) else v for key, v in spec.items()}))
    if recipe.model.get("start_from"):
        _start_from(model, model_class, Path(recipe.model.start_from))
    return model


def _start_from(model, model_class, weights: Path) -> None:
    state = read_state_dict(weights)
    source = model_class(locate(f"{model_class.__module__}.infer_spec")(state))
    source.load_state_dict(state)
    if source.window_size != model.window_size:
        source = source.resize_windows(model.window_size, "interpolate")
    own = model.state_dict()
    fitting = {key: value for key, value in source.state_dict().items() if key in own and own[key].shape == value.shape}
    model.load_state_dict(fitting, strict=False)
    new = [key for key in own if key not in fitting and not key.endswith("relative_position_index")]
    print(f"start from {weights}: {len(fitting)} tensors taken, new are {new or 'none'}", flush=True)


def moving_average(decay: float):
    """Exponential moving average of the weights whose horizon grows from nothing, so that the start is forgotten."""

    def update(average, weights, updates):
        kept = torch.clamp((1 + updates) / (10 + updates), max=decay)
        return average * kept + weights * (1 - kept)

    return update


def learning_rate(step: int, recipe) -> float:
    """Linear warm-up, then half a cosine down to 1 % of the peak."""
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    progress = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(progress, 1))))


class Run:
    """All that a checkpoint holds: weights, their moving average, the optimiser, the step, the seconds spent."""

    def __init__(self, recipe, folder: Path, device):
        torch.manual_seed(recipe.seed)
        self.recipe, self.folder, self.task = recipe, folder, make_task(recipe)
        # Convolutions of a model that keeps its maps as (B, C, height, width) train twice as fast in this layout.
        self.layout = torch.channels_last if recipe.get("channels_last") else torch.contiguous_format
        self.model = build_model(recipe).to(device, memory_format=self.layout)
        self.average = torch.optim.swa_utils.AveragedModel(self.model, avg_fn=moving_average(recipe.ema))
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), lr=recipe.lr, betas=(0.9, 0.99), weight_decay=recipe.weight_decay
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "float16")
        self.step, self.seconds = 0, 0.0
        self._resume(device)

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def _parts(self) -> dict:
        return {"model": self.model, "average": self.average, "optimiser": self.optimiser, "scaler": self.scaler}

    def save(self) -> None:
        state = {name: part.state_dict() for name, part in self._parts().items()}
        temporary = self.checkpoint.with_suffix(".tmp")
        torch.save({**state, "step": self.step, "seconds": self.seconds}, temporary)
        os.replace(temporary, self.checkpoint)

    def _resume(self, device) -> None:
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, map_location=device, weights_only=True)
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.step, self.seconds = state["step"], state["seconds"]
        print(f"resuming {self.folder} at step {self.step}", flush=True)


# --------------------------------------------------------------------------- the loop


def train(run: Run, photos, held_out, device, options) -> None:
    recipe = run.recipe
    forward = torch.compile(run.model) if options.compile else run.model
    autocast = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(recipe.precision)
    loss_of = LOSSES[recipe.loss]
    run.model.train()
    started, last_save, last_log, losses = time.time() - run.seconds, time.time(), time.time(), []
    last = min(recipe.steps, options.until or recipe.steps)
    while run.step < last:
        degraded, clean = batch(photos, run.task, recipe, run.step)
        degraded = degraded.to(device, memory_format=run.layout, non_blocking=True)
        clean = clean.to(device, non_blocking=True)
        run.optimiser.zero_grad(set_to_none=True)
        for group in run.optimiser.param_groups:
            group["lr"] = learning_rate(run.step, recipe)
        with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            loss = loss_of(forward(degraded).float(), clean)
        run.scaler.scale(loss).backward()
        run.scaler.unscale_(run.optimiser)
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), recipe.clip)
        run.scaler.step(run.optimiser)
        run.scaler.update()
        run.average.update_parameters(run.model)
        run.step += 1
        run.seconds = time.time() - started
        losses.append(loss.detach())
        if time.time() - last_log > options.log_seconds:
            report(run, torch.stack(losses).mean().item(), held_out, device, options)
            last_log, losses = time.time(), []
        if time.time() - last_save > options.save_seconds:
            run.save()
            last_save = time.time()
    run.save()


def report(run: Run, loss: float, held_out, device, options) -> None:
    """One line on the terminal and in log.csv: the held-out figure is of the averaged weights, on a few crops."""
    psnr, nothing = held_out_psnr(run.average.module.eval(), held_out[:6], run.task, 128, device)
    run.average.module.train()
    rest = run.seconds / run.step * (run.recipe.steps - run.step) / 60
    row = {
        "step": run.step,
        "minutes": round(run.seconds / 60, 2),
        "loss": round(loss, 6),
        "held_out_psnr": round(psnr, 3),
        "input_psnr": round(nothing, 3),
        "lr": f"{learning_rate(run.step, run.recipe):.2e}",
    }
    print(f"{row}, about {rest:.0f} minutes left", flush=True)
    log = run.folder / "log.csv"
    new = not log.exists()
    with log.open("a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if new:
            writer.writeheader()
        writer.writerow(row)


def hardware(device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu = next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine())
    return f"{cpu}, {torch.get_num_threads()} threads"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def export(run: Run, held_out, photos, device, name: str) -> None:
    """Write the averaged weights and the model card."""
    model = run.average.module.eval()
    recipe = OmegaConf.to_container(run.recipe)
    dtype = getattr(torch, recipe.get("weights", "float32"))
    state = {key: _compact(key, value.cpu(), dtype).contiguous() for key, value in model.state_dict().items()}
    model.load_state_dict(state)  # what is measured is what is written
    psnr, nothing = held_out_psnr(model, held_out, run.task, 512, device)
    card = {
        "name": name,
        "architecture": recipe["model"]["class"].rpartition(".")[2],
        "spec": model.spec.as_dict(),
        "task": {"name": recipe["task"]["name"], **run.task.identity()},
        "parameters": sum(p.numel() for p in model.parameters()),
        "corpus": recipe["corpus"],
        "photographs": {"training": len(photos), "held_out": len(held_out)},
        "start_from": recipe["model"].get("start_from"),
        "seed": recipe["seed"],
        "steps": run.step,
        "hours": round(run.seconds / 3600, 3),
        "hardware": hardware(device),
        "torch": torch.__version__,
        "recipe": recipe,
        "held_out_psnr_db": round(psnr, 3),
        "held_out_input_psnr_db": round(nothing, 3),
        "convention": str(run.task.convention),
        "licence": "Apache-2.0",
    }
    save_file({key: t for key, t in state.items() if not key.endswith("attn_mask")}, run.folder / f"{name}.safetensors")
    (run.folder / f"{name}.json").write_text(json.dumps(card, indent=2) + "\n")
    print(f"wrote {run.folder / name}.safetensors: held-out PSNR {card['held_out_psnr_db']} dB")


def _compact(key: str, value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A tensor as it is written: weights in ``dtype``; the index that released state dicts carry along is small."""
    if key.endswith("relative_position_index"):
        return value.to(torch.int16)
    return value.to(dtype) if value.is_floating_point() else value


def keep_memory() -> None:
    """Start this process again with an allocator that keeps freed memory: page faults would take half of the time."""
    if not KEEP_MEMORY.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**KEEP_MEMORY, **os.environ})


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*", help="values of the recipe, as steps=1000 or model.spec.dim=48")
    parser.add_argument("--photos", type=Path, required=True, help="folder of clean photographs")
    parser.add_argument("--out", type=Path, help="default: runs/<recipe>")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--until", type=int, help="stop after this step; the same command without it goes on")
    parser.add_argument("--compile", action="store_true", help="train through torch.compile (needs a C++ compiler)")
    parser.add_argument("--log-seconds", type=float, default=60)
    parser.add_argument("--save-seconds", type=float, default=120)
    options = parser.parse_intermixed_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    recipe = OmegaConf.merge(OmegaConf.load(options.recipe), OmegaConf.from_dotlist(options.overrides))
    device, name = torch.device(options.device), options.recipe.stem
    folder = options.out or Path("runs") / name
    folder.mkdir(parents=True, exist_ok=True)
    photos, held_out = load_photos(options.photos, recipe.held_out_every)
    run = Run(recipe, folder, device)
    train(run, photos, held_out, device, options)
    if run.step >= recipe.steps:
        export(run, held_out, photos, device, name)


if __name__ == "__main__":
    keep_memory()
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
