"""mine: panels are steps of their own, kept, told, and put together in one report."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from torch import nn

from stillroom.contracts import Finding
from stillroom.data.arrays import ArraySource
from stillroom.errors import UserError
from stillroom.mining import Budget, Panel, Subject, options, panels
from stillroom.pipeline import mining

ASKED: list[str] = []
SIZE = [("size", 0, 0), ("size", 1, 1)]


def size(subject: Subject, budget: Budget, *, times: int = 1) -> Panel:
    ASKED.append("size" if times == 1 else f"size x {times}")
    figure = {"kind": "facts", "pairs": [["classes", len(subject.classes)]]}
    finding = Finding("How many", f"It tells {len(subject.classes)} classes apart.", 2.0, "one", figure)
    return Panel("size", [finding], {"classes": len(subject.classes)}, {"classes.txt": b"low high"}, ["all of it"])


def students(subject: Subject, budget: Budget, pupils: Mapping[str, Sequence[Subject]]) -> Panel:
    ASKED.append("students")
    return Panel("students", [Finding("Pupils", f"It has {len(pupils)}.", control="none")])


@pytest.fixture(autouse=True)
def two_panels(monkeypatch):
    ASKED.clear()
    table = {"size": f"{__name__}:size", "students": f"{__name__}:students"}
    monkeypatch.setattr(panels, "PANELS", table)


def subject(seed: int = 0) -> Subject:
    torch.manual_seed(seed)
    values = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
    data = ArraySource(values, labels=(values[:, 0] > 0).astype(np.int64), classes=["low", "high"])
    return Subject(data, nn.Linear(6, 2))


def test_panels_are_done_once_and_put_together(tmp_path):
    first = mining.mine(subject(), tmp_path, students={"arm": [subject(1)]})
    assert ASKED == ["size", "students"] and [one.title for one in first.findings] == ["How many", "Pupils"]
    assert (tmp_path / "size" / "classes.txt").read_bytes() == b"low high"
    told = json.loads((tmp_path / "findings.json").read_text())
    assert told["panels"]["size"]["numbers"] == {"classes": 2} and told["panels"]["size"]["files"] == [
        "size/classes.txt"
    ]
    page = (tmp_path / "report.html").read_text()
    assert "It tells 2 classes apart." in page and "size: all of it" in page
    again = mining.mine(subject(), tmp_path, students={"arm": [subject(1)]})
    assert ASKED == ["size", "students"] and again.findings == first.findings and again.panels == first.panels
    mining.mine(subject(2), tmp_path)
    assert ASKED == ["size", "students", "size"], "another model is asked anew; without students nobody asks about them"


def test_another_student_classes_or_option_asks_anew_only_what_hangs_on_it(tmp_path):
    mining.mine(subject(), tmp_path, students={"arm": [subject(1)]})
    ASKED.clear()
    mining.mine(subject(), tmp_path, students={"arm": [subject(2)]})
    assert ASKED == ["students"], "what is said of the teacher stands"
    mining.mine(subject(), tmp_path, options={"size": {"times": 3}})
    assert ASKED == ["students", "size x 3"]
    renamed = subject()
    renamed.data.classes = ["cold", "hot"]
    again = mining.mine(Subject(renamed.data, renamed.opened), tmp_path)
    assert ASKED[2:] == ["size"] and "cold" not in again.findings[0].sentence


class Slow:
    """A closed model that takes its time for each example, and counts them."""

    def __init__(self) -> None:
        self.rows = 0

    def __call__(self, inputs):
        self.rows += len(inputs)
        time.sleep(0.002 * len(inputs))
        return inputs[:, :2]


def test_a_slow_model_that_shows_answers_only_is_asked_about_fewer_examples_of_each_split_and_not_twice(tmp_path):
    values = np.random.default_rng(0).normal(size=(3000, 6)).astype(np.float32)
    data = ArraySource(values, labels=(values[:, 0] > 0).astype(np.int64), classes=["low", "high"])
    slow = Slow()
    closed = Subject(data, answer=slow)
    mined = mining.mine(closed, tmp_path, seconds=1.0)
    assert any("to keep to the time" in note for note in mined.notes) and slow.rows < 3 * closed.most + 300
    assert all(len(closed.logits(split)) == len(closed.examples(split)) for split in ("train", "test"))
    before = slow.rows
    mining.mine(Subject(data, answer=slow), tmp_path, seconds=1.0)
    assert slow.rows - before <= 64, "a few answers say that it is the same"


def test_options_of_panels_are_read_and_mistakes_are_told():
    assert options.read_options(["size.times=3"]) == {"size": {"times": 3}}
    for text, told in {
        "size": "panel.option=value",
        "size.time=3": "Did you mean 'size.times'",
        "sizes.times=3": "Did you mean 'size'",
        "size.times=many": "a whole number",
    }.items():
        with pytest.raises(UserError, match=told):
            options.read_options([text])


def test_some_panels_and_what_is_no_panel(tmp_path):
    mined = mining.mine(subject(), tmp_path, students={"arm": [subject(1)]}, only=["students"])
    assert list(mined.panels) == ["students"]
    with pytest.raises(UserError, match="no such panel.*'sizes'"):
        mining.mine(subject(), tmp_path, only=["sizes"])


def test_each_panel_is_told_from_its_beginning_to_its_end(tmp_path):
    seen = []
    mining.mine(subject(), tmp_path, told=lambda *event: seen.append(event[:3]))
    assert seen == [("asking", 0, 0), *(("asking", place, 3) for place in range(3)), ("asking", 1, 1), *SIZE]
    seen.clear()
    mining.mine(subject(), tmp_path, told=lambda *event: seen.append(event[:3]))
    assert seen == [("asking", 0, 0), ("asking", 1, 1), *SIZE], "what was asked before is read"


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(UserError, match="no run folder"):
        mining.subjects_of_run(tmp_path)
