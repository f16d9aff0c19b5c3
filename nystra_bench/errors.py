"""The one exception for mistakes of the user: shown as a sentence, without a traceback, with exit code 1."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake of the user; the message names the option, the value, and what would be accepted."""


def unknown(option: str, value: object, accepted: Iterable[object]) -> UserError:
    """The error for a value that is none of the accepted ones, with the nearest of them proposed."""
    names = [str(name) for name in accepted]
    near = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    hint = f" (did you mean {near[0]}?)" if near else ""
    listed = ", ".join(names) if names else "nothing"
    return UserError(f"{option}={value} is unknown{hint}: accepted are {listed}")
