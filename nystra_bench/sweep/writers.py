"""Who writes what is not yet whole: a process of this machine, or of another one that shares the folder.

A process id says nothing on another machine, nor in another container, nor of a process that has taken the id over. So
an unfinished file has in its name where its writer's id is valid and when the writer was started; of writers elsewhere
nothing is known but how long ago they wrote.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_NAME = re.compile(r"(?:([0-9a-f]{12})-(\d+)-)?(\d+)-[0-9a-f]{32}")
"""Host, start and process; before 2026-11-26 the process alone."""


@cache
def host() -> str:
    """What process ids are unique within: this start of this machine, and this container; 12 hexadecimal digits."""
    about = [socket.gethostname()]
    with suppress(OSError):  # Linux alone tells these
        about.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        about.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(about).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Writer:
    """A process that writes into a shared folder.

    Attributes:
        host: where its id is valid (``host``); empty where that is not known.
        started: when it was, in clock ticks after the machine's start; 0 where the system does not tell.
    """

    host: str
    started: int
    process: int

    @classmethod
    def own(cls) -> Writer:
        process = os.getpid()
        state = _state(process)
        return cls(host(), state[1] if state else 0, process)

    @classmethod
    def of(cls, name: str) -> Writer | None:
        """The writer that a name, without what unfinished names begin with, says; None where it says none."""
        found = _NAME.fullmatch(name)
        return cls(found[1] or "", int(found[2] or 0), int(found[3])) if found else None

    def __str__(self) -> str:
        return f"{self.host}-{self.started}-{self.process}"

    @property
    def is_here(self) -> bool:
        """Whether this machine knows what has become of it."""
        return self.host == host()

    def is_at_work(self) -> bool:
        """Of a writer that is here: whether it lives. One that has ended and that nobody has waited for does not."""
        if self.process == os.getpid():
            return False  # a run sweeps before it writes: this is what it, or one that had its id, left
        try:
            os.kill(self.process, 0)
        except PermissionError:
            pass
        except (ProcessLookupError, OverflowError):
            return False
        state = _state(self.process)
        return state is None or (state[0] != "Z" and self.started in (0, state[1]))


def _state(process: int) -> tuple[str, int] | None:
    """A process's state, one letter, and when it was started; None where the system does not tell (it has no /proc)."""
    try:
        # The second of the fields, the name, may have blanks and brackets; the third and the 22nd are meant.
        fields = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return fields[0], int(fields[19])
    except (OSError, IndexError, ValueError):
        return None
