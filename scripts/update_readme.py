#!/usr/bin/env python3
"""Write the table of a finished run between the two markers in README.md: python scripts/update_readme.py runs/images

Doing it twice changes nothing. Another file can be named as the second argument.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stillroom.cli.screen import bytes_text, share
from stillroom.errors import UserError
from stillroom.files import read_json, write_bytes
from stillroom.report.readings import shown

BEGIN, END = "<!-- demo table -->", "<!-- end of demo table -->"
COLUMNS = ("model", "accuracy", "agreement", "KL", "ECE", "parameters", "file", "ms a call")
README = Path(__file__).parent.parent / "README.md"


def table(metrics: Mapping[str, Any]) -> str:
    """Return the run's models as a Markdown table, the verdict below it."""
    models = metrics["models"]
    names = [name for name in ("teacher", "alone", *metrics["arms"]) if name in models]
    lines = [f"| {' | '.join(COLUMNS)} |", f"| --- {'| ---: ' * (len(COLUMNS) - 1)}|"]
    lines += [f"| {' | '.join([f'`{shown(name)}`', *_row(models[name])])} |" for name in names]
    seeds = len(metrics["seeds"])
    note = f"Mean of {seeds} seeds ± half its 95 % interval (Student's t). " if seeds > 1 else "One seed. "
    note += "KL in nats; file and time: the fp32 graph, one call with one example on one thread."
    return "\n".join([*lines, "", note, "", f"**{metrics['verdict']}**"])


def _row(model: Mapping[str, Any]) -> list[str]:
    return [
        share(model.get("accuracy"), spread=True),
        share(model.get("agreement")),
        _form(model.get("kl"), "{:.3f}"),
        _form(model.get("ece"), "{:.3f}"),
        _form(model.get("parameters"), "{:,.0f}"),
        bytes_text(model["bytes"]["mean"]) if model.get("bytes") else "-",
        _form(model.get("latency_ms"), "{:.3f}"),
    ]


def _form(value: Mapping[str, Any] | None, form: str) -> str:
    return form.format(value["mean"]) if value else "-"


def placed(text: str, between: str) -> str:
    """Return ``text`` with ``between`` in the place of what stood between the markers.

    Raises:
        UserError: the markers are not there once each, in this order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        given = f"got a text without one '{BEGIN}' before one '{END}'"
        raise UserError(f"There is no place for the table: {given}. Add both lines.")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{between}\n{END}{rest.split(END)[1]}"


def main(arguments: list[str] | None = None) -> int:
    """Update the file; 0 good, 2 a mistake in what was given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a run folder, for example runs/images")
    parser.add_argument("readme", type=Path, nargs="?", default=README)
    given = parser.parse_args(arguments)
    try:
        text = given.readme.read_text(encoding="utf-8")
        write_bytes(given.readme, placed(text, table(read_json(given.run / "metrics.json"))).encode())
    except (UserError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
