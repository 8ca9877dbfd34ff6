"""Measures of a classifier, each against its formula written once more or a number worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from stillroom.contracts import UNLABELLED
from stillroom.evaluate import evaluate
from stillroom.tasks import accuracy, agreement, correct, divergence, measure, recall_by_class, reliability


def logits_of(*shares: list[float]) -> torch.Tensor:
    """Return logits whose softmax is ``shares``."""
    return torch.tensor(shares, dtype=torch.float64).log()


LABELS = torch.tensor([0, 1, UNLABELLED, 1, 0])
OURS = logits_of([0.6, 0.4], [0.3, 0.7], [0.9, 0.1], [0.8, 0.2], [0.55, 0.45])  # right, right, -, wrong, right
THEIRS = logits_of([0.3, 0.7], [0.2, 0.8], [0.9, 0.1], [0.1, 0.9], [0.6, 0.4])


def test_accuracy_is_of_labelled_rows_and_agreement_of_all_rows_with_the_teacher():
    assert correct(OURS, LABELS).tolist() == [True, True, False, True] and accuracy(OURS, LABELS) == 3 / 4
    assert agreement(OURS, THEIRS) == 3 / 5, "rows 1, 2 and 4"
    found = measure(OURS, LABELS, THEIRS)
    assert found["accuracy"] == 3 / 4 and found["agreement"] == 3 / 5
    assert measure(OURS, LABELS, None).keys() & {"agreement", "kl"} == set()
    assert set(measure(OURS, torch.full((5,), UNLABELLED), THEIRS)) == {"agreement", "kl"}


def test_the_divergence_is_from_teacher_to_student():
    ours, theirs = logits_of([0.5, 0.5]), logits_of([0.9, 0.1])
    forward = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    backward = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert divergence(ours, theirs) == pytest.approx(forward) and forward != pytest.approx(backward, rel=0.1)
    assert measure(ours, None, theirs)["kl"] == pytest.approx(forward)
    two = divergence(torch.cat([ours, theirs]), torch.cat([theirs, theirs]))
    assert two == pytest.approx(forward / 2), "the mean over rows"


def test_a_bin_holds_its_upper_border_and_not_its_lower_one():
    """Guo et al. 2017: bin m is ((m - 1) / M, m / M]. With four bins 0.5 is in the second, 0.75 in the third."""
    logits = logits_of([0.5, 0.3, 0.2], [0.75, 0.15, 0.1], [0.76, 0.14, 0.1], [0.4, 0.35, 0.25])
    found = reliability(logits, torch.tensor([0, 1, 0, 0]), bins=4)
    assert found.share == [0.0, 0.5, 0.25, 0.25]
    assert found.confidence == [None, pytest.approx(0.45), pytest.approx(0.75), pytest.approx(0.76)]
    assert found.accuracy == [None, 1.0, 0.0, 1.0]
    assert found.ece == pytest.approx(0.5 * 0.55 + 0.25 * 0.75 + 0.25 * 0.24)


def test_certainty_of_one_is_in_the_last_bin_and_rows_without_a_label_in_none():
    logits = torch.tensor([[900.0, 0.0], [900.0, 0.0], [0.0, 900.0]])
    found = reliability(logits, torch.tensor([0, 1, UNLABELLED]))
    assert found.share[-1] == 1.0 and found.ece == pytest.approx(0.5) and len(found.share) == 15
    plain = found.plain()
    assert plain["confidence"][-1] == 1.0 and plain["accuracy"][-1] == 0.5 and plain["confidence"][0] is None


def test_recall_is_by_true_class_and_none_for_a_class_without_rows():
    logits = torch.eye(4)[[0, 0, 1, 2, 2, 0]]
    labels = torch.tensor([0, 1, 1, 2, 2, UNLABELLED])
    assert recall_by_class(logits, labels, 4) == [1.0, 0.5, 1.0, None]


def test_a_class_that_is_never_there_and_never_answered_is_in_no_mean():
    """Of four classes the last has no row and no answer: recalls 1/2, 1, 0 and F1 2/3, 1/2, 0."""
    found = measure(torch.eye(4)[[0, 1, 1, 1]], torch.tensor([0, 0, 1, 2]), None)
    assert found["balanced_accuracy"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 2 / 4 + 0) / 3)


def test_evaluate_measures_the_split_it_is_asked_for():
    from stillroom.data.arrays import ArraySource

    rows = torch.eye(2)[[0, 1, 0, 1, 0, 1]]
    splits = {"train": torch.tensor([0, 1]), "validation": torch.tensor([2, 3]), "test": torch.tensor([5, 4])}
    data = ArraySource(rows, torch.tensor([0, 1, 0, 1, 1, 1]), splits=splits)
    model = torch.nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))
    teacher = lambda batch: {"logits": torch.eye(2)[[1, 1]][: len(batch["id"])]}  # noqa: E731
    assert evaluate(model, data, split="validation")["accuracy"] == 1.0
    found = evaluate(model, data, teacher=teacher)
    assert found["accuracy"] == 0.5 and found["agreement"] == 0.5
