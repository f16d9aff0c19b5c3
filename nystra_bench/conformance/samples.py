"""The first samples of tasks, and a digest of them that another process can be asked for.

``python -m nystra_bench.conformance.samples DIR NAME ...`` prints the digests of these tasks as JSON.
"""

from __future__ import annotations

import hashlib
import json
import sys
from itertools import islice
from pathlib import Path

from nystra_bench.conformance.subjects import OptionFolder, Subject
from nystra_bench.tasks.base import Sample, Task

COUNT, CROP = 2, 64
"""How many samples are looked at, and the side of their clean images where a task cuts them."""


def small(subject: Subject, limit: int = COUNT) -> Task:
    """The task with few and small images, as far as its parameters leave that open (are null)."""
    wanted = {"limit": limit, "crop": CROP}
    return subject.make(**{name: value for name, value in wanted.items() if subject.config.get(name, 0) is None})


def first(task: Task, count: int = COUNT) -> list[Sample]:
    return list(islice(task.samples(), count))


def fingerprint(task: Task) -> str:
    """SHA-256 of the ids, shapes and pixels of the first samples."""
    total = hashlib.sha256()
    for sample in first(task):
        for image in (sample.degraded, sample.clean):
            total.update(f"{sample.id}\n{image.shape} {image.dtype}\n".encode())
            total.update(image.tobytes())
    return total.hexdigest()


def main() -> None:
    tested, names = OptionFolder(Path(sys.argv[1])), sys.argv[2:]
    subjects = [subject for subject in tested.subjects("task") if subject.name in names]
    print(json.dumps({subject.name: fingerprint(small(subject)) for subject in subjects}))


if __name__ == "__main__":
    main()
