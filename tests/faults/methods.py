"""All methods that misbehave, in one run, which has to measure what stands beside them."""

from __future__ import annotations

from faults.arena import Arena
from faults.toys import METHODS

AGAIN = "retry=[nonfinite,failed,oom,timeout,crashed]"


def run_misbehaving(arena: Arena) -> dict[str, str | None]:
    """What is wrong with each method's row, by name, and with ``others``; None where nothing is.

    A row has to say how its method ended and why, exact attention and ``nystra`` have to be measured all the same, and
    everything has to be measured by the next run, once the methods are mended.
    """
    first = arena.here(sweep="misbehaving", executor="local")
    told = arena.table("misbehaving")
    found = {method.name: _row(told[f"{method.name} of=0"], method.status, method.reason) for method in METHODS}
    kept = arena.done()
    with arena.ground.cured():
        second = arena.here(AGAIN, sweep="misbehaving")
    mended = arena.table("misbehaving")
    for method in METHODS:
        if mended[f"{method.name} of=0"]["status"] != "done":
            found[method.name] = found[method.name] or f"still {mended[f'{method.name} of=0']['status']} when mended"
    found["others"] = _others(arena, first.code, second.code, kept, mended)
    return found


def _row(row: dict[str, str], status: str, reason: str) -> str | None:
    if row["status"] != status or reason not in row["reason"]:
        return f"{row['status']} ({row['reason']}) where {status} ({reason}) was meant"
    return None


def _others(arena: Arena, first: int, second: int, kept: dict[str, bytes], mended: dict) -> str | None:
    """What is wrong with the rest."""
    if (first, second) != (2, 0):
        return f"exit codes {first} and {second}"
    done = [name for name, row in mended.items() if row["status"] == "done"]
    if len(done) != len(METHODS) + 2:
        return f"done are {done}"
    now, undisturbed = arena.rows(), arena.ground.rows
    common = now.keys() & undisturbed.keys()
    if len(common) != 2 or any(now[key] != undisturbed[key] for key in common):
        return "exact attention or nystra has another number"
    settled = [key for key, content in kept.items() if b'"status": "done"' in content]
    return None if all(arena.done()[key] == kept[key] for key in settled) else "a cell that was done is lost"
