"""Super-classes that were planted are found; where none were, none are."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from stillroom.data.arrays import ArraySource
from stillroom.mining import Budget, Subject
from stillroom.mining.similarity import similarity

CLASSES, ROWS = 12, 1500
SUPER = np.array([0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3])


def subject(strength: float, seed: int = 0) -> Subject:
    """Answers whose second choices lie in the first one's super-class, ``strength`` logits above the others."""
    chance = np.random.default_rng(seed)
    labels = chance.integers(0, CLASSES, ROWS)
    logits = chance.normal(size=(ROWS, CLASSES)) * 0.7 + strength * (SUPER[labels][:, None] == SUPER)
    logits[np.arange(ROWS), labels] += 8
    data = ArraySource(logits.astype(np.float32), labels=labels, classes=[f"class {one}" for one in range(CLASSES)])
    return Subject(data, answer=lambda inputs: inputs)


def member(groups: list[list[str]]) -> list[int]:
    found = [0] * CLASSES
    for number, group in enumerate(groups):
        for name in group:
            found[int(name.split()[1])] = number
    return found


@pytest.mark.parametrize("seed", range(5))
def test_planted_super_classes_are_found(seed):
    from sklearn.metrics import adjusted_rand_score

    panel = similarity(subject(2.0, seed), Budget())
    assert adjusted_rand_score(SUPER, member(panel.numbers["groups"])) >= 0.9
    assert panel.numbers["groups_again"] >= 0.9 and "4 families" in panel.findings[1].sentence
    top = panel.numbers["pairs"][0]["classes"]
    assert SUPER[int(top[0].split()[1])] == SUPER[int(top[1].split()[1])]


@pytest.mark.parametrize("seed", range(5))
def test_where_nothing_was_planted_no_families_are_told(seed):
    panel = similarity(subject(0.0, seed), Budget())
    assert panel.numbers["groups_again"] < 0.5 and "no firm families" in panel.findings[1].sentence
    assert panel.numbers["pairs"][0]["likeness"] < 1.5 * panel.numbers["even"]


def test_the_control_of_a_closed_model_knows_no_likeness():
    found = similarity(subject(2.0), Budget()).numbers
    assert abs(found["control"]["correlation"]) < 0.3
    assert found["control"]["strongest"] < 0.75 * found["pairs"][0]["likeness"]


def test_random_weights_are_the_control_of_a_model_that_can_be_opened():
    torch.manual_seed(0)
    data = subject(2.0).data
    module = nn.Linear(CLASSES, CLASSES)
    with torch.no_grad():
        module.weight.copy_(torch.eye(CLASSES))
        module.bias.zero_()
    panel = similarity(Subject(data, module), Budget())
    assert panel.numbers["control"]["correlation"] is None or abs(panel.numbers["control"]["correlation"]) < 0.5
    written = json.loads(panel.files["classes.json"])
    assert written["groups"] == panel.numbers["groups"]
    tree = panel.findings[1].figure["text"].splitlines()
    assert len(tree) == 2 * CLASSES - 1 and sum("class" in line for line in tree) == CLASSES


def test_two_classes_leave_nothing_to_compare():
    values = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    data = ArraySource(values, labels=values.argmax(1))
    panel = similarity(Subject(data, answer=lambda inputs: inputs), Budget())
    assert not panel.findings and "two classes" in panel.notes[0]


def test_a_class_that_is_never_answered_is_left_out_and_named():
    made = subject(2.0)
    made.data.columns["inputs"][:, 5] = -9
    panel = similarity(made, Budget())
    assert panel.numbers["left_out"] == ["class 5"] and "class 5" in panel.notes[0]


def test_how_firm_it_is_on_validation_examples_stands_by_itself():
    firm, loose = (similarity(subject(strength), Budget()).numbers["validation"] for strength in (2.0, 0.0))
    assert firm["examples"] == len(subject(2.0).data.splits["validation"])
    assert firm["groups_again"] > 0.8 > 0.65 > loose["groups_again"]
    assert firm["pairs_again"] > 0.5 > loose["pairs_again"], "likeness that is noise is never taken for firm"
    made = subject(2.0)
    made.data.splits = {**made.data.splits, "validation": made.data.splits["validation"][:0]}
    assert similarity(made, Budget()).numbers["validation"] is None


def test_validation_examples_say_nothing_of_test_examples():
    made = subject(2.0)
    inputs, rows = made.data.columns["inputs"], made.data.splits["validation"]
    before = similarity(subject(2.0), Budget()).numbers
    inputs[rows] = torch.randn(len(rows), CLASSES, generator=torch.Generator().manual_seed(0)).to(inputs.dtype)
    after = similarity(made, Budget()).numbers
    assert before["pairs_again"] == after["pairs_again"]
    assert after["validation"]["groups_again"] < before["validation"]["groups_again"]
