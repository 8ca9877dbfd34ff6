"""CSV files that Stillroom writes: safe to open in a spreadsheet, whatever texts a person's data hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_FORMULA = ("=", "+", "-", "@", *map(chr, range(32)))  # a control character may hide one behind it


def csv_bytes(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """Return a CSV file (UTF-8) of ``rows`` under a first line of ``columns``; None is an empty cell.

    A text that a spreadsheet would take for a formula gets an apostrophe before it; numbers stay as they are.
    """
    lines = [",".join(map(_quoted, row)) for row in (columns, *rows)]
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")


def _quoted(cell: object) -> str:
    """Return a cell in quotes where it needs them: the csv module leaves a lone carriage return bare."""
    text = "" if cell is None else str(escaped(cell))
    return '"' + text.replace('"', '""') + '"' if any(one in text for one in '",\r\n') else text


def escaped(cell: object) -> object:
    """Return a cell as it may be written: an apostrophe before a text that begins like a formula and is no number."""
    if not isinstance(cell, str) or not cell.startswith(_FORMULA):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell if cell[0] in "+-" else f"'{cell}"
