"""Fetch everything of some kinds: ``python scripts/fetch.py weights|data|backbone|all [...]``.

What has no direct address is named with the page to get it from, and passed over; a failure does not stop the rest.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from nystra_bench.errors import UserError, unknown  # noqa: E402
from nystra_bench.fetch.catalogue import KINDS, find, names  # noqa: E402
from nystra_bench.fetch.command import guarded  # noqa: E402


def run(kinds: list[str]) -> int:
    """Returns the exit code: 0 when all that has an address is there, 1 otherwise."""
    if not kinds:
        raise UserError(f"no kind is given: accepted are {', '.join(KINDS)}, all")
    for kind in kinds:
        if kind not in (*KINDS, "all"):
            raise unknown("kind", kind, [*KINDS, "all"])
    from nystra_bench.fetch.fetching import fetch

    failed = 0
    for download in map(find, names()):
        if not {download.kind, "all"} & set(kinds):
            continue
        if download.url is None and not download.target.exists():
            print(f"{download.name} is to be got by hand: {download.page}")
            continue
        try:
            fetch(download)
        except UserError as error:
            print(f"nystra_bench: {error}", file=sys.stderr)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(guarded(lambda: run(sys.argv[1:])))
