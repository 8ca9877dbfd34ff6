"""What is measured of a classifier is the same in parts, and nothing that is made grows with classes squared."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stillroom import tasks
from stillroom.data.arrays import ArraySource
from stillroom.mining import Budget, Subject
from stillroom.mining.answers import answers
from stillroom.mining.similarity import MOST, similarity
from stillroom.tasks import classification

ROWS, CLASSES = 400, 1500


class Largest(TorchDispatchMode):
    """The most numbers of any tensor that an operation gives, and of those of float64."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = self.doubles = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for one in found if isinstance(found, tuple | list) else [found]:
            if isinstance(one, torch.Tensor):
                self.numbers = max(self.numbers, one.numel())
                self.doubles = max(self.doubles, one.numel() * (one.dtype == torch.float64))
        return found


@pytest.fixture
def many():
    """Logits of two models and labels of many classes, -1 for some."""
    generator = torch.Generator().manual_seed(0)
    ours, theirs = torch.randn(2, ROWS, CLASSES, generator=generator)
    labels = torch.randint(0, CLASSES, (ROWS,), generator=generator)
    right = torch.rand(ROWS, generator=generator) < 0.6
    for part in (ours, theirs):
        part[torch.arange(ROWS)[right], labels[right]] += 9
    labels[::17] = -1
    return ours, theirs, labels


def test_measures_in_parts_are_those_of_the_whole(many, monkeypatch):
    ours, theirs, labels = many
    known = labels >= 0
    first, second = (part.double().log_softmax(1) for part in (ours, theirs))
    monkeypatch.setattr(classification, "AT_ONCE", 7 * CLASSES)
    assert tasks.divergence(ours, theirs) == pytest.approx(float((second.exp() * (second - first)).sum(1).mean()))
    assert tasks.accuracy(ours, labels) == float((ours[known].argmax(1) == labels[known]).double().mean())
    torch.testing.assert_close(tasks.top_share(ours), first.exp().amax(1))
    torch.testing.assert_close(tasks.share_of(ours, labels.clamp(min=0)), first.exp()[range(ROWS), labels.clamp(min=0)])
    recall = tasks.recall_by_class(ours, labels, CLASSES)
    for place in (0, int(labels[1]), CLASSES - 1):
        rows = labels == place
        wanted = float((ours.argmax(1)[rows] == place).double().mean()) if bool(rows.any()) else None
        assert recall[place] == wanted
    assert tasks.by_rows(lambda part: part.sum(1), ours[:0]).shape == (0,)


def test_measures_hold_a_part_of_the_rows_at_a_time(many, monkeypatch):
    ours, theirs, labels = many
    monkeypatch.setattr(classification, "AT_ONCE", 20 * CLASSES)
    with Largest() as largest:
        tasks.divergence(ours, theirs)
        tasks.reliability(ours, labels)
        tasks.recall_by_class(ours, labels, CLASSES)
        tasks.top_share(ours)
    assert largest.doubles == 20 * CLASSES


def subject(logits: torch.Tensor, labels: torch.Tensor) -> Subject:
    rows = np.arange(3 * len(labels), dtype=np.float32)[:, None]
    data = ArraySource(rows, labels=labels.repeat(3).numpy(), classes=[f"class {one}" for one in range(CLASSES)])
    for at, split in enumerate(("train", "validation", "test")):
        data.splits[split] = torch.arange(at * len(labels), (at + 1) * len(labels))
    return Subject(data, answer=lambda inputs: logits[(inputs[:, 0].long() % len(labels))])


def test_confusions_of_many_classes_need_no_table_of_them(many):
    ours, _, labels = many
    labels = labels.clamp(min=0)
    ours[:3] = 0
    ours[:3, 5] = 20  # three times class 5 for class 4
    labels[:3] = 4
    with Largest() as largest:
        panel = answers(subject(ours, labels), Budget())
    assert panel.numbers["confusions"][0] | {"share": None} == {
        "true": "class 4", "answered": "class 5", "count": 3, "share": None}  # fmt: skip
    assert largest.numbers < CLASSES * CLASSES
    assert f"The 10 classes of lowest recall, of {len(labels.unique()):,}." in panel.findings[2].figure["note"]


def test_only_the_classes_answered_most_are_compared(many):
    ours, _, labels = many
    with Largest() as largest:
        panel = similarity(subject(ours, labels.clamp(min=0)), Budget())
    assert len(panel.numbers["classes"]) == MOST and len(panel.findings[0].figure["labels"]) < MOST
    assert f"the {MOST} classes answered most often were compared, of {CLASSES:,}" in panel.notes[0]
    assert largest.numbers < CLASSES * CLASSES


def test_fewer_rows_are_asked_about_where_classes_are_many(many):
    _, _, labels = many
    few = subject(torch.zeros(len(labels), CLASSES), labels.clamp(min=0))
    assert few.most == 5000
    few.data.classes = [str(one) for one in range(10_000)]
    assert Subject(few.data, answer=lambda inputs: inputs).most == 2000
