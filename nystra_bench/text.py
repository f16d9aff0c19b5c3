"""Text that any file and stream can hold."""

from __future__ import annotations


def printable(text: str) -> str:
    """The same text where UTF-8 can hold it; lone surrogates, as in the names of some files, become ``\\udce4``."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
