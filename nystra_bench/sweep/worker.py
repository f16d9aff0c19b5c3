"""The worker: one child process a session. Loads what its cells share, and lets each measurement run on it.

It is told everything in a JSON file, and imports neither Hydra nor pandas. On standard output it tells its events, one
JSON object a line; while a timing runs it says nothing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from nystra_bench.sweep.cell import canonical_json
from nystra_bench.sweep.inspection import end_with_parent, own_stdout
from nystra_bench.sweep.workbench import Job, Workbench


class Worker:
    """One session: its workbench (see there for the request), and the cells that are measured on it."""

    def __init__(self, request: dict, tell: Callable[[dict], None]):
        self.bench = Workbench(request, tell)
        self.jobs = [Job(**cell) for cell in request["cells"]]

    def run(self) -> None:
        """Measure all cells, one measurement after the other; with other parameters it is another measurement."""
        try:
            self.bench.load()
        except Exception as error:
            for job in self.jobs:
                self.bench.fail(job, error)
            return
        kinds: dict[str, list[Job]] = {}
        for job in self.bench.calibrate([job for job in self.jobs if self.bench.belongs(job)]):
            kinds.setdefault(canonical_json(job.cell.content["measure"]), []).append(job)
        for of_kind in sorted(kinds.values(), key=lambda of_kind: of_kind[0].measurement.place):
            try:
                of_kind[0].measurement.run(self.bench, of_kind)
            except Exception as error:
                for job in of_kind:
                    if job.cell.key not in self.bench.settled:
                        self.bench.fail(job, error)


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    sys.path[:0] = request["sys_path"]
    sink = own_stdout()
    end_with_parent()
    Worker(request, lambda event: print(json.dumps(event), file=sink, flush=True)).run()


if __name__ == "__main__":
    main()
