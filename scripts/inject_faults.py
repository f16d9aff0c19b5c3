"""Injects every fault of ``tests/faults`` so many times, and writes what became of it to docs/FAULTS.md.

    python scripts/inject_faults.py --times 5

Each time a tiny sweep is disturbed at another moment, gone on with, and compared with an undisturbed run. A fault that
this machine does not allow (mounting a file system, say) is left out, with the reason.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parents[1]
PAGE, BEGIN, END = ROOT / "docs" / "FAULTS.md", "<!-- faults -->", "<!-- /faults -->"
HEAD = "| fault | times injected | survived | cells lost | rows equal to an undisturbed run's |\n"
HEAD += "|---|---:|---:|---:|---|"
sys.path.insert(0, str(ROOT / "tests"))


def rows(times, folder):
    """A row of the table for each fault that can be injected here."""
    from faults.arena import Arena, Ground
    from faults.kinds import FAULTS, survive
    from faults.methods import run_misbehaving
    from faults.toys import METHODS

    ground, chance = Ground(folder / "ground"), Random()

    def arena(*name):
        return Arena(folder / "_".join(map(str, name)), ground)

    failed = dict.fromkeys((method.name for method in METHODS), 0)
    for turn in range(times):
        with arena("methods", turn) as here:
            found = run_misbehaving(here)
        for name in failed:
            failed[name] += bool(found[name] or found["others"])
    for method in METHODS:
        survived = times - failed[method.name]
        yield f"a method that {method.kind}", times, survived, 0, "all" if survived == times else "not all"
    for number, fault in enumerate(FAULTS):
        if reason := fault.absent():
            print(f"{fault.kind}: not injected: {reason}", file=sys.stderr)
            continue
        ended = []
        for turn in range(times):
            with arena(number, turn) as here:
                ended.append(survive(fault, here, chance))
        lost, equal = sum(one.lost for one in ended), all(one.equal for one in ended)
        yield fault.kind, times, sum(map(bool, ended)), lost, "all" if equal else "not all"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=3, help="how often each fault is injected")
    times = parser.parse_args().times
    with tempfile.TemporaryDirectory(prefix="nystra_bench-faults-") as folder:
        os.environ["NYSTRA_BENCH_LOCKS"] = f"{folder}/locks"
        lines = [HEAD]
        for row in rows(times, Path(folder)):
            lines.append(f"| {' | '.join(map(str, row))} |")
            print(lines[-1], flush=True)
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    table = "\n".join(lines)
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
