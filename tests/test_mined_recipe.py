"""A mined recipe: only what a panel gives a reason for is changed, and it reads as it was chosen."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stillroom.mining import Panel
from stillroom.pipeline.mined_recipe import _changed as changed
from stillroom.pipeline.mined_recipe import as_yaml, beside, choose, labels_part, temperature
from stillroom.recipe import read_recipe

TEXT = """
name: hand
data: {use: fashion-mnist-sample, labels: 1000}
teacher: {model: mlp, hidden: [32]}
student: {model: net, hidden: 6}
objectives: [{use: labels, weight: 0.1}, {use: kd, temperature: 2, weight: 0.9}]
arms:
  kd: {}
  other: {objectives: [{use: kd, temperature: 7}, {use: labels, smoothing: 0.1, weight: {from: 1, to: 0, until: 0.5}}]}
"""
LOGITS = torch.tensor([[6.0, 2.0, 1.0], [1.0, 7.0, 2.0]])


def panels(**more):
    numbers = {"answers": {"accuracy": 0.8, "temperature": 1.6}, "similarity": {"pairs_again": 0.95}, **more}
    return {name: Panel(name, numbers=one) for name, one in numbers.items()}


def chosen(found, logits=LOGITS, student=None):
    recipe = read_recipe(TEXT)
    return recipe.resolved(), choose(recipe, found, logits, student)


def test_nothing_found_changes_the_name_alone():
    resolved, choices = chosen({})
    assert choices.values == {("name",): "hand-mined"} and list(choices.reasons) == [("name",)]
    assert changed(resolved, choices.values) == {**resolved, "name": "hand-mined"}


def test_the_text_reads_as_the_choices_and_tells_why():
    resolved, choices = chosen(panels(students={"classes": [{"class": "shirt: grey", "lost": 0.05}]}))
    values = changed(resolved, choices.values)
    text = as_yaml(values, choices.reasons)
    assert read_recipe(text).resolved() == values
    weights = [one["weight"] for one in values["objectives"]]
    assert weights == pytest.approx([0.2, 0.8]) and values["student"] == resolved["student"]
    lines = text.splitlines()
    at = next(place for place, line in enumerate(lines) if "temperature:" in line)
    assert lines[at - 1].strip().startswith("#") and "# The student lost most on shirt: grey (5.0 points)" in text
    warm = [one[0]["temperature"] for one in (values["objectives"][1:], values["arms"]["other"]["objectives"])]
    assert warm[0] == warm[1] == temperature({"temperature": 1.6}, {"pairs_again": 0.95}, LOGITS)[0]
    assert values["arms"]["other"]["objectives"][1]["weight"]["from"] == 1


def test_warmth_rises_until_a_quarter_lies_beside_where_likeness_is_firm():
    warm, _ = temperature({"temperature": 1.6}, {"pairs_again": 0.95}, LOGITS)
    assert beside(LOGITS, warm) >= 0.25 > beside(LOGITS, warm - 0.5)
    loose, why = temperature({"temperature": 1.6}, {"pairs_again": 0.3}, LOGITS)
    assert loose == 1.5 and "30 % stay" in why
    assert temperature({}, {"pairs_again": 1.0}, LOGITS) is None
    assert temperature({"temperature": 0.4}, {}, LOGITS)[0] == 1.0


@pytest.mark.parametrize(("right", "part"), [(1.0, 0.05), (0.8, 0.2), (0.3, 0.5)])
def test_labels_count_as_often_as_the_teacher_is_wrong(right, part):
    assert labels_part({"accuracy": right})[0] == part


@pytest.mark.parametrize(("wanted", "hidden"), [(9, 9), (4, None)])
def test_a_student_is_widened_and_never_narrowed(wanted, hidden):
    class Pupil:
        module = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 3))

    _, choices = chosen(panels(layers={"suggested_width": wanted}), student=Pupil())
    assert choices.values.get(("student", "hidden")) == hidden
