"""Telling people how far a run is: one redrawn line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import TextIO

from nystra_bench.words import count


def duration(seconds: float) -> str:
    """A length of time for people: ``45 s``, ``3 min 20 s``, ``2 h 05 min``."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02} min"


LINE_S = 60.0
"""Seconds after which a long cell has a line of its own again, where lines are not drawn anew."""


class Progress:
    """Counts cells as events come in. It draws only then: never while a timing runs.

    Events are ``start`` (``keys``, and ``silent_s`` for timings), ``alive`` (``key``, ``done`` and ``of``: how far a
    long cell is; ``kept``: how many of those were done before), ``done`` and ``failed`` (``key``, ``status``,
    ``reason``, and ``passes_s``: seconds in passes of models since the cell before). ``start`` and ``alive`` of a job
    that measures a part of the images alone have ``images``: the first of them, and the one behind the last.

    What is left is told by the pace of cells of the same kind, since a timing may take a hundred times as long as a
    cell of quality; cells of a kind that none is done of are counted, and not in it.

    Args:
        names: what to call each cell, by key.
        kinds: what measures each cell, by key; without it, all are of one kind.
    """

    def __init__(self, names: dict[str, str], stream: TextIO | None = None, kinds: Mapping[str, str] | None = None):
        self.names = names
        self.kinds = kinds or dict.fromkeys(names, "")
        self.stream = stream or sys.stderr
        self.on_terminal = self.stream.isatty()
        self.done = 0
        self.together: set[str] = set()  # cells that are measured at one time, and so are done at one time
        self.counted: set[str] = set()  # cells done, and those that are about to be, being measured with one that is
        self.reached: Counter[str] = Counter()  # how many those are, by kind
        self.of_kind = Counter(self.kinds.values())
        self.spent: dict[str, float] = defaultdict(float)  # seconds, by kind
        self.passes_s = 0.0
        self.started = self.spoke = self.marked = time.monotonic()
        self.begun: dict[tuple[str, tuple[int, ...]], float] = {}  # when a cell was, or a part of its images

    def __call__(self, event: dict) -> None:
        if event["event"] == "start":
            self._at(event)
        elif event["event"] == "alive":
            self._within(event)
        else:
            self._ended(event)

    def _within(self, event: dict) -> None:
        """How far a long cell is, and how long the rest of it takes at the pace so far."""
        now, images = time.monotonic(), tuple(event.get("images", ()))
        done, of, began = event["done"], event["of"], self.begun.get((event["key"], images))
        measured = done - event.get("kept", 0)
        if began is None or measured < 1 or done >= of:
            left = ""
        else:
            left = f" (about {duration((now - began) / measured * (of - done))} left)"
        part = f"images {images[0] + 1} to {images[1]} of " if images else ""
        said = f"{done}/{of}{left} {part}{self.names[event['key']]}"
        if self.on_terminal:
            self._status(said)
        elif now - self.spoke >= LINE_S:
            self._line(f"[{self.done}/{len(self.names)}] {said}")

    def _ended(self, event: dict) -> None:
        self.done += 1
        self.passes_s += event.get("passes_s", 0.0)
        self.together.discard(event["key"])
        new = {event["key"], *self.together} - self.counted
        self.counted |= new
        self.reached.update(self.kinds[key] for key in new)
        now = time.monotonic()
        self.spent[self.kinds[event["key"]]] += now - self.marked
        self.marked = now
        trouble = f" ({event['reason']})" if event.get("reason") else ""
        if trouble or not self.on_terminal:
            self._line(f"[{self.done}/{len(self.names)}] {self.names[event['key']]} {event['status']}{trouble}")
        self._status("")

    def _at(self, event: dict) -> None:
        self.together = set(event["keys"])
        images = tuple(event.get("images", ()))
        self.begun |= {(key, images): time.monotonic() for key in event["keys"]}
        n, silent_s = len(event["keys"]), event.get("silent_s")
        together = f"timing {n} cells together, silently, for about {duration(silent_s)}" if silent_s else "warming up"
        what = together if n > 1 or silent_s else self.names[event["keys"][0]]
        if self.on_terminal:
            self._status(what)
        elif silent_s:
            self._line(f"[{self.done}/{len(self.names)}] {what}")

    def _remaining(self) -> str:
        left = {kind: of - self.reached[kind] for kind, of in self.of_kind.items() if of > self.reached[kind]}
        if not self.done or not left:
            return ""
        paced = [kind for kind in left if self.reached[kind]]
        about = [f"about {duration(sum(self.spent[kind] / self.reached[kind] * left[kind] for kind in paced))}"]
        unlike = sum(left.values()) - sum(left[kind] for kind in paced)
        words = (about if paced else []) + ([f"{count(unlike, 'cell')} of other kinds"] if unlike else [])
        return f", {' and '.join(words)} left"

    def _line(self, text: str) -> None:
        self.spoke = time.monotonic()
        if self.on_terminal:
            self._write(f"\r\x1b[K{text}\n")
        else:
            self._write(f"{text}{self._remaining()}\n")

    def _status(self, text: str) -> None:
        if self.on_terminal:
            self._write(f"\r\x1b[K{self.done}/{len(self.names)} cells{self._remaining()}  {text[:70]}")

    def _write(self, text: str) -> None:
        """Write, with escapes for what the stream cannot hold: reasons may have any character."""
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        self.stream.flush()

    def close(self) -> None:
        if self.on_terminal:
            self._write("\r\x1b[K")
        if self.done:
            took = time.monotonic() - self.started
            # Several workers at a time may be in passes for longer than all took.
            passes = f", {self.passes_s / took:.0%} of it in passes of models" if 0 < self.passes_s <= took else ""
            self._line(f"{count(self.done, 'cell')} in {duration(took)}{passes}")
        self.stream.flush()
