"""Progress of long work on standard error: bars in a terminal, plain lines in a log or a notebook, nothing when quiet.

The command line and ``distill`` show it through :func:`ticking` and :func:`waiting`; nothing else prints progress.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TaskID, TextColumn
from rich.progress import Task as Bar
from rich.text import Text

from stillroom.terminal import visible


class Screen(Console):
    """A console on which text is text: no marks of Rich in it, and nothing in it that would steer the terminal."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Return text to be shown; whoever wants a style gives it beside the text."""
        return super().render_str(visible(text), **{**options, "markup": False, "emoji": False})


err = Screen(stderr=True, soft_wrap=True, highlight=False)
Clock = Callable[[], float]

EVERY = 30.0  # seconds between two lines of a task
PATIENCE = 2.0  # seconds after which a wait says what it does
BEAT = 0.5  # seconds between two looks at what is due
QUIET = "STILLROOM_QUIET"  # a variable of the environment: no progress at all
UNITS = ("steps", "rows")


def duration(seconds: float) -> str:
    """Return a time as a person says it.

    Example:
        >>> duration(7034)
        '1 h 57 min'
    """
    if round(seconds, 1) < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        large, small, units = whole // 60, whole % 60, ("min", "s")
    elif (minutes := round(seconds / 60)) < 24 * 60:
        large, small, units = minutes // 60, minutes % 60, ("h", "min")
    else:
        large, small, units = round(seconds / 3600) // 24, round(seconds / 3600) % 24, ("d", "h")
    return f"{large} {units[0]} {small} {units[1]}" if small else f"{large} {units[0]}"


def amount(done: int, of: int, what: str) -> str:
    """Return how far a task is: ``120 of 500 steps, loss 0.312``."""
    if of == 0:
        return what
    joint = " " if what.startswith(UNITS) else ", "
    return f"{done:,} of {of:,}" + (f"{joint}{what}" if what else "")


def times(elapsed: float, done: float, of: float | None) -> str:
    """Return how long a task has taken, and how long it will still take if it goes on like that."""
    text = f"{duration(elapsed)} elapsed"
    return f"{text}, about {duration(elapsed / done * (of - done))} left" if of and 0 < done < of else text


class Ticker:
    """Told (task, done, of, what) as in the pipeline: of = 0 begins a task, done = of = 1 ends it. Shows nothing."""

    def __call__(self, name: str, done: int, of: int, what: str) -> None:
        """Note that a task begins, moves on, or ends."""


@contextmanager
def ticking(
    tasks: int, titles: Mapping[str, str], *, quiet: bool = False, after: float = 0.0, clock: Clock = time.monotonic
) -> Iterator[Ticker]:
    """Show progress for a while: bars in a terminal, lines elsewhere, nothing when quiet or STILLROOM_QUIET is set.

    A task that ends within ``after`` seconds has no line. What is told under a name without a title, where others have
    one, is no task: it is not counted, and has a line after two seconds.
    """
    if quiet or os.environ.get(QUIET):
        yield Ticker()
    elif err.is_terminal:
        columns = (
            TextColumn("{task.description:<28}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            _Times(),
            TextColumn("{task.fields[what]}", markup=False),
        )
        with Progress(*columns, console=err, transient=True) as progress:
            yield Bars(progress, tasks, titles)
    else:
        lines, ended = Lines(tasks, titles, after=after, clock=clock), threading.Event()
        thread = threading.Thread(target=_beat, args=(lines, ended), daemon=True)
        thread.start()
        try:
            yield lines
        finally:
            ended.set()
            thread.join()


@contextmanager
def waiting(what: str, *, quiet: bool = False) -> Iterator[Callable[[int, int, str], None]]:
    """Say what a wait of more than two seconds is for; gives a function to tell (done, of, what) how far it is."""
    with ticking(1, {}, quiet=quiet, after=PATIENCE) as told:
        told(what, 0, 0, "")
        yield lambda done, of, note: told(what, done, max(of, 2), note)
        told(what, 1, 1, "")


@contextmanager
def aside(told: Callable[[str, int, int, str], None], what: str) -> Iterator[None]:
    """Tell of work that is no task of its own, such as a check before the first."""
    told(what, 0, 0, "")
    yield
    told(what, 1, 1, "")


def warn(text: str) -> None:
    """Print a warning on standard error."""
    err.print(f"warning: {text}", markup=False)


def _beat(lines: Lines, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        lines.beat()


# --- in a terminal -----------------------------------------------------------------------------------------


class Bars(Ticker):
    """One bar for the whole, where there are several tasks, and one for each task at work."""

    def __init__(self, progress: Progress, tasks: int, titles: Mapping[str, str]) -> None:
        self.progress, self.titles, self.bars = progress, titles, dict[str, TaskID]()
        self.whole = progress.add_task("all tasks", total=tasks, what="") if tasks > 1 else None

    def __call__(self, name: str, done: int, of: int, what: str) -> None:
        """Note that a task begins, moves on, or ends."""
        if of == 0:
            title = visible(self.titles.get(name, name))
            self.bars[name] = self.progress.add_task(title, total=None, what=visible(what))
        elif of == 1 and done == 1:
            bar = self.bars.pop(name, None)
            if bar is not None:
                self.progress.remove_task(bar)
            counted = not self.titles or name in self.titles
            if self.whole is not None and counted and (bar is not None or what):  # else it has ended already
                self.progress.advance(self.whole)
        elif name in self.bars:
            self.progress.update(self.bars[name], completed=done, total=of, what=visible(what))


class _Times(ProgressColumn):
    def render(self, task: Bar) -> Text:
        """Return how long a task has taken and will take; of all tasks together only the first is known."""
        known = "what" in task.fields and task.description != "all tasks"
        return Text(times(task.elapsed or 0.0, task.completed if known else 0, task.total))


# --- in a log or a notebook --------------------------------------------------------------------------------


@dataclass
class _Work:
    number: int  # 0: no task
    title: str
    began: float
    due: float
    shown: bool = False
    done: int = 0
    of: int = 0
    what: str = ""


class Lines(Ticker):
    """A line when a task begins, one every 30 seconds, and one at the end of a task that had those."""

    def __init__(
        self, tasks: int, titles: Mapping[str, str], *, after: float = 0.0, clock: Clock = time.monotonic
    ) -> None:
        self.tasks, self.titles, self.after, self.clock = tasks, titles, after, clock
        self.begun = self.ended = 0
        self.works: dict[str, _Work] = {}
        self.lock = threading.Lock()

    def __call__(self, name: str, done: int, of: int, what: str) -> None:
        """Note that a task begins, moves on, or ends."""
        with self.lock:
            now = self.clock()
            if of == 0:
                counted = not self.titles or name in self.titles
                self.begun += counted
                after = self.after if counted else max(PATIENCE, self.after)
                number = self.begun if counted else 0
                work = self.works[name] = _Work(number, self.titles.get(name, name), now, now + after, what=what)
                if not after:
                    self._show(work, now)
            elif of == 1 and done == 1:
                self._end(name, what, now)
            elif name in self.works:
                work = self.works[name]
                work.done, work.of, work.what = done, of, what

    def _end(self, name: str, what: str, now: float) -> None:
        work = self.works.pop(name, None)
        if work is None and not what:  # it has ended already
            return
        self.ended += work is None or work.number > 0
        if work is None:
            self.begun += 1
            self._line(self.begun, f"{self.titles.get(name, name)}: {what}")
        elif now - work.began >= EVERY:
            self._line(work.number, f"{work.title}: done in {duration(now - work.began)}")

    def beat(self) -> None:
        """Show each task that had no line for a while; called twice a second."""
        with self.lock:
            now = self.clock()
            for work in self.works.values():
                if now >= work.due:
                    self._show(work, now)

    def _show(self, work: _Work, now: float) -> None:
        text = f"{work.title} ..."
        if work.shown:
            far = amount(work.done, work.of, work.what)
            passed = times(now - work.began, work.done, work.of)
            left = f"; {self.tasks - self.ended} of {self.tasks} tasks left" if self.tasks > 1 else ""
            text = f"{work.title}: {', '.join(part for part in (far, passed) if part)}{left}"
        work.due, work.shown = now + EVERY, True
        self._line(work.number, text)

    def _line(self, number: int, text: str) -> None:
        count = f"[{number}/{self.tasks}] " if self.tasks > 1 and number else ""
        with contextlib.suppress(OSError, ValueError):  # nobody reads: the work goes on
            sys.stderr.write(visible(f"{count}{text}\n"))
            sys.stderr.flush()
