"""The one exception for mistakes of the user: shown as a sentence, without a traceback, with exit code 1."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake of the user; the message names the option, the value, and what would be accepted."""

    def _render_traceback_(self) -> list[str]:
        """What notebooks show in place of a traceback (IPython asks for it)."""
        return [f"{type(self).__name__}: {self}"]


class Absent(UserError):
    """Something known is not on this machine yet; the message says how to get it. In a sweep it is a skipped row."""


def did_you_mean(value: object, accepted: Iterable[str], prefix: str = "") -> str:
    """The nearest of the accepted names, as a clause to add to a message; empty where none is near."""
    near = difflib.get_close_matches(str(value), list(accepted), n=1, cutoff=0.5)
    return f" (did you mean {prefix}{near[0]}?)" if near else ""


def root_reason(error: BaseException) -> str:
    """What lies at the bottom of an error of a compiler or a driver, in one line."""
    while inner := getattr(error, "inner_exception", None) or error.__cause__:
        error = inner
    said = str(error).strip()
    return f"{type(error).__name__}: {said.splitlines()[0][:200]}" if said else type(error).__name__


def outside_image(query: tuple[int, int], height: int, width: int) -> str | None:
    """Why a pixel (row, column) is none of an image of this size; None where it is one."""
    row, column = query
    if 0 <= row < height and 0 <= column < width:
        return None
    accepted = f"accepted are rows 0 to {height - 1} and columns 0 to {width - 1}"
    return f"query=[{row},{column}] lies outside of the image: {accepted}"


def written(value: object) -> str:
    """A value as a user writes it, on the command line or in YAML."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def unknown(option: str, value: object, accepted: Iterable[object]) -> UserError:
    """The error for a value that is none of the accepted ones, with the nearest of them proposed."""
    names = [str(name) for name in accepted]
    listed = ", ".join(names) if names else "nothing"
    return UserError(f"{option}={written(value)} is unknown{did_you_mean(value, names)}: accepted are {listed}")
