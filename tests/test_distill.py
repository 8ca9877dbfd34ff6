"""The one-call door: data without labels, or with a few, is treated as what it is."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from stillroom.contracts import UNLABELLED
from stillroom.data.arrays import ArraySource
from stillroom.data.texts import TextSource
from stillroom.models.bundle import Deployed
from stillroom.models.text_encode import words_for
from stillroom.models.zoo import build
from stillroom.objectives import match
from stillroom.pipeline.distill import distill
from stillroom.pipeline.plan import ArmPlan, control_of
from stillroom.settings import Training


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """No test here finds what another one left."""
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def points():
    """Inputs, labels, and a teacher that knows them."""
    generator = torch.Generator().manual_seed(0)
    inputs, weight = torch.randn(300, 6, generator=generator), torch.randn(3, 6, generator=generator)
    teacher = nn.Linear(6, 3)
    teacher.load_state_dict({"weight": 3 * weight, "bias": torch.zeros(3)})
    return inputs, (inputs @ weight.T).argmax(1), teacher


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def arm(labels=None, training=None):
    def objectives():
        return [match("labels"), match("kd")]

    return ArmPlan("kd", objectives, training or Training(steps=4, batch=8), labels, lambda seed: small(), None, {}, {})


def test_without_a_single_label_the_best_moment_is_where_the_objective_is_least(points, tmp_path):
    inputs, _, teacher = points
    result = distill(teacher, small, inputs, steps=40, out=tmp_path / "run")
    scores = json.loads((tmp_path / "run" / "arms" / "main-0" / "scores.json").read_text())
    by_step = {int(step): value for step, value in scores["validation_by_step"].items()}
    assert len(set(by_step.values())) == 3
    assert scores["chosen_step"] == max(by_step, key=by_step.__getitem__) == 40
    assert "no control" in result.verdict and result.report().is_file()


def test_the_control_never_draws_rows_whose_label_is_unknown(points):
    inputs, labels, _ = points
    hidden = torch.arange(300) % 5 != 0
    splits = {"train": range(200), "validation": range(200, 250), "test": range(250, 300)}
    data = ArraySource(inputs, labels.masked_fill(hidden, UNLABELLED), splits=splits)
    alone = control_of(arm(), lambda: match("labels"))
    rows = alone.rows(alone.data(data))
    assert rows.labelled.tolist() == list(range(0, 200, 5)) and rows.transfer is None
    assert len(arm().rows(arm().data(data)).labelled) == 200  # the teacher answers for the others


def test_an_epoch_of_data_without_labels_is_all_of_it(points):
    inputs, labels, _ = points
    data = ArraySource(inputs, labels, splits={"train": range(200), "test": range(200, 300)})
    free = arm(labels=0, training=Training(epochs=2, batch=10))
    assert free.settings(free.data(data)).steps == 40


def test_no_labels_shown_means_no_control(points, tmp_path):
    inputs, labels, teacher = points
    result = distill(teacher, small, (inputs, labels), ["kd"], steps=4, labels=0, out=tmp_path / "run")
    assert "alone" not in result.metrics["models"] and result.metrics["gap_closed"] is None


SOURCE = """
from torch import nn

FACTOR = 1.0

def mine(student_logits, teacher_logits):
    return FACTOR * (student_logits - teacher_logits).square().mean()

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, inputs):
        return self.layer(inputs)
"""


@pytest.mark.parametrize(
    ("before", "after", "which"),
    [
        ("FACTOR = 1.0", "FACTOR = 0.0", "mine"),
        (".square()", ".abs()", "mine"),
        ("(inputs)\n", "(inputs) * 2\n", "Net"),
    ],
)
def test_changed_code_of_ones_own_is_never_answered_from_the_cache(points, tmp_path, before, after, which):
    inputs, labels, teacher = points
    assert SOURCE.count(before) == 1

    def run(text, folder):
        own = {"__name__": "own"}
        exec(text, own)
        student = own["Net"] if which == "Net" else small
        objectives = [lambda: match(own["mine"])]
        found = distill(teacher, student, (inputs, labels), objectives, steps=8, control=False, out=folder)
        return torch.cat([value.flatten() for value in found.student.parameters()]), folder / "arms" / "main-0"

    first, again = run(SOURCE, tmp_path / "a"), run("# moved\n" + SOURCE, tmp_path / "b")
    changed = run(SOURCE.replace(before, after), tmp_path / "c")
    assert torch.equal(first[0], again[0]) and not torch.equal(first[0], changed[0])
    marks = [json.loads((folder / "done.json").read_text())["inputs"] for _, folder in (first, again, changed)]
    assert marks[0] == marks[1] != marks[2]


def test_texts_are_distilled_between_two_models_with_tokens_of_their_own(tmp_path):
    texts = [f"{'a good' if number % 2 else 'a bad'} film, number {number}" for number in range(300)]
    data = TextSource(texts, [number % 2 for number in range(300)], classes=["bad", "good"])
    words, letters = words_for(data), words_for(data, unit="character", size=60)
    torch.manual_seed(0)
    teacher = Deployed(build("textmlp", shape=(words.size,), classes=2, embedding=8, hidden=8), words)

    def student() -> Deployed:
        return Deployed(build("bigru", shape=(letters.size,), classes=2, embedding=8, hidden=8), letters)

    result = distill(teacher, student, data, ["labels", "kd"], steps=6, labels=40, out=tmp_path / "run")
    assert isinstance(result.student, Deployed) and result.student(["a good film"]).shape == (1, 2)
    assert result.student.encode.unit == "character" and result.student.config["shape"] == [letters.size]
    assert {"teacher", "alone", "main"} <= set(result.metrics["models"])
