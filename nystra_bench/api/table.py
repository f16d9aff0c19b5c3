"""The data frame that ``compare`` gives, and how notebooks show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nystra_bench.api.pictures import pngs, show
from nystra_bench.instruments.statistics import interval_rank
from nystra_bench.measure.latency import RATIOS, Latency
from nystra_bench.report.column import Column
from nystra_bench.report.columns import metric_column, number, table_cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CROP = 64
"""Side in pixels of the part that is shown enlarged."""

_SHOWN = ("latency_ms", *RATIOS)
"""The columns of timings that people see; the others are in the frame."""


class Comparison(pd.DataFrame):
    """A data frame with a row for each attention; notebooks show it with its pictures.

    What pandas makes of it (a selection, a sum, a copy) is a plain data frame. ``attrs`` say where and how it was
    measured.

    Attributes:
        outputs: the restored images by attention, (height, width, C) float32, neither clipped nor rounded.
        inputs: ``input``, ``clean`` (or None) and the original's output, by title.
        left_out: attentions that are exact attention in some form, which the pictures leave out.
        described: metric -> ``unit``, ``higher_is_better``, ``convention``.
    """

    _internal_names = [*pd.DataFrame._internal_names, "outputs", "inputs", "left_out", "described"]
    _internal_names_set = set(_internal_names)
    outputs: dict[str, np.ndarray]
    inputs: dict[str, np.ndarray | None]
    left_out: list[str]
    described: dict[str, dict]

    @property
    def _constructor(self):
        return pd.DataFrame

    @classmethod
    def of(
        cls,
        rows: Mapping[str, Mapping[str, Any]],
        outputs: dict[str, np.ndarray],
        inputs: dict[str, np.ndarray | None],
        left_out: Sequence[str],
        described: dict[str, dict],
        about: dict[str, Any],
    ) -> Comparison:
        """Of the numbers of each attention; status and reason stand last."""
        frame = pd.DataFrame.from_dict(dict(rows), orient="index").rename_axis("attention")
        last = ["status", "reason"]
        made = cls(frame[[*frame.columns.difference(last, sort=False), *last]])
        made.outputs, made.inputs, made.left_out, made.described = outputs, inputs, list(left_out), described
        made.attrs = about
        return made

    def figure(self) -> Figure:
        """The pictures: input, clean image, original, then each replacement with its difference from the original."""
        from nystra_bench.report.figures.panel import Picture, draw_pictures

        *before, (title, original) = self.inputs.items()
        assert original is not None, "the original's output is always there"
        height, width = original.shape[:2]
        shown = [Picture.of(name, _enlarged(image, height, width)) for name, image in before if image is not None]
        shown.append(Picture.of(title, original))
        for label, output in self.outputs.items():
            if label not in self.left_out:
                shown.append(Picture.of(self._title(label), output, original))
        return draw_pictures(shown, "Outputs, a crop, and the difference from exact attention", CROP, len(shown))

    def _title(self, label: str) -> str:
        deviation = self["deviation_psnr"].get(label) if "deviation_psnr" in self else None
        told = "" if deviation is None else f"\n({number(deviation, 1)} dB)"
        return label.replace("(", "\n(", 1) + told

    def _repr_html_(self) -> str:
        """The table as the report writes it: rounded, with intervals; a header tells what it means when pointed at."""
        columns = self._columns()
        head = "".join(f'<th title="{escape(column.meaning)}">{escape(column.header)}</th>' for column in columns)
        body = "".join(
            f"<tr><th>{escape(str(label))}</th>"
            + "".join(f"<td>{escape(table_cell(row, column).text)}</td>" for column in columns)
            + "</tr>"
            for label, row in self.iterrows()
        )
        rows = f"<thead><tr><th>attention</th>{head}</tr></thead><tbody>{body}</tbody>"
        return f'<table class="dataframe">{rows}</table><p>{escape(self.note())}</p>'

    def _columns(self) -> list[Column]:
        timed = {column.name: column for column in Latency.columns}
        columns = [metric_column(name, about) for name, about in self.described.items()]
        columns += [timed[name] for name in _SHOWN if name in self]
        if (self["status"] != "done").any():
            columns += [Column("status", "status", ""), Column("reason", "reason", "")]
        return columns

    def note(self) -> str:
        """Where it was measured, and how far the timings can be trusted, in a sentence."""
        about = self.attrs
        if "noise" not in about:
            return f"{about['device']}, {about['dtype']}; nothing was timed."
        median, low, high = (number(value, 3) for value in about["noise"])
        threads = f", {about['threads']} threads" if about["device"] == "cpu" else ""
        level = 100 * interval_rank(about["rounds"])[1]
        floor = "" if about["floor_ms"] is None else f"; without any attention {number(about['floor_ms'], 1)} ms"
        return (
            f"{about['hardware']}{threads}, {about['dtype']}, PyTorch {about['torch']}, {about['rounds']} rounds; "
            f"exact attention against itself {median} ({low}–{high}){floor}. Intervals of {level:.1f} %; ≈1 where they "
            "contain 1."
        )

    def _ipython_display_(self) -> None:
        show(self.to_string(), html=self._repr_html_())
        for picture in pngs(lambda: [self.figure()]):
            show("pictures", picture=picture)


def _enlarged(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """An image in the size of another, its pixels repeated."""
    rows, columns = height // image.shape[0], width // image.shape[1]
    return image.repeat(rows, 0).repeat(columns, 1)
