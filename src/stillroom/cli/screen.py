"""What a person sees on a terminal: progress with time left, tables, and errors that say what to do."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)


class Ticker:
    """Progress bars: one for the whole, one for each task at work. Told (task, done, of, what) as in the pipeline."""

    def __init__(self, progress: Progress | None, tasks: int, titles: Mapping[str, str]) -> None:
        self.progress, self.titles, self.bars = progress, titles, dict[str, TaskID]()
        self.whole = progress.add_task("all", total=tasks, what="") if progress is not None else None

    def __call__(self, name: str, done: int, of: int, what: str) -> None:
        if self.progress is None or self.whole is None:
            return
        if of == 0:
            title = self.titles.get(name, name)
            self.bars[name] = self.progress.add_task(title, total=None, what="")
        elif of == 1 and done == 1:
            bar = self.bars.pop(name, None)
            if bar is not None:
                self.progress.remove_task(bar)
            self.progress.advance(self.whole)
        elif name in self.bars:
            self.progress.update(self.bars[name], completed=done, total=of, what=what)


@contextmanager
def ticking(tasks: int, titles: Mapping[str, str], *, quiet: bool) -> Iterator[Ticker]:
    """Show progress on standard error for a while; plain lines where it is not a terminal, nothing when quiet."""
    if quiet:
        yield Ticker(None, tasks, titles)
        return
    if not err.is_terminal:
        yield Lines(tasks, titles)
        return
    columns = (
        TextColumn("{task.description:<28}"), BarColumn(bar_width=30), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[what]}"),
    )
    with Progress(*columns, console=err, transient=True) as progress:
        yield Ticker(progress, tasks, titles)


class Lines(Ticker):
    """Progress where there is no terminal: a line for each finished task."""

    def __init__(self, tasks: int, titles: Mapping[str, str]) -> None:
        super().__init__(None, tasks, titles)
        self.count, self.tasks = 0, tasks

    def __call__(self, name: str, done: int, of: int, what: str) -> None:
        if of == 1 and done == 1:
            self.count += 1
            err.print(f"[{self.count}/{self.tasks}] {self.titles.get(name, name)}", markup=False)


def show_json(value: Any) -> None:
    """Print JSON and nothing else on standard output."""
    sys.stdout.write(json.dumps(value, indent=1, sort_keys=True, default=str) + "\n")


def show_table(columns: list[str], rows: list[list[str]], title: str = "") -> None:
    """Print a table; the first column to the left, numbers to the right."""
    table = Table(title=title or None, title_justify="left", header_style="bold", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
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
        rows.append([
            name, _percent(model.get("score")), _percent(model.get("agreement")), _number(model.get("kl"), "{:.3f}"),
            _number(model.get("ece"), "{:.3f}"), _number(model.get("parameters"), "{:,.0f}"), _size(model.get("bytes")),
            _number(model.get("latency_ms"), "{:.3f}"),
        ])
    shown = [0] + [index for index in range(1, len(columns)) if any(row[index] != "-" for row in rows)]
    show_table([columns[index] for index in shown], [[row[index] for index in shown] for row in rows])
    out.print(metrics["verdict"], style="bold", markup=False)


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
