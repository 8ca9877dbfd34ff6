"""Teachers made of models: alone, together, averaged, and with a past."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stillroom.data.arrays import ArraySource
from stillroom.errors import ModelError
from stillroom.learner import Learner
from stillroom.objectives import match
from stillroom.settings import Training
from stillroom.teachers import Average, Live, MovingAverage, Previous, Together
from stillroom.train import train


def says(logits, **more):
    """A teacher that always answers the same."""
    return lambda batch: {"logits": torch.as_tensor(logits).expand(len(batch["id"]), -1), **more}


def batch(labels):
    rows = len(labels)
    ids = torch.stack([torch.arange(rows), torch.zeros(rows, dtype=torch.long)], 1)
    return {"id": ids, "inputs": torch.randn(rows, 4), "labels": torch.as_tensor(labels)}


def test_a_live_teacher_is_in_eval_mode_detached_and_as_it_was_afterwards():
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.9), nn.Linear(4, 2)).train()
    network[2].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    shown = Live(network, ["logits"])(batch([0, 1, 0]))
    assert not shown["logits"].requires_grad
    assert [part.training for part in network] == [True, True, False, True]
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_together_prefixes():
    shown = Together({"a": says([1.0, 2.0]), "b": says([0.0, 3.0], extra=torch.ones(1))})(batch([0]))
    assert sorted(shown) == ["a/logits", "b/extra", "b/logits"]


def test_an_average_is_the_mean_of_probabilities():
    shown = Average({"a": says([0.0, math.log(3.0)]), "b": says([math.log(3.0), 0.0])})(batch([0, 1]))
    assert torch.allclose(shown["logits"].softmax(1), torch.full((2, 2), 0.5))
    weighted = Average({"a": says([0.0, math.log(3.0)]), "b": says([math.log(3.0), 0.0])}, {"a": 3, "b": 1})(batch([0]))
    assert torch.allclose(weighted["logits"].softmax(1), torch.tensor([[0.75 * 0.25 + 0.25 * 0.75, 0.625]]))


def test_confidence_weighs_each_example_by_who_knows_its_label():
    left, right = [math.log(9.0), 0.0], [0.0, math.log(9.0)]
    shown = Average({"left": says(left), "right": says(right)}, "confidence")(batch([0, 1, -1]))
    surprise = torch.tensor([-math.log(0.9), -math.log(0.1)])
    knows = 1 - surprise.softmax(0)[0]
    expected = knows * 0.9 + (1 - knows) * 0.1
    found = shown["logits"].softmax(1)
    assert torch.allclose(found[0, 0], expected) and torch.allclose(found[1, 1], expected)
    assert torch.allclose(found[2], torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize("weights", [{"a": 1.0}, {"a": -1.0, "b": 2.0}, {"a": 0.0, "b": 0.0}])
def test_weights_that_do_not_fit_are_refused(weights):
    with pytest.raises(ModelError, match="Name them alike"):
        Average({"a": says([0.0]), "b": says([0.0])}, weights)


def test_confidence_needs_two_teachers():
    with pytest.raises(ModelError, match="two teachers"):
        Average({"a": says([0.0])}, "confidence")


def test_a_moving_average_moves_by_its_share():
    student = nn.Linear(2, 2)
    teacher = MovingAverage(student, decay=0.75)
    before = teacher.follower.copy.weight.clone()
    with torch.no_grad():
        student.weight += 1
    teacher.advance(0)
    assert torch.allclose(teacher.follower.copy.weight, before + 0.25)


def test_the_previous_epoch_is_taken_over_at_its_end_only():
    student = nn.Linear(2, 2)
    teacher = Previous(student, every=3)
    start = teacher.follower.copy.weight.clone()
    for step in range(6):
        with torch.no_grad():
            student.weight += 1
        teacher.advance(step)
        expected = start + (step + 1) // 3 * 3
        assert torch.allclose(teacher.follower.copy.weight, expected)
    with pytest.raises(ModelError, match="length of an epoch"):
        Previous(student, every=0)


def test_ps_kd_has_the_gradient_of_its_paper():
    """labels and kd at temperature 1, weighted 1 - a and a, against cross-entropy with the mixed target."""
    logits = torch.randn(5, 3, requires_grad=True)
    past, labels, share = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0]), 0.3
    mixed = (1 - share) * F.one_hot(labels, 3) + share * past.softmax(1)
    (wanted,) = torch.autograd.grad(-(mixed * logits.log_softmax(1)).sum(1).mean(), logits)
    ours = (1 - share) * match("labels")({"logits": logits}, {}, {"labels": labels})
    distil = match("kd", temperature=1.0)
    distil.sized = True
    (found,) = torch.autograd.grad(ours + share * distil({"logits": logits}, {"logits": past}, {}), logits)
    assert torch.allclose(found, wanted, atol=1e-6)


def test_a_previous_epoch_teacher_resumes_bit_identically(tmp_path):
    data = ArraySource(torch.randn(30, 4), torch.arange(30) % 2, splits={"train": torch.arange(30)})

    def run(folder, stop=None):
        torch.manual_seed(0)
        student = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
        ramp = {"from": 0, "to": 0.8, "until": 1}
        learner = Learner(student, ["labels", match("kd", temperature=1.0, weight=ramp)])
        settings = Training(steps=8, batch=10, checkpoint_every=4)
        for step in train(learner, data, Previous(student, every=3), settings, folder=folder):
            if step.number == stop:
                break
        return student.state_dict()

    whole = run(tmp_path / "whole")
    run(tmp_path / "part", stop=5)
    resumed = run(tmp_path / "part")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
