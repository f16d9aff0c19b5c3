"""One quality cell of many images, worked off undisturbed and killed again and again: memory, numbers and time.

    python scripts/thousand_images.py --images 1000 --kills 5

Makes the images and a tiny random model in a temporary folder, and runs the command on them: once in peace, and once
with ``kill -9`` of the run, of its worker or of both at random moments, after each of which the same command goes on.
Prints the worker's memory on the way, whether all rows are equal, and what the kills cost.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parents[1]
LOOK_S = 0.2

SWEEP = """\
blocks:
  - model: {{name: swinir, weights: {folder}/tiny.safetensors}}
    task: {{name: denoise, images: {folder}/images}}
    attention: {{name: nystra, landmarks: 4}}
    measure: quality
    device: cpu
settings: {{metrics: [psnr, deviation_psnr], figures: [], tables: [main]}}
"""


def make(folder, count, side):
    """The images, smooth and noisy parts by a seed each, the model's weights, and the sweep."""
    import numpy as np
    import torch
    from PIL import Image
    from safetensors.torch import save_file

    from nystra_bench.models.swinir import SwinIR, SwinIRSpec

    (folder / "images").mkdir()
    for number in range(count):
        small = np.random.default_rng(number).integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
        picture = Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)
        picture.save(folder / "images" / f"{number:04}.png", compress_level=1)
    torch.manual_seed(0)
    model = SwinIR(SwinIRSpec(dim=8, depths=(2,), heads=(2,), window=8, mlp_ratio=1.0))
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "tiny.safetensors")
    (folder / "sweep").mkdir()
    (folder / "sweep" / "thousand.yaml").write_text(SWEEP.format(folder=folder))


@dataclass
class Attempt:
    """One start of the command.

    Attributes:
        seconds: until its end.
        processor_s: seconds of the processor that it and its worker used, whatever else the machine does.
        first_s: of the processor until one image more was kept than before; None where none was.
        kept: images that were kept at its end, where the cell is not done.
        memory: images kept -> the worker's resident MB.
    """

    code: int = 0
    seconds: float = 0.0
    processor_s: float = 0.0
    first_s: float | None = None
    kept: int = 0
    memory: dict[int, float] = field(default_factory=dict)


def kept(results):
    """Images of the cell that are kept."""
    files = [*results.glob("store/*/journal.jsonl")]
    return max(0, files[0].read_bytes().count(b"\n") - 1) if files else 0


def children_of(process):
    """The processes that a run has started and that live; while it measures the last of them is the worker."""
    try:
        return [*map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())]
    except OSError:
        return []


def processor_seconds(pid):
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError):
        return 0.0


def resident_mb(pid):
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6
    except (OSError, IndexError):
        return None


def attempt(folder, results, kill_at=None, chance=None):
    """Run the command to its end, or until so many images are kept and some time more, by chance."""
    command = [sys.executable, "-m", "nystra_bench", "+sweep=thousand", f"plugins=['{folder}']", f"results={results}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    began, before, told = time.monotonic(), kept(results), Attempt()
    quiet, used = subprocess.DEVNULL, {}
    with subprocess.Popen(
        [*command, "device.threads=1"], env=environment, stdout=quiet, stderr=quiet, start_new_session=True
    ) as process:
        while process.poll() is None:
            pause(process)
            children, now = children_of(process), kept(results)
            worker = children[-1] if children else None
            for pid in (process.pid, *children):
                used[pid] = max(used.get(pid, 0.0), processor_seconds(pid))
            if now > before and told.first_s is None:
                told.first_s = sum(used.values())
            if worker and now and (memory := resident_mb(worker)):
                told.memory[now] = memory
            if kill_at is not None and now >= kill_at:
                time.sleep(chance.uniform(0, 1))
                kill(process, worker, chance)
                kill_at = None
        told.processor_s = sum(used.values())
        told.code, told.seconds, told.kept = process.returncode, time.monotonic() - began, kept(results)
    return told


def pause(process):
    """Wait a little; where this script is ended meanwhile, the run is, too."""
    try:
        time.sleep(LOOK_S)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise


def kill(process, worker, chance):
    victim = chance.choice(["run", "worker", "both"])
    print(f"  kill -9 of {'run and worker' if victim == 'both' else f'the {victim}'}", flush=True)
    if victim == "both":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        os.kill(process.pid if victim == "run" or not worker else worker, signal.SIGKILL)


def rows(results):
    (file,) = results.glob("store/*/result.json")
    return json.loads(file.read_text())["value"]["images"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--side", type=int, default=256, help="of an image, in pixels")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=None, help="of the moments")
    about = parser.parse_args()
    chance = Random(about.seed)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory(prefix="nystra_bench-images-") as name:
        folder = Path(name)
        os.environ["NYSTRA_BENCH_LOCKS"] = str(folder / "locks")
        make(folder, about.images, about.side)
        peace = attempt(folder, folder / "peace")
        assert peace.code == 0, f"the undisturbed run ended with {peace.code}"
        told = f"{peace.seconds:.1f} s, {peace.processor_s:.1f} s of the processor"
        print(f"undisturbed: {told}, of which {peace.first_s:.1f} s until the first image", flush=True)
        tell_memory(peace.memory, about.images)
        disturbed, results = [], folder / "disturbed"
        for moment in sorted(chance.sample(range(1, about.images - 1), about.kills)):
            disturbed.append(attempt(folder, results, moment, chance))
            print(f"  at {disturbed[-1].kept} images, after {disturbed[-1].seconds:.1f} s", flush=True)
        disturbed.append(attempt(folder, results))
        assert disturbed[-1].code == 0, f"the last run ended with {disturbed[-1].code}"
        tell(peace, disturbed)
        equal = rows(folder / "peace") == rows(results)
        print(f"rows equal to the undisturbed run's: {'all' if equal else 'NOT all'} of {len(rows(results))}")
    sys.exit(0 if equal else 1)


def tell_memory(memory, count):
    """The worker's resident memory early, and its largest in each quarter."""
    quarters = [[mb for done, mb in memory.items() if part < 4 * done / count <= part + 1] for part in range(4)]
    told = ", ".join(f"{max(quarter):.0f}" for quarter in quarters if quarter)
    print(f"worker's resident memory, the largest in each quarter of the images: {told} MB", flush=True)


def tell(peace, disturbed):
    kills = len(disturbed) - 1
    took, used = (sum(getattr(one, name) for one in disturbed) for name in ("seconds", "processor_s"))
    starts = sum(one.first_s or one.processor_s for one in disturbed[1:])
    print(f"killed {kills} times: {took:.1f} s, {used:.1f} s of the processor")
    print(f"  {_more(took, peace.seconds)} by the clock, {_more(used, peace.processor_s)} of the processor")
    print(f"  {starts:.1f} s of that are {kills} further starts until their first image; without them")
    print(f"  {_more(used - starts, peace.processor_s)}")
    tell_memory({done: mb for one in disturbed for done, mb in one.memory.items()}, max(disturbed[-1].memory))


def _more(now, before):
    return f"{100 * (now / before - 1):+.1f} %"


if __name__ == "__main__":
    main()
