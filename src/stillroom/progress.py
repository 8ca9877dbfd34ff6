"""Progress of long work on a terminal: one bar for the whole, one for each task at work, with the time left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from stillroom.terminal import visible


class Screen(Console):
    """A console on which text is text: no marks of Rich in it, and nothing in it that would steer the terminal."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Return text to be shown; whoever wants a style gives it beside the text."""
        return super().render_str(visible(text), **{**options, "markup": False, "emoji": False})


err = Screen(stderr=True, soft_wrap=True, highlight=False)


class Ticker:
    """Progress bars: one for the whole, one for each task at work. Told (task, done, of, what) as in the pipeline."""

    def __init__(self, progress: Progress | None, tasks: int, titles: Mapping[str, str]) -> None:
        self.progress, self.titles, self.bars = progress, titles, dict[str, TaskID]()
        self.whole = progress.add_task("all", total=tasks, what="") if progress is not None else None

    def __call__(self, name: str, done: int, of: int, what: str) -> None:
        """Note that a task begins (of = 0), moves on, or ends (done = of = 1)."""
        if self.progress is None or self.whole is None:
            return
        if of == 0:
            title = escape(visible(self.titles.get(name, name)))
            self.bars[name] = self.progress.add_task(title, total=None, what="")
        elif of == 1 and done == 1:
            bar = self.bars.pop(name, None)
            if bar is not None:
                self.progress.remove_task(bar)
            self.progress.advance(self.whole)
        elif name in self.bars:
            self.progress.update(self.bars[name], completed=done, total=of, what=escape(visible(what)))


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
        TextColumn("{task.description:<28}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[what]}"),
    )
    with Progress(*columns, console=err, transient=True) as progress:
        yield Ticker(progress, tasks, titles)


class Lines(Ticker):
    """Progress where there is no terminal: a line for each finished task."""

    def __init__(self, tasks: int, titles: Mapping[str, str]) -> None:
        super().__init__(None, tasks, titles)
        self.count, self.tasks = 0, tasks

    def __call__(self, name: str, done: int, of: int, what: str) -> None:
        """Note that a task begins (of = 0), moves on, or ends (done = of = 1)."""
        if of == 1 and done == 1:
            self.count += 1
            note = f" ({what})" if what else ""
            err.print(f"[{self.count}/{self.tasks}] {self.titles.get(name, name)}{note}", markup=False)
