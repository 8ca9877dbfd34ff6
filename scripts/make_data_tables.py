#!/usr/bin/env python3
"""Write the tables of sources and of models into the pages, from the code: python scripts/make_data_tables.py

Doing it twice changes nothing. With --check nothing is written, and the exit code is 1 where a page is not current.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stillroom.data.table import MEANINGS, SOURCES, options_of
from stillroom.files import write_bytes
from stillroom.models.zoo import OPTIONS, TEXTS, ZOO, empty, example_shape, parameters

DOCS = Path(__file__).parent.parent / "docs"
CLASSES, VOCABULARY = 10, 10_000
BEGIN, END = "<!-- {}: written by scripts/make_data_tables.py -->\n", "<!-- end of {} -->\n"
OUTSIDE = "hugging-face"  # its size is that of the encoder in a folder


def pages() -> dict[str, dict[str, str]]:
    """Return the tables of each page, by name."""
    return {"data.md": {"options": options_table()}, "models.md": {"models": models_table(), "settings": settings()}}


def options_table() -> str:
    """Return the options of all sources: what each means, and its default in each source that has it."""
    used = {name: options_of(name) for name in SOURCES}
    rows = []
    for option, meaning in MEANINGS.items():
        defaults: dict[str, list[str]] = {}
        for name, options in used.items():
            if option in options:
                defaults.setdefault(_default(options[option]), []).append(f"`{name}`")
        held = [
            f"{value}: {'all' if len(names) == len(SOURCES) else ', '.join(names)}" for value, names in defaults.items()
        ]
        rows.append([f"`{option}`", meaning, "<br>".join(held)])
    return _table(["option", "meaning", "default: of which sources"], rows)


def models_table() -> str:
    """Return the models of the zoo with what they are, their options and their size."""
    rows = []
    for name, kind in ZOO.items():
        text = " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split()).replace("``", "`")
        shape = (VOCABULARY,) if name in TEXTS else example_shape(name)
        options = [
            f"`{option}` {_default(one)}"
            for option, one in inspect.signature(kind).parameters.items()
            if option not in ("shape", "classes", "config")
        ]
        size = "the encoder's" if name == OUTSIDE else f"{parameters(empty(name, shape=shape, classes=CLASSES)):,}"
        given = "" if name == OUTSIDE else f" at {' x '.join(map(str, shape))}"
        rows.append([f"`{name}`", text, ", ".join(options), size + given])
    return _table(["model", "what it is", "options and defaults", f"parameters, {CLASSES} classes"], rows)


def settings() -> str:
    """Return what the options of the models mean."""
    return _table(["option", "meaning"], [[f"`{option}`", meaning] for option, meaning in OPTIONS.items()])


def _default(parameter: inspect.Parameter) -> str:
    value: Any = parameter.default
    if value is parameter.empty:
        return "needed"
    if value is None or value == ():
        return "none"
    if isinstance(value, str):
        return value
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]]
    return "\n".join(lines) + "\n"


def filled(page: str, tables: Mapping[str, str]) -> str:
    """Return a page with its tables put between their marks."""
    for name, table in tables.items():
        begin, end = BEGIN.format(name), END.format(name)
        before, found, rest = page.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise SystemExit(f"There is no place for '{name}': put {begin.strip()} and {end.strip()} into the page.")
        page = before + begin + "\n" + table + "\n" + end + after
    return page


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the tables, or only compare; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=DOCS)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 where a page is not current")
    given = parser.parse_args(arguments)
    old = []
    for name, tables in pages().items():
        place = given.folder / name
        page = place.read_text(encoding="utf-8")
        made = filled(page, tables)
        if made != page:
            old.append(place)
            if not given.check:
                write_bytes(place, made.encode())
    if old and given.check:
        print(f"Not current: {', '.join(map(str, old))}. Run python scripts/make_data_tables.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
