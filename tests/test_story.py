"""What the report tells of answers: examples, recalls and shares beside the numbers they belong to, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from stillroom.contracts import UNLABELLED
from stillroom.data.texts import TextSource
from stillroom.objectives import match
from stillroom.pipeline import story
from stillroom.pipeline.plan import ALONE, ArmPlan, Experiment
from stillroom.pipeline.story import summary_of
from stillroom.pipeline.verdict import test_labels as labels_of_test
from stillroom.settings import Training

NAMES = ["a", "b", "c"]


def experiment(labels: list[int], order: list[int] | None = None) -> Experiment:
    """Test rows 2, 3, ... with these labels; example 5 shows the text "row 5"."""
    texts = [f"row {number}" for number in range(2 + len(labels))]
    test = torch.arange(2, len(texts)) if order is None else torch.tensor(order)
    splits = {"train": torch.tensor([0]), "validation": torch.tensor([1]), "test": test}
    known = torch.tensor([0, 1, *[0] * len(labels)])
    known[test] = torch.tensor(labels)
    arm = ArmPlan("kd", lambda: [match("kd")], Training(steps=1), None, lambda _: nn.Linear(1, 3), None, {}, {})
    data = TextSource(texts, known.tolist(), splits=splits, classes=NAMES)
    return Experiment("x", data, {}, {ALONE: arm, "kd": arm}, [0, 1])


def shares(*rows: tuple[float, float, float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def told(finding) -> list[tuple[str, str, dict[str, str]]]:
    """Text, caption and rows of each example that is shown."""
    return [(one["text"], one["caption"], dict(one["rows"])) for one in finding.figure["items"]]


def test_disagreements_are_the_surest_first_with_the_words_of_each_side():
    plan = experiment([0, 1, 2, UNLABELLED], order=[5, 2, 4, 3])
    teacher = shares((0.6, 0.3, 0.1), (0.1, 0.8, 0.1), (0.1, 0.0001, 0.8999), (0.5, 0.4, 0.1))
    student = shares((0.3, 0.5, 0.2), (0.1, 0.7, 0.2), (0.9, 0.05, 0.05), (0.2, 0.1, 0.7))
    finding = story._disagreements(plan, student, teacher, labels_of_test(plan.data))
    assert told(finding) == [
        ("row 4", "true: c", {"teacher": "c 0.90", "student": "a 0.90"}),
        ("row 3", "unlabelled", {"teacher": "a 0.50", "student": "c 0.70"}),
        ("row 5", "true: a", {"teacher": "a 0.60", "student": "b 0.50"}),
    ]
    assert "They differ on 3 of 4 test examples (75.0 %)." in finding.sentence
    assert "the teacher is right in 2, the student in 0, neither in 0" in finding.sentence


def test_what_changed_is_the_probability_of_the_true_class_from_alone_to_the_arm():
    """Rows 4 and 3 gain 0.3 and 0.2 of their class and row 2 loses 0.4, as means over seeds; row 5 has no label."""
    plan = experiment([UNLABELLED, 0, 1, 2], order=[5, 2, 4, 3])
    alone = [shares((1, 1, 1), (0.7, 0.2, 0.1), (0.5, 0.3, 0.2), (0.3, 0.3, 0.4)),
             shares((1, 1, 1), (0.9, 0.05, 0.05), (0.3, 0.5, 0.2), (0.2, 0.2, 0.6))]  # fmt: skip
    main = [shares((1, 1, 1), (0.4, 0.5, 0.1), (0.2, 0.7, 0.1), (0.1, 0.2, 0.7))] * 2
    teacher = shares((1, 1, 1), (0.3, 0.4, 0.3), (0.1, 0.8, 0.1), (0.05, 0.05, 0.9))
    finding = story._changed(plan, {ALONE: alone, "kd": main}, teacher, labels_of_test(plan.data))
    assert told(finding) == [
        ("row 4", "b: gained 0.30", {"alone": "0.40", "distilled": "0.70", "teacher": "0.80"}),
        ("row 3", "c: gained 0.20", {"alone": "0.50", "distilled": "0.70", "teacher": "0.90"}),
        ("row 2", "a: lost 0.40", {"alone": "0.80", "distilled": "0.40", "teacher": "0.30"}),
    ]
    assert "in 2 of 3 test examples and fell by more than 0.1 in 1" in finding.sentence


def guesses(*classes: int) -> Tensor:
    return nn.functional.one_hot(torch.tensor(classes), 3).double()


def test_recall_by_class_is_the_mean_over_seeds_of_each_model():
    plan = experiment([0, 0, 1, 1])
    labels, teacher = labels_of_test(plan.data), guesses(0, 0, 1, 1)
    answers = {ALONE: [guesses(0, 1, 1, 0), guesses(1, 1, 1, 1)], "kd": [guesses(0, 0, 1, 0), guesses(0, 0, 0, 0)]}
    figure = story._by_class(plan, answers, teacher, labels).figure
    found = {one["name"]: dict(zip(figure["labels"], one["values"], strict=True)) for one in figure["series"]}
    assert found == {"teacher": {"a": 100, "b": 100}, ALONE: {"a": 25, "b": 75}, "kd": {"a": 100, "b": 25}}


def test_confusions_are_counted_a_seed():
    plan = experiment([0, 0, 0, 0, 1])
    parts = [guesses(0, 1, 1, 1, 1), guesses(0, 0, 0, 2, 0)]
    finding = story._confused(plan, parts, labels_of_test(plan.data))
    assert finding.figure["values"] == [[50.0, 37.5, 12.5], [50.0, 50.0, 0.0], [None, None, None]]


@pytest.mark.parametrize(("teacher", "said"), [(900, ("smaller than the teacher", "3.0x")), (150, ("larger", "2.0x"))])
def test_the_head_says_how_many_times_smaller_the_student_is(teacher, said):
    models = {"teacher": {"bytes": {"mean": teacher}}, "distilled": {"bytes": {"mean": 300}}}
    assert summary_of({"models": models, "main": "kd"}) == [said]
