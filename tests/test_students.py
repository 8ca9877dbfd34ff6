"""What students kept and lost: planted losses are named, and where nothing is lost nothing is claimed."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from stillroom.data.arrays import ArraySource
from stillroom.mining import Budget, Subject
from stillroom.mining.students import students
from stillroom.mining.subgroups import subgroups

ROWS, CLASSES = 4000, ["ant", "bee", "cat", "dog"]


def data() -> ArraySource:
    chance = np.random.default_rng(0)
    labels = chance.integers(0, 4, ROWS)
    pixels = chance.normal(0, 12, (ROWS, 1, 4, 4)) + 60
    pixels[np.arange(ROWS), 0, labels, labels] += 90
    pixels += chance.choice([0, 60], ROWS)[:, None, None, None]  # half of them are bright
    return ArraySource(pixels.clip(0, 255).astype(np.uint8), labels=labels, classes=CLASSES)


class Corners(nn.Module):
    """Answers by the four pixels that matter; ``blind`` to one class, or answering bright pictures at random."""

    def __init__(self, blind: int | None = None, dazzled: bool = False) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 12), nn.Linear(12, 4)
        weights = torch.zeros(12, 16)
        for place in range(4):
            weights[place, 5 * place] = 1.0
        with torch.no_grad():
            self.first.weight.copy_(weights)
            self.first.bias.zero_()
            self.last.weight.copy_(torch.eye(4, 12))
            self.last.bias.zero_()
        self.blind, self.dazzled = blind, dazzled

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        pixels = inputs.float().flatten(1) / 20
        logits = self.last(self.first(pixels))
        if self.blind is not None:
            logits = logits - 9 * torch.nn.functional.one_hot(torch.tensor(self.blind), 4)
        if self.dazzled:
            bright = pixels.mean(1, keepdim=True) > 5
            logits = torch.where(bright, logits.roll(1, 1), logits)
        return logits


def mined(student: nn.Module):
    source = data()
    return students(Subject(source, Corners()), Budget(), {"alone": [Subject(source, Corners(blind=1))],
                    "kd": [Subject(source, student), Subject(source, copy.deepcopy(student))]})  # fmt: skip


def test_a_copy_keeps_everything():
    panel = mined(Corners())
    kept = panel.numbers["arms"]["kd"]
    assert kept["agreement"]["mean"] == 1.0 and kept["kl"]["mean"] == pytest.approx(0, abs=1e-9)
    assert kept["gradient_cosine"]["mean"] == pytest.approx(1.0)
    assert kept["chance"]["mean"] == pytest.approx(0.25, abs=0.02)
    assert panel.numbers["cka"]["values"][-1][-1] == pytest.approx(1.0)
    texts = {one.title: one.sentence for one in panel.findings}
    assert "In 4 of 4 classes" in texts["Which classes it cost"] and "loses most" not in texts["Which classes it cost"]
    assert "No subgroup is left behind" in texts["Whom it cost"]
    assert "differs from the model on 0 of" in texts["Where they disagree"] and not panel.findings[-1].figure


def test_the_class_that_was_lost_is_named():
    panel = mined(Corners(blind=2))
    assert panel.numbers["classes"][0]["class"] == "cat" and panel.numbers["classes"][0]["student"] < 0.1
    assert "loses most on 'cat'" in panel.findings[1].sentence
    assert "class 'cat'" in panel.findings[2].sentence
    assert {item["teacher"] for item in panel.numbers["disagreements"]} == {"cat"}


def test_the_subgroup_that_was_lost_is_named_and_is_more_than_chance():
    panel = mined(Corners(dazzled=True))
    finding = panel.findings[2]
    assert "the highest quarter of brightness" in finding.sentence and finding.number < 0.1
    assert panel.numbers["subgroups"][0]["agreement"] < 0.1


def test_texts_and_tables_have_subgroups_of_their_own():
    from stillroom.data.texts import TextSource

    texts = TextSource(["a " * (1 + row % 40) for row in range(400)], [row % 2 for row in range(400)])
    words = Subject(texts, answer=lambda inputs: torch.rand(len(inputs), 2))
    words.examples = lambda split: torch.arange(400)  # type: ignore[method-assign]
    assert "the highest quarter of length" in [group.name for group in subgroups(words)]
    values = np.random.default_rng(0).normal(size=(400, 2)).astype(np.float32)
    values[:, 1] = values[:, 1] > 0
    table = ArraySource(values, labels=np.arange(400) % 2, splits={"test": np.arange(400), "train": np.arange(0)})
    table.names, table.kinds, table.categories = (
        ("age", "smokes"),
        ("numeric", "categorical"),
        {"smokes": ["no", "yes"]},
    )
    rows = Subject(table, answer=lambda inputs: inputs)
    rows.kind = "table"  # type: ignore[misc]
    found = {group.name: len(group.rows) for group in subgroups(rows)}
    assert found["smokes = yes"] == int(values[:, 1].sum()) and "the lowest quarter of age" in found
    assert all(count >= 20 for count in found.values())


def test_a_closed_model_is_compared_by_its_answers_alone():
    source = data()
    net = Corners()
    closed = Subject(source, answer=lambda inputs: net(inputs))
    panel = students(closed, Budget(), {"kd": [Subject(source, Corners(blind=2))]})
    assert "cka" not in panel.numbers and "only the answers" in panel.notes[0]
    assert "gradient_cosine" not in panel.numbers["arms"]["kd"]
