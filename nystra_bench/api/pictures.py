"""What notebooks show of a result: a text, a table, a picture, each in the form that the reader's program can take."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 100


def pngs(draw: Callable[[], list[Figure]], dpi: int = DPI) -> list[bytes]:
    """Figures, drawn in the report's style, as PNG files."""
    from nystra_bench.report.plotting import style

    with style():
        return [_saved(figure, dpi) for figure in draw()]


def _saved(figure: Figure, dpi: int) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi)
    return file.getvalue()


def show(text: str, html: str | None = None, picture: bytes | None = None) -> None:
    """Show these in a notebook; without one nothing calls this."""
    from IPython.display import display

    about = {"text/plain": text}
    if html is not None:
        about["text/html"] = html
    if picture is not None:
        about["image/png"] = base64.b64encode(picture).decode()
    display(about, raw=True)
