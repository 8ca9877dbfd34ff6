"""What a person sees on a terminal: tables, verdicts, JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from stillroom.progress import Screen

out = Screen(soft_wrap=True, highlight=False)


def show_json(value: Any) -> None:
    """Print JSON and nothing else on standard output."""
    sys.stdout.write(json.dumps(value, indent=1, sort_keys=True, default=str) + "\n")


def show_table(columns: list[str], rows: list[list[str]], title: str = "") -> None:
    """Print a table; the first column to the left, numbers to the right."""
    table = Table(
        title=title or None,
        title_justify="left",
        header_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    out.print(table)


def show_metrics(metrics: Mapping[str, Any]) -> None:
    """Print the table of arms and the verdict."""
    models = metrics["models"]
    order = [name for name in ("teacher", "alone", *metrics.get("arms", [])) if name in models]
    score = models["distilled"]["score_name"]
    columns = ["model", score, "agrees", "KL", "ECE", "parameters", "file", "ms"]
    rows = []
    for name in order:
        model = models[name]
        rows.append(
            [
                name,
                _percent(model.get("score")),
                _percent(model.get("agreement")),
                _number(model.get("kl"), "{:.3f}"),
                _number(model.get("ece"), "{:.3f}"),
                _number(model.get("parameters"), "{:,.0f}"),
                _size(model.get("bytes")),
                _number(model.get("latency_ms"), "{:.3f}"),
            ]
        )
    shown = [0] + [index for index in range(1, len(columns)) if any(row[index] != "-" for row in rows)]
    verdict = metrics["verdict"]
    show_table([columns[index] for index in shown], [[row[index] for index in shown] for row in rows])
    out.print(str(verdict), style="bold", markup=False)


def _percent(value: Mapping[str, Any] | None) -> str:
    """A share in per cent, with half the range over seeds where there are several."""
    if not value:
        return "-"
    seeds = value.get("per_seed", [])
    spread = f" ±{50 * (max(seeds) - min(seeds)):.1f}" if len(seeds) > 1 else ""
    return f"{100 * value['mean']:.1f} %{spread}"


def _number(value: Mapping[str, Any] | None, form: str) -> str:
    return form.format(value["mean"]) if value else "-"


def _size(value: Mapping[str, Any] | None) -> str:
    return bytes_text(value["mean"]) if value else "-"


def bytes_text(count: float) -> str:
    """Return a number of bytes as a person writes it."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return ""
