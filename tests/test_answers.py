"""How a model behaves, on answers whose right numbers are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from stillroom.data.arrays import ArraySource
from stillroom.mining import Budget, Subject
from stillroom.mining.answers import answers
from stillroom.statistics import of_share

ROWS, CLASSES = 6000, ["ant", "bee", "cat"]


def subject(heat: float, wrong: float = 0.2, seed: int = 0) -> Subject:
    """A model whose logits, divided by ``heat``, are the true log-probabilities; 'cat' is mistaken for 'bee'."""
    chance = np.random.default_rng(seed)
    truth = chance.dirichlet([0.6, 0.6, 0.6], ROWS).astype(np.float32) + 1e-4
    truth /= truth.sum(1, keepdims=True)
    labels = np.array([chance.choice(3, p=row.astype(np.float64) / row.astype(np.float64).sum()) for row in truth])
    moved = (labels == 2) & (chance.random(ROWS) < wrong)
    truth[moved] = truth[moved][:, [0, 2, 1]]
    data = ArraySource(np.log(truth) * heat, labels=labels, classes=CLASSES)
    return Subject(data, answer=lambda inputs: inputs)


def test_the_temperature_that_was_planted_is_found_and_repairs():
    numbers = answers(subject(heat=3.0, wrong=0), Budget()).numbers
    assert numbers["temperature"] == pytest.approx(3.0, rel=0.15)
    assert numbers["ece"] > 0.1 and numbers["ece_repaired"] < 0.04


def test_where_nothing_is_wrong_nothing_is_repaired():
    panel = answers(subject(heat=1.0, wrong=0), Budget())
    assert panel.numbers["temperature"] == pytest.approx(1.0, rel=0.15)
    assert "No temperature lowers the calibration error much" in panel.findings[1].sentence
    assert len(panel.findings[1].figure["series"]) == 1


@pytest.mark.parametrize("seed", range(5))
def test_the_class_that_is_mistaken_is_named_with_what_it_is_taken_for(seed):
    panel = answers(subject(heat=1.0, wrong=0.9, seed=seed), Budget())
    assert panel.numbers["confusions"][0]["true"] == "cat" and panel.numbers["confusions"][0]["answered"] == "bee"
    assert panel.numbers["harder"] == ["cat"] and "The hardest class is 'cat'" in panel.findings[2].sentence
    assert "it answers 'bee' where 'cat' is true" in panel.findings[2].sentence


def in_ten_classes(right: list[float], rows: int, seed: int) -> Subject:
    """A model that knows of each class the share ``right`` of its ``rows`` test examples, but for chance."""
    chance = np.random.default_rng(seed)
    labels = np.tile(np.arange(10), 3 * rows)
    known = chance.random(len(labels)) < np.asarray(right)[labels]
    told = np.where(known, labels, (labels + chance.integers(1, 10, len(labels))) % 10)
    data = ArraySource(np.eye(10, dtype=np.float32)[told] * 5, labels=labels, classes=[f"class {k}" for k in range(10)])
    splits = {split: torch.arange(at, len(labels), 3) for at, split in enumerate(("train", "validation", "test"))}
    data.splits = {split: part for split, part in splits.items()}
    return Subject(data, answer=lambda inputs: inputs)


@pytest.mark.parametrize("seed", range(5))
def test_all_classes_that_were_planted_as_hard_are_named_and_no_other(seed):
    panel = answers(in_ten_classes([0.9] * 8 + [0.6, 0.5], 200, seed), Budget())
    assert set(panel.numbers["harder"]) == {"class 8", "class 9"}
    assert "The recall of 2 classes is clearly below the accuracy" in panel.findings[2].sentence
    one = answers(in_ten_classes([0.9] * 9 + [0.5], 200, seed), Budget()).findings[2].sentence
    assert one.startswith("The hardest class is 'class 9'") and "clearly below" in one


@pytest.mark.parametrize(("right", "rows"), [(0.8, 100), (0.98, 30)])  # few rows, nearly all right: Wilson's fails
def test_of_classes_that_are_equally_hard_none_is_called_hardest(right, rows):
    quiet = 0
    for seed in range(10):
        panel = answers(in_ten_classes([right] * 10, rows, seed), Budget())
        sentence, numbers = panel.findings[2].sentence, panel.numbers
        quiet += not numbers["harder"] and "No class is clearly harder" in sentence and "hardest" not in sentence
        assert "The most frequent mistake: " in sentence and panel.findings[2].number == min(numbers["recall"].values())
    assert quiet >= 9


def test_one_class_alone_and_classes_known_alike_are_said_to_be():
    same = answers(in_ten_classes([1.0] * 10, 20, 0), Budget()).findings[2].sentence
    assert same == "No class is harder than the others: the recall of each is 100.0 %."
    made = in_ten_classes([0.5] * 10, 20, 0)
    made.data.columns["labels"][:] = 3
    assert "of 'class 3', so no class can be harder" in answers(made, Budget()).findings[2].sentence


def test_the_interval_of_a_share_is_the_exact_one():
    assert of_share(1, 40) == pytest.approx((0.000633, 0.131586), abs=2e-6)  # scipy.stats.binomtest, "exact"
    assert of_share(0, 10) == pytest.approx((0.0, 1 - 0.025**0.1)) and of_share(10, 10)[1] == 1.0
    drawn = np.random.default_rng(0).binomial(30, 0.98, 4000)
    assert np.mean([of_share(int(one), 30)[1] < 0.98 for one in drawn]) <= 0.025


def test_a_model_that_has_learnt_nothing_is_said_to_have():
    labels = np.random.default_rng(0).choice(3, 3000, p=[0.6, 0.2, 0.2])
    data = ArraySource(
        np.random.default_rng(1).normal(size=(3000, 4)).astype(np.float32), labels=labels, classes=CLASSES
    )

    def always(inputs: Tensor) -> Tensor:
        return torch.tensor([1.0, 0.0, 0.0]).expand(len(inputs), 3)

    panel = answers(Subject(data, answer=always), Budget())
    assert "learnt next to nothing" in panel.findings[0].sentence
    assert panel.numbers["majority_class"]["class"] == "ant"
    assert panel.numbers["accuracy"] == pytest.approx(panel.numbers["majority_class"]["accuracy"])


def test_without_labels_there_is_a_note_and_no_number():
    data = subject(1.0).data
    data.columns["labels"][data.splits["test"]] = -1
    panel = answers(Subject(data, answer=lambda inputs: inputs), Budget())
    assert not panel.findings and "no test example has a label" in panel.notes[0]


def test_what_is_known_of_validation_examples_stands_by_itself():
    made = subject(heat=3.0, wrong=0.9)
    numbers = answers(made, Budget()).numbers
    held, rows = numbers["validation"], made.data.splits["validation"]
    right = (made.logits("validation").argmax(1) == made.labels(rows)).double()
    assert held["examples"] == len(rows) and held["accuracy"] == pytest.approx(float(right.mean()))
    assert held["accuracy"] != numbers["accuracy"] and sum(held["rows"].values()) == len(rows)
    assert held["recall"]["cat"] == pytest.approx(float(right[made.labels(rows) == 2].mean()))


@pytest.mark.parametrize("seed", range(5))
def test_the_interval_of_the_temperature_holds_what_was_planted(seed):
    numbers = answers(subject(heat=3.0, wrong=0, seed=seed), Budget()).numbers
    low, high = numbers["validation"]["temperature"]
    assert low < numbers["temperature"] < high and low < 3.3 and high > 2.7 and high < 1.6 * low


def test_few_validation_examples_leave_the_temperature_open():
    made = subject(heat=3.0, wrong=0)
    splits = dict(made.data.splits)
    splits["validation"] = splits["validation"][:12]
    made.data.splits = splits
    low, high = answers(made, Budget()).numbers["validation"]["temperature"]
    assert high > 2 * low
    made.data.columns["labels"][splits["validation"]] = -1
    numbers = answers(Subject(made.data, answer=lambda inputs: inputs), Budget()).numbers
    assert numbers["validation"] is None and numbers["temperature"] is None
    made.data.splits = {**splits, "validation": splits["validation"][:0]}
    assert answers(Subject(made.data, answer=lambda inputs: inputs), Budget()).numbers["validation"] is None
