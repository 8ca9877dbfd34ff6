"""What a person sees on a terminal: tables, verdicts, JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from stillroom.progress import Screen

WIDE = 200
SPREAD = "±: half the 95 % interval of the mean over seeds (Student's t)"
BALANCED = "balanced: accuracy as the mean recall of the classes; F1: its mean over the classes (macro)"
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
    # On a console as wide as the table needs: a number is never cut, however narrow the terminal.
    Screen(file=out.file, width=max(out.width, WIDE), highlight=False).print(table)


def show_metrics(metrics: Mapping[str, Any]) -> None:
    """Print the table of models, what its ± means, and the verdict."""
    from stillroom.report.readings import shown

    models = metrics["models"]
    order = [name for name in ("teacher", "alone", *metrics.get("arms", [])) if name in models]
    score = models["distilled"]["score_name"]
    columns = ["model", score, "balanced", "F1", "agrees", "KL", "ECE", "parameters", "file", "ms"]
    rows = [[shown(name), *_row(models[name])] for name in order]
    if score == "accuracy":
        plain = (metrics.get("baseline") or {}).values()
        rows += [[one["name"], f"{100 * one['accuracy']:.1f} %", *["-"] * (len(columns) - 2)] for one in plain]
    kept = [0] + [index for index in range(1, len(columns)) if any(row[index] != "-" for row in rows)]
    verdict = str(metrics["verdict"])
    show_table([columns[index] for index in kept], [[row[index] for index in kept] for row in rows])
    if any("±" in row[1] for row in rows):
        out.print(SPREAD, style="dim", markup=False)
    if any(row[2] != "-" for row in rows):
        out.print(BALANCED, style="dim", markup=False)
    out.print(verdict, style="bold", markup=False)


def _row(model: Mapping[str, Any]) -> list[str]:
    return [
        share(model.get("score"), spread=True),
        share(model.get("balanced_accuracy")),
        share(model.get("macro_f1")),
        share(model.get("agreement")),
        _number(model.get("kl"), "{:.3f}"),
        _number(model.get("ece"), "{:.3f}"),
        _number(model.get("parameters"), "{:,.0f}"),
        _size(model.get("bytes")),
        _number(model.get("latency_ms"), "{:.3f}"),
    ]


def share(value: Mapping[str, Any] | None, spread: bool = False) -> str:
    """A share in per cent, the mean of the seeds; with ``spread`` half its 95 % interval over seeds beside it."""
    from stillroom.statistics import over_seeds

    if not value:
        return "-"
    found = over_seeds(value.get("per_seed") or [value["mean"]])
    half = "" if not spread or found.high is None else f" ± {100 * (found.high - found.mean):.1f}"
    return f"{100 * value['mean']:.1f} %{half}"


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
