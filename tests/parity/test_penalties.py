"""Hints and weight penalties by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stillroom.losses import hint, l1, l2
from stillroom.objectives import match


def test_l1_and_l2_by_hand():
    weights = {"a": torch.tensor([[1.0, -2.0], [0.0, 3.0]]), "b": torch.tensor([[-0.5]])}
    assert float(l1(weights)) == 6.5 and float(l2(weights)) == 14.25


def test_their_gradients():
    values = torch.tensor([[1.0, -2.0, 0.0]], requires_grad=True)
    assert torch.autograd.grad(l1({"a": values}), values)[0].tolist() == [[1.0, -1.0, 0.0]]
    assert torch.autograd.grad(l2({"a": values}), values)[0].tolist() == [[2.0, -4.0, 0.0]]


@pytest.mark.parametrize(("name", "power"), [("l1", 1), ("l2", 2)])
def test_weights_are_counted_and_biases_and_scales_are_not(name, power):
    student = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 3))
    objective = match(name, weight=0.1)
    objective.bind(student)
    expected = sum(float(student[index].weight.detach().double().abs().pow(power).sum()) for index in (0, 3))
    assert float(objective({}, {}, {}).detach()) == pytest.approx(expected, rel=1e-6)
    objective({}, {}, {}).backward()
    assert student[0].bias.grad is None and student[1].weight.grad is None and student[3].weight.grad is not None


def test_a_hint_is_the_mean_of_squares():
    student = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, 2.0], [3.0, 8.0]])
    value = hint(student, teacher)
    assert float(value.detach()) == (1 + 16) / 4
    assert torch.autograd.grad(value, student)[0].tolist() == [[0.5, 0.0], [0.0, -2.0]]
