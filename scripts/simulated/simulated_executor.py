"""Jobs that measure nothing, and facts that are made up."""

import hashlib
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from random import Random

from nystra_bench.sizes import size_text
from nystra_bench.sweep.executors.cluster import ClusterExecutor
from nystra_bench.sweep.executors.jobfile import JobFile
from nystra_bench.sweep.inspection import use

IMAGES = 5


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


def pretend(path):
    """What a job's worker does, but for measuring: load the code, and store a value for each cell."""
    from nystra_bench.measure.base import Measured
    from nystra_bench.sweep.workbench import Job, Workbench

    file = JobFile(Path(path))
    job, _ = file.read()
    bench = Workbench(job.request, file.tell)
    for entry in job.request["cells"]:
        one = Job(**entry)
        file.tell({"event": "start", "measure": "quality", "keys": [one.cell.key]})
        chance = Random(one.cell.key)
        numbers = {name: chance.uniform(20, 50) for name in job.request["metrics"]}
        truth = {name: number for name, number in numbers.items() if "deviation" not in name}
        images = [
            {"id": f"picture{n}", "height": 512, "width": 512, "finite": True, "metrics": numbers, "input": truth}
            for n in range(IMAGES)
        ]
        about = {"unit": "dB", "higher_is_better": True, "convention": "rgb8"}
        value = {"images": images, "describe": dict.fromkeys(numbers, about), "unavailable": {}}
        bench.save(one, Measured(value), time.perf_counter())


class Simulated(ClusterExecutor):
    poll_s = 0.2

    def __init__(self, processes: int = 2):
        super().__init__(1, 0, None, 200)
        self.processes = processes

    def look(self, request, folder):
        windows = {8, *(window for _, _, window in request["uses"])}
        model = {"refusal": None, "native_window": 8, "version": "1", "scale": 1, "channels": 3, "sources": {}}
        model |= {"layers": ["a"], "untrained": None}
        attention = {"version": "1", "sources": {}, "uses": {"bias": "ignored", "mask": "ignored", "exact": False}}
        attention |= {"refusals": {size_text(size): None for size in windows}}
        task = {"refusal": None, "version": "1", "dataset": "bundled", "data": digest("images")}
        task |= {"scale": 1, "channels": 3, "sizes": [[512, 512]], "images": IMAGES, "notes": [], "largest_side": 512}
        used = {key: {use(t, w): [w] for m, t, w in request["uses"] if m == key} for key in request["models"]}
        return {
            "models": {key: model | {"weights": digest(key), "windows": windows} for key, windows in used.items()},
            "tasks": {
                key: task | {"params": {"sigma": config["sigma"], "seed": 0}}
                for key, config in request["tasks"].items()
            },
            "attentions": {
                key: attention | {"params": {name: value for name, value in config.items() if name[0] != "_"}}
                for key, config in request["attentions"].items()
            },
            "references": {
                role: attention | {"name": about["name"], "params": {}} for role, about in request["references"].items()
            },
            "metrics": {
                name: {"version": "1", "params": {}, "against": config.get("against", "truth")}
                for name, config in request["metrics"].items()
            },
            "devices": {
                key: {"refusal": None, "kind": "cpu", "hardware": "simulated", "threads": 1, "cores": 2}
                for key in request["devices"]
            },
            "torch": "2",
        }

    def start(self, function, calls, folder):
        pool = ProcessPoolExecutor(self.processes)
        return [Call(pool.submit(pretend, path)) for (path, _) in calls]


class Call:
    name = "simulated"

    def __init__(self, future):
        self.future = future

    def done(self):
        return self.future.done()

    def result(self):
        return self.future.result()

    def cancel(self):
        self.future.cancel()
