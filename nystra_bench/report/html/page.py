"""The page: one file that needs nothing else, no network included."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from nystra_bench.report import wording
from nystra_bench.report.columns import TableCell
from nystra_bench.report.frame import ReportData

if TYPE_CHECKING:
    from nystra_bench.report.build import Part


def render(data: ReportData, tables: list[Part], figures: list[Part], config_yaml: str) -> str:
    """The HTML text; everything from the data is escaped."""
    loader = PackageLoader("nystra_bench.report.html", "")
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    pages.filters["sort_value"] = sort_value
    inline = {name: Markup(loader.get_source(pages, name)[0]) for name in ("style.css", "script.js")}
    return pages.get_template("page.html.j2").render(
        sweep=data.sweep,
        inline=inline,
        overview=wording.overview(data),
        findings=wording.findings(data),
        tables=[part for part in tables if part.applies],
        figures=[part for part in figures if part.applies],
        noise=wording.noise_lines(data),
        problems=_problems(data),
        timing=wording.TIMING,
        originals=wording.originals(data),
        conventions=wording.conventions(data),
        untrained=wording.untrained(data),
        environments=[json.dumps(environment, indent=1, ensure_ascii=False) for environment in data.environments],
        config=config_yaml,
    )


def sort_value(cell: TableCell) -> str:
    """What the script sorts a cell by: a number as JavaScript reads it, a text, or nothing."""
    if cell.value is None:
        return ""
    if isinstance(cell.value, float) and math.isinf(cell.value):
        return "Infinity" if cell.value > 0 else "-Infinity"
    return str(cell.value)


def _problems(data: ReportData) -> list[dict[str, Any]]:
    """The planned measurements that are not simply done; attentions that share all the rest stand together."""
    found: dict[tuple[str, ...], list[str]] = {}
    for cell in data.cells[data.cells["status"] != "done"].itertuples():
        where = wording.short_label(data, data.frame.loc[cell.row])
        shared = (where, cell.measure, cell.status, cell.reason or "no reason given")
        found.setdefault(shared, []).append(wording.method_label(data, cell.row))
    names = ("where", "measure", "status", "reason")
    return [dict(zip(names, shared, strict=True)) | {"what": ", ".join(what)} for shared, what in found.items()]
