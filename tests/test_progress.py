"""Progress: times in words, lines by a clock that the test turns, and nothing on standard output."""

from __future__ import annotations

import pytest

from stillroom import progress
from stillroom.progress import Lines, Ticker, amount, aside, duration, ticking, times, waiting


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (1.26, "1.3 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (65, "1 min 5 s"),
        (119.6, "2 min"),
        (3599.7, "1 h"),
        (7034, "1 h 57 min"),
        (86370, "1 d"),
        (86400 + 7200, "1 d 2 h"),
    ],
)
def test_a_time_is_said_as_a_person_says_it(seconds, text):
    assert duration(seconds) == text


def test_how_far_and_how_long():
    assert amount(1200, 5000, "steps, loss 0.312") == "1,200 of 5,000 steps, loss 0.312"
    assert amount(1, 3, "validation") == "1 of 3, validation"
    assert amount(0, 0, "") == ""
    assert times(60, 120, 500) == "1 min elapsed, about 3 min 10 s left"  # 60 / 120 * 380 = 190
    assert times(60, 0, 500) == times(60, 500, 500) == "1 min elapsed"


class Clock:
    """A clock that is turned by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def lines_of(capsys) -> list[str]:
    shown = capsys.readouterr()
    assert shown.out == "", "standard output belongs to results"
    return shown.err.splitlines()


def test_a_task_has_a_line_when_it_begins_one_every_30_seconds_and_one_at_its_end(capsys):
    clock = Clock()
    told = Lines(3, {"a": "alone, seed 0", "b": "kd, seed 0", "r": "report"}, clock=clock)
    told("a", 0, 0, "")
    assert lines_of(capsys) == ["[1/3] alone, seed 0 ..."]
    told("a", 10, 500, "steps, loss 2.000")
    clock.now += 29.9
    told.beat()
    assert lines_of(capsys) == []
    told("a", 120, 500, "steps, loss 0.312")
    clock.now += 0.1
    told.beat()
    told.beat()
    expected = "120 of 500 steps, loss 0.312, 30 s elapsed, about 1 min 35 s left"  # 30 / 120 * 380 = 95
    assert lines_of(capsys) == [f"[1/3] alone, seed 0: {expected}; 3 of 3 tasks left"]
    clock.now += 5
    told("b", 0, 0, "")
    clock.now += 25  # the first is due again, the second not yet
    told.beat()
    assert [line[:6] for line in lines_of(capsys)] == ["[2/3] ", "[1/3] "]
    clock.now += 5
    told("a", 1, 1, "")
    told("b", 1, 1, "")
    told("r", 0, 0, "")
    told("r", 1, 1, "")
    assert lines_of(capsys) == ["[1/3] alone, seed 0: done in 1 min 5 s", "[2/3] kd, seed 0: done in 30 s",
                                "[3/3] report ..."]  # fmt: skip


def test_what_was_done_before_is_counted_and_a_last_step_ends_nothing_twice(capsys):
    told = Lines(2, {"a": "train teacher", "b": "record teacher"}, clock=Clock())
    told("a", 1, 1, "done before")
    told("b", 0, 0, "")
    told("b", 1, 1, "rows")  # of one row: all of it
    told("b", 1, 1, "")
    assert lines_of(capsys) == ["[1/2] train teacher: done before", "[2/2] record teacher ..."]
    assert told.ended == 2


def test_a_wait_says_what_it_is_for_after_two_seconds_and_then_every_thirty(capsys):
    clock = Clock()
    told = Lines(1, {}, after=2.0, clock=clock)
    told("opening the data", 0, 0, "")
    clock.now += 1.9
    told.beat()
    assert lines_of(capsys) == []
    clock.now += 0.1
    told.beat()
    assert lines_of(capsys) == ["opening the data ..."]
    clock.now += 30
    told("opening the data", 4, 8, "rows")
    told.beat()
    assert lines_of(capsys) == ["opening the data: 4 of 8 rows, 32 s elapsed, about 32 s left"]


def test_work_beside_the_tasks_is_not_counted(capsys):
    clock = Clock()
    told = Lines(1 + 1, {"a": "a", "b": "b"}, clock=clock)
    with aside(told, "checking shapes"):
        clock.now += 2
        told.beat()
    told("a", 0, 0, "")
    assert lines_of(capsys) == ["checking shapes ...", "[1/2] a ..."]
    assert told.ended == 0


def test_a_heartbeat_tells_of_a_wait_that_says_nothing_itself(capsys, monkeypatch):
    monkeypatch.delenv(progress.QUIET, raising=False)
    monkeypatch.setattr(progress, "BEAT", 0.01)
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    clock = Clock()
    with ticking(1, {}, after=1.0, clock=clock) as told:
        assert isinstance(told, Lines)
        told("sizing", 0, 0, "")
        clock.now += 1.0
        for _ in range(500):
            if told.works["sizing"].shown:
                break
            progress.time.sleep(0.01)
    assert lines_of(capsys) == ["sizing ..."]


def test_quiet_shows_nothing(capsys, monkeypatch):
    with ticking(2, {}, quiet=True) as told:
        told("a", 0, 0, "")
        assert type(told) is Ticker
    monkeypatch.setenv(progress.QUIET, "1")
    with waiting("long") as tell:
        tell(1, 2, "rows")
    assert lines_of(capsys) == []


def test_a_terminal_has_bars_whose_times_do_not_run_into_each_other(monkeypatch):
    import io

    from rich.console import Console

    shown = io.StringIO()
    monkeypatch.setattr(progress, "err", Console(file=shown, force_terminal=True, width=150))
    monkeypatch.delenv(progress.QUIET, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    with ticking(2, {"a": "train teacher", "b": "record teacher"}) as told:
        told("a", 0, 0, "")
        told("a", 50, 100, "steps, loss 0.500")
        told.progress.refresh()
        told("a", 1, 1, "")
    text = shown.getvalue()
    assert "train teacher" in text and "50/100" in text and "steps, loss 0.500" in text
    assert "s elapsed, about" in text and "s left" in text


def test_a_reader_that_has_gone_does_not_stop_the_work(monkeypatch):
    class Gone:
        def write(self, text: str) -> None:
            raise BrokenPipeError

    monkeypatch.setattr(progress.sys, "stderr", Gone())
    Lines(1, {}, clock=Clock())("a", 0, 0, "")
