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
from PIL import Image
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from nystra_bench.models.checkpoints import read_state_dict  # noqa: E402
from nystra_bench.models.swinir import SwinIR, SwinIRSpec, infer_spec  # noqa: E402
from nystra_bench.tasks.degradations import add_gaussian_noise, generator  # noqa: E402

IMAGES = {".png", ".webp", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
MODELS = {"swinir": (SwinIR, SwinIRSpec, infer_spec)}
LOSSES = {"l1": F.l1_loss, "mse": F.mse_loss}


# --------------------------------------------------------------------------- data


def load_photos(folder: Path, held_out_every: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Training and held-out photographs, uint8; every n-th by name is held out."""
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGES)
    if not files:
        sys.exit(f"--photos={folder} holds no images: accepted are {', '.join(sorted(IMAGES))}")
    photos = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    held_out = photos[::held_out_every]
    return [photo for i, photo in enumerate(photos) if i % held_out_every], held_out


def degrade(clean: np.ndarray, task: dict, rng: np.random.Generator) -> np.ndarray:
    return add_gaussian_noise(clean, task["sigma"], rng)


def batch(photos: list[np.ndarray], recipe, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Degraded and clean patches (B, 3, patch, patch), randomly flipped and turned."""
    rng = generator(recipe.seed, "step", step)
    pairs = []
    for _ in range(recipe.batch):
        photo = photos[rng.integers(len(photos))]
        y, x = (int(rng.integers(side - recipe.patch + 1)) for side in photo.shape[:2])
        clean = np.rot90(photo[y : y + recipe.patch, x : x + recipe.patch], int(rng.integers(4)))
        clean = clean[:, ::-1] if rng.integers(2) else clean
        clean = clean.astype(np.float32) / 255
        pairs.append((degrade(clean, recipe.task, rng), clean))
    return tuple(torch.from_numpy(np.stack(side)).permute(0, 3, 1, 2).contiguous() for side in zip(*pairs, strict=True))


@torch.no_grad()
def held_out_psnr(model, photos: list[np.ndarray], recipe, crop: int, device) -> float:
    """Mean PSNR in dB (RGB, clipped, rounded to 8 bits) on central crops of the held-out photographs."""
    scores = []
    for i, photo in enumerate(photos):
        y, x = ((side - crop) // 2 for side in photo.shape[:2])
        clean = photo[max(y, 0) : max(y, 0) + crop, max(x, 0) : max(x, 0) + crop].astype(np.float32) / 255
        degraded = degrade(clean, recipe.task, generator("held out", i))
        out = model(torch.from_numpy(degraded).permute(2, 0, 1)[None].to(device))[0].permute(1, 2, 0).cpu().numpy()
        error = np.round(out.clip(0, 1).astype(np.float64) * 255) - np.round(clean.astype(np.float64) * 255)
        scores.append(10 * math.log10(255**2 / np.mean(error**2)))
    return float(np.mean(scores))


# --------------------------------------------------------------------------- model and state


def build_model(recipe):
    """A new model, or one that starts from other weights, its windows resized."""
    model_class, spec_class, infer = MODELS[recipe.model.name]
    spec = dict(OmegaConf.to_container(recipe.model.spec))
    spec = spec_class(**{key: tuple(value) if isinstance(value, list) else value for key, value in spec.items()})
    model = model_class(spec)
    start = recipe.model.get("start_from")
    if start:
        state = read_state_dict(Path(start))
        source = model_class(infer(state))
        source.load_state_dict(state)
        resized = source.resize_windows(spec.window, "interpolate").state_dict()
        missing = model.load_state_dict(resized, strict=False)
        assert not missing.unexpected_keys
        assert all(key.endswith("relative_position_index") for key in missing.missing_keys), missing
    return model


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
        self.recipe, self.folder = recipe, folder
        self.model = build_model(recipe).to(device)
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
        degraded, clean = (side.to(device, non_blocking=True) for side in batch(photos, recipe, run.step))
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
    psnr = held_out_psnr(run.average.module.eval(), held_out[:6], run.recipe, 128, device)
    run.average.module.train()
    rest = run.seconds / run.step * (run.recipe.steps - run.step) / 60
    row = {
        "step": run.step,
        "minutes": round(run.seconds / 60, 2),
        "loss": round(loss, 6),
        "held_out_psnr": round(psnr, 3),
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
    card = {
        "name": name,
        "architecture": recipe["model"]["name"],
        "spec": model.spec.as_dict(),
        "task": recipe["task"],
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
        "held_out_psnr_db": round(held_out_psnr(model, held_out, run.recipe, 512, device), 3),
        "licence": "Apache-2.0",
    }
    state = {key: value.cpu().contiguous() for key, value in model.state_dict().items()}
    state = {key: value for key, value in state.items() if not key.endswith("attn_mask")}
    save_file(state, run.folder / f"{name}.safetensors")
    (run.folder / f"{name}.json").write_text(json.dumps(card, indent=2) + "\n")
    print(f"wrote {run.folder / name}.safetensors: held-out PSNR {card['held_out_psnr_db']} dB")


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
    main()
