"""Readable tables as Markdown and LaTeX; whatever comes from a user is escaped."""

from __future__ import annotations

import re

from nystra_bench.report.columns import ReadableTable

_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "≈": r"$\approx$", "∞": r"$\infty$", "×": r"$\times$", "−": r"$-$", "–": "--", "σ": r"$\sigma$",
    "\n": " ",
}  # fmt: skip


def latex_escape(text: str) -> str:
    """Text that LaTeX sets as it stands."""
    return "".join(_LATEX.get(character, character) for character in text)


def markdown_escape(text: str) -> str:
    """Text that Markdown shows as it stands, on one line and in one cell of a table."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\|`*\[\]])", r"\\\1", text).replace("\n", " ")


def markdown(title: str, grid: ReadableTable, notes: list[str]) -> str:
    """A heading, the table, and the notes as paragraphs."""
    lines = [[markdown_escape(c.header) for c in grid.columns]]
    lines.append(["---" if c.digits is None else "---:" for c in grid.columns])
    lines += [[markdown_escape(cell.text) for cell in row] for row in grid.rows]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    paragraphs = [f"# {markdown_escape(title)}", table, *map(markdown_escape, filter(None, [grid.shared, *notes]))]
    return "\n\n".join(paragraphs) + "\n"


def latex(title: str, grid: ReadableTable, notes: list[str]) -> str:
    """A floating table in the style of booktabs; the notes stand below it."""
    layout = "".join("l" if c.digits is None else "r" for c in grid.columns)
    lines = [[_latex_header(c.header) for c in grid.columns]]
    lines += [[latex_escape(cell.text) for cell in row] for row in grid.rows]
    head, *body = [f"{' & '.join(cells)} \\\\" for cells in lines]
    below = " ".join(latex_escape(text) for text in filter(None, [grid.shared, *notes]))
    return "\n".join(
        [
            "% needs \\usepackage{booktabs,graphicx}",
            "\\begin{table*}[t]",
            "\\centering",
            f"\\caption{{{latex_escape(title)}}}",
            "\\resizebox{\\linewidth}{!}{%",
            f"\\begin{{tabular}}{{{layout}}}",
            "\\toprule",
            head,
            "\\midrule",
            *body,
            "\\bottomrule",
            "\\end{tabular}}",
            f"\\par\\smallskip\\footnotesize {below}",
            "\\end{table*}",
            "",
        ]
    )


def _latex_header(header: str) -> str:
    """A header on two lines, its bracket below, so that columns stay narrow."""
    words = header.rsplit(" ", 1)
    escaped = [latex_escape(word) for word in words]
    return "\\shortstack{" + "\\\\".join(escaped) + "}" if len(words) == 2 else escaped[0]
