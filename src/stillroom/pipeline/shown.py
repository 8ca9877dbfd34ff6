"""What Python prints of a run: its verdict, a table of a line a model, and where the rest lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from stillroom.report.numbers import DASH, finite, number
from stillroom.report.readings import SHARES, shown

COLUMNS = (
    ("accuracy", "accuracy"),
    ("agreement", "agrees with teacher"),
    ("macro_f1", "macro F1"),
    ("ece", "calibration error"),
    ("parameters", "parameters"),
)


def as_text(verdict: str, table: Sequence[Mapping[str, Any]], folder: Path) -> str:
    """Return a result in a few lines, for a terminal."""
    lines = _cells(table)
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    body = [
        "  ".join(
            cell.ljust(width) if not place else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([verdict, *(f"  {line}" for line in body), f"Report: {folder / 'report.html'}"])


def as_html(verdict: str, table: Sequence[Mapping[str, Any]], folder: Path) -> str:
    """Return a result as HTML, for a notebook: the verdict, the table and a link to the report."""
    head, *rows = _cells(table)
    drawn = [Markup("<tr>{}</tr>").format(_row(head, "th")), *(Markup("<tr>{}</tr>").format(_row(row)) for row in rows)]
    report = (folder / "report.html").absolute()
    link = Markup('<p><a href="{}">{}</a></p>').format(report.as_uri(), report)
    return str(Markup("<p><strong>{}</strong></p><table>{}</table>{}").format(verdict, Markup("").join(drawn), link))


def _row(cells: Sequence[str], element: str = "td") -> Markup:
    return Markup("").join(Markup("<{0}>{1}</{0}>").format(Markup(element), escape(cell)) for cell in cells)


def _cells(table: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The head and a row a model, of what was measured at all."""
    kept = [(key, name) for key, name in COLUMNS if any(finite(row.get(key)) is not None for row in table)]
    return [["model", *(name for _, name in kept)]] + [
        [shown(str(row["model"])), *(_cell(key, row.get(key)) for key, _ in kept)] for row in table
    ]


def _cell(key: str, value: object) -> str:
    held = finite(value)
    if held is None:
        return DASH
    return f"{number(100 * held, 1)} %" if any(word in key for word in SHARES) else number(held, 0)


__all__ = ["as_html", "as_text"]
