"""A sweep of very many cells on very many jobs, simulated: what planning, storing and reporting cost.

    python scripts/simulate_cluster.py --cells 100000 --jobs 200

Everything is the command's own but two things: what the inspection tells of models and images is made up, and the jobs
measure nothing; they store numbers by chance as real ones store theirs, by the worker's own code. Without ``--report``
the tables and figures are left out, but for table.csv.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLUGINS = ROOT / "scripts" / "simulated"

MODELS = ["swinir_denoise_w8", "swinir_denoise_w16", "swinir_camera", "uformer_denoise", "swinir"]
WINDOWS = [16, 32, 48, 64]

SWEEP = """\
blocks:
  - model: [{models}]
    task: {{name: denoise, sigma: [{sigmas}]}}
    window_size: [{windows}]
    position_bias: interpolate
    attention: {{name: nystra, landmarks: [{landmarks}], iterations: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]}}
    measure: quality
    device: cpu
settings: {{figures: [], tables: [main], metrics: [psnr, ssim, deviation_psnr, deviation_ssim]}}
"""

def write_plugins(folder, cells, jobs):
    """A sweep of so many cells in so many sessions: of five models, four windows, and as many noises as that takes."""
    sigmas = jobs // (len(MODELS) * len(WINDOWS))
    landmarks = cells // (sigmas * len(MODELS) * len(WINDOWS) * 10)
    if not sigmas or not landmarks:
        sys.exit("accepted are --jobs from 20 on, and ten times as many --cells")
    (folder / "sweep").mkdir(parents=True)
    lists = {"models": MODELS, "windows": WINDOWS, "sigmas": range(5, 5 + sigmas), "landmarks": range(1, landmarks + 1)}
    text = SWEEP.format(**{name: ", ".join(map(str, values)) for name, values in lists.items()})
    (folder / "sweep" / "simulated.yaml").write_text(text)


def run(what, folder, *words):
    """Run the command, and print what it took; gives what it printed."""
    command = [sys.executable, "-m", "nystra_bench", "+sweep=simulated", f"plugins=['{folder}/plugins','{PLUGINS}']"]
    command += [f"results={folder}/results", "executor=simulated", *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NYSTRA_BENCH_LOCKS": f"{folder}/locks"}
    with (folder / "out.txt").open("w") as out:
        began = time.monotonic()
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL, env=environment)
        _, code, used = os.wait4(process.pid, 0)
    lines = (folder / "out.txt").read_text().splitlines()
    if code:
        sys.exit(f"{what}: ended with {code}: {lines[-5:]}")
    took = f"{used.ru_utime + used.ru_stime:.0f} s of the processor, {time.monotonic() - began:.0f} s by the clock"
    print(f"{what}: {took}, {used.ru_maxrss / 1024:.0f} MB", flush=True)
    return lines


def size_of(folder):
    """Files, folders and bytes below a folder."""
    files = [Path(place) / name for place, _, names in os.walk(folder) for name in names]
    folders = sum(len(names) for _, names, _ in os.walk(folder))
    return len(files), folders, sum(file.stat().st_size for file in files)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--report", action="store_true", help="draw all tables and figures, too")
    parser.add_argument("--keep", type=Path, help="a folder to leave everything in")
    about = parser.parse_args()
    folder = about.keep or Path(tempfile.mkdtemp(prefix="nystra_bench-simulated-"))
    try:
        write_plugins(folder / "plugins", about.cells, about.jobs)
        lines = run("mode=plan, nothing measured", folder, "mode=plan")
        print(f"  {lines[-2]}\n  {lines[-1]}", flush=True)
        run("the run: plan, jobs that measure nothing, report", folder)
        for name in ("store", "simulated/jobs", "simulated"):
            files, folders, size = size_of(folder / "results" / name)
            print(f"  results/{name}: {files} files, {folders} folders, {size / 1e6:.0f} MB", flush=True)
        run("mode=plan, all measured", folder, "mode=plan")
        run("mode=report", folder, "mode=report")
        run("the run again: nothing to measure", folder)
        if about.report:
            run("mode=report with all tables and figures", folder, "mode=report", "tables=all", "figures=all")
        page = folder / "results" / "simulated"
        for file in sorted(page.glob("*.*")):
            print(f"  {file.name}: {file.stat().st_size / 1e6:.1f} MB")
        statuses = {cell["status"] for cell in json.loads((page / "cells.json").read_text())["cells"]}
        assert statuses == {"planned"}, statuses
    finally:
        if not about.keep:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
