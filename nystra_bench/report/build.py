"""The report of a sweep: tables, figures and one page, from what the store holds."""

from __future__ import annotations

import base64
import io
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nystra_bench.configuration import Catalogue, instantiate
from nystra_bench.report.base import Figure, Table, is_missed
from nystra_bench.report.columns import ReadableTable
from nystra_bench.report.frame import ReportData
from nystra_bench.report.markup import latex, markdown
from nystra_bench.report.reading import load
from nystra_bench.sweep.store import write_atomically

logger = logging.getLogger("nystra_bench")

LARGEST_INLINE = 400_000
"""Bytes above which a figure is put into the page as WebP; the folder always has PNG and SVG."""

TABLE_ENDINGS = ("csv", "md", "tex")


@dataclass(frozen=True)
class Drawing:
    """One drawn figure.

    Attributes:
        uri: the picture as a data URI, for the page.
        stem: file name without its ending, in ``figures/``.
    """

    label: str
    stem: str
    uri: str


@dataclass(frozen=True)
class Part:
    """What became of one plug-in.

    Attributes:
        problem: why there is nothing to show; None where there is.
        failed: whether that is an error of the plug-in.
        applies: false where there is nothing to show and nothing is missed: the page leaves it out.
    """

    name: str
    title: str
    problem: str | None = None
    failed: bool = False
    applies: bool = True
    grid: ReadableTable | None = None
    notes: list[str] = field(default_factory=list)
    caption: str = ""
    drawings: list[Drawing] = field(default_factory=list)
    place: int = Figure.place


@dataclass(frozen=True)
class Report:
    """A report that was written.

    Attributes:
        page: the path of ``report.html``.
        statuses: those of all planned cells.
    """

    page: Path
    statuses: list[str]


def build_report(
    results: Path,
    sweep: str,
    plugins: Mapping[str, Mapping[str, Any]],
    config_yaml: str,
    catalogue: Catalogue | None = None,
) -> Report:
    """Write the report of a sweep into ``results/<sweep>/``; each file appears whole or not at all.

    Args:
        plugins: ``{"tables": {name: {"_target_": …, …}}, "figures": {…}}``.
        config_yaml: the settings of the run, kept beside the report.
        catalogue: where the sweep's measurements are found; by default those of the project.

    Raises:
        UserError: the sweep was never planned.
    """
    from nystra_bench.report.html.page import render

    results = Path(results)
    folder = results / sweep
    data = load(results, sweep, catalogue)
    tables = [_table(name, config, data, folder) for name, config in plugins.get("tables", {}).items()]
    figures = [_figure(name, config, data, folder / "figures") for name, config in plugins.get("figures", {}).items()]
    for parts in (tables, figures):
        parts.sort(key=lambda part: (part.place, part.name))
    write_atomically(folder / "config.yaml", config_yaml)
    write_atomically(folder / "environment.json", json.dumps(data.environments, indent=1, ensure_ascii=False) + "\n")
    page = folder / "report.html"
    write_atomically(page, render(data, tables, figures, config_yaml))
    return Report(page, list(data.cells.drop_duplicates("key")["status"]))  # one may be part of several rows


def _failed(kind: str, name: str, title: str | None, error: Exception) -> Part:
    """A broken plug-in as a note: the page shows the reason, the log the traceback."""
    logger.error("%s %s of the report failed", kind, name, exc_info=error)
    return Part(name, title or name, problem=f"{type(error).__name__}: {error}", failed=True)


def _table(name: str, config: Mapping[str, Any], data: ReportData, folder: Path) -> Part:
    title = None
    try:
        table: Table = instantiate(config)
        title, stem = table.title, table.stem or name
        if reason := table.nothing(data):
            for ending in TABLE_ENDINGS:
                (folder / f"{stem}.{ending}").unlink(missing_ok=True)
            return Part(name, title, problem=reason, applies=table.missed(data), place=table.place)
        grid, notes = table.readable(data), table.notes(data)
        write_atomically(folder / f"{stem}.csv", table.table(data).to_csv(index=False))
        write_atomically(folder / f"{stem}.md", markdown(title, grid, notes))
        write_atomically(folder / f"{stem}.tex", latex(title, grid, notes))
        return Part(name, title, grid=grid, notes=notes, place=table.place)
    except Exception as error:
        return _failed("table", name, title, error)


def _figure(name: str, config: Mapping[str, Any], data: ReportData, folder: Path) -> Part:
    from nystra_bench.report.plotting import style

    title = None
    try:
        figure: Figure = instantiate(config)
        title = figure.title
        drawings: list[Drawing] = []
        with style():
            for suffix, drawn in figure.draw(data):
                stem = _unique(_slug(f"{name}-{suffix}" if suffix else name), {d.stem for d in drawings})
                drawings.append(Drawing(suffix, stem, _save(drawn, folder, stem)))
        _remove_stale(folder, name, {drawing.stem for drawing in drawings})
        if not drawings:
            applies = is_missed(figure, data)
            return Part(name, title, problem=figure.nothing(data), applies=applies, place=figure.place)
        return Part(name, title, caption=figure.caption(data), drawings=drawings, place=figure.place)
    except Exception as error:
        return _failed("figure", name, title, error)


def _save(drawn: Any, folder: Path, stem: str) -> str:
    """Write PNG and SVG; give back one of them for the page as a data URI, or WebP where both are large."""
    from PIL import Image

    from nystra_bench.report.plotting import settle

    settle(drawn)
    png, svg = _encode(drawn, "png"), _encode(drawn, "svg")
    write_atomically(folder / f"{stem}.png", png)
    write_atomically(folder / f"{stem}.svg", svg)
    if len(svg) <= LARGEST_INLINE:
        return _data_uri("image/svg+xml", svg)
    if len(png) <= LARGEST_INLINE:
        return _data_uri("image/png", png)
    webp = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").save(webp, "webp", quality=90)
    return _data_uri("image/webp", webp.getvalue())


def _encode(drawn: Any, kind: str) -> bytes:
    content = io.BytesIO()
    # Without a date the same data gives the same file.
    metadata = {"Date": None} if kind == "svg" else None
    drawn.savefig(content, format=kind, metadata=metadata, facecolor="white")
    return content.getvalue()


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _slug(text: str) -> str:
    """A file name without an ending: letters, digits, dot and hyphen."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.")[:120]


def _unique(stem: str, taken: set[str]) -> str:
    numbered = (f"{stem}-{n}" if n > 1 else stem for n in range(1, len(taken) + 2))
    return next(candidate for candidate in numbered if candidate not in taken)


def _remove_stale(folder: Path, name: str, stems: set[str]) -> None:
    """Remove this plug-in's figures of an earlier report that this one no longer has."""
    prefix = _slug(name)
    for path in [*folder.glob(f"{prefix}*.png"), *folder.glob(f"{prefix}*.svg")]:
        mine = path.stem == prefix or path.stem.startswith(f"{prefix}-")
        if mine and path.stem not in stems:
            path.unlink(missing_ok=True)  # another machine may draw the same report
