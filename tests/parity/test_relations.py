"""The bank loss against its formula, derived once more in float64, row by row."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from stillroom.losses import bank

ROWS, OTHERS, WIDTH = 4, 6, 3


def drawn(seed: int, rows: int) -> Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(left: list[float], right: list[float]) -> float:
    return math.fsum(a * b for a, b in zip(left, right, strict=True)) / math.hypot(*left) / math.hypot(*right)


def distribution(row: Tensor, rows: Tensor, mask: list[bool], temperature: float) -> list[float]:
    """A softmax over the similarities to those rows of the bank that count."""
    scores = [cosine(row.tolist(), other.tolist()) / temperature for other, use in zip(rows, mask, strict=True) if use]
    powers = [math.exp(score - max(scores)) for score in scores]
    return [power / math.fsum(powers) for power in powers]


def by_formula(student, teacher, others, mask, temperature, teacher_temperature) -> float:
    rows = []
    for mine, theirs, use in zip(student, teacher, mask.tolist(), strict=True):
        p = distribution(theirs, others, use, teacher_temperature)
        q = distribution(mine, others, use, temperature)
        rows.append(math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    return math.fsum(rows) / len(rows)


@pytest.mark.parametrize("temperatures", [(0.07, None), (0.5, None), (0.2, 0.1)])
def test_the_formula_with_and_without_the_rows_of_the_batch_itself(temperatures):
    student, teacher, others = drawn(1, ROWS), drawn(2, ROWS), drawn(3, OTHERS)
    some = torch.ones(ROWS, OTHERS, dtype=torch.bool)
    some[0, 2] = some[3, 5] = False
    temperature, teachers = temperatures
    options = {"temperature": temperature, "teacher_temperature": teachers}
    for mask in (torch.ones_like(some), some):
        expected = by_formula(student, teacher, others, mask, temperature, teachers or temperature)
        value = float(bank(student.float(), teacher.float(), others.float(), mask, **options))
        assert abs(value - expected) <= 2e-6 * expected
    everything = float(bank(student.float(), teacher.float(), others.float(), **options))
    assert everything == pytest.approx(
        by_formula(student, teacher, others, torch.ones_like(some), temperature, teachers or temperature), rel=2e-6
    )


def test_the_gradient_is_that_of_finite_differences():
    student, teacher, others = drawn(1, ROWS).requires_grad_(), drawn(2, ROWS), drawn(3, OTHERS)
    mask = torch.rand(ROWS, OTHERS, generator=torch.Generator().manual_seed(4)) < 0.7
    mask[1] = False
    assert torch.autograd.gradcheck(lambda rows: bank(rows, teacher, others, mask, temperature=0.3), (student,))
    found = torch.autograd.grad(bank(student, teacher, others, mask), student)[0]
    narrow = student.detach().float().requires_grad_()
    in_float32 = torch.autograd.grad(bank(narrow, teacher.float(), others.float(), mask), narrow)[0].double()
    assert (in_float32 - found).norm() <= 2e-6 * found.norm()
    assert not found[1].any(), "a row without partners pulls nothing"


def test_by_hand():
    # At 0 degrees to one row of the bank and 90 to the other: p = (e, 1) / (e + 1); the student the other way round.
    others = torch.eye(2)
    value = float(bank(torch.tensor([[0.0, 5.0]]), torch.tensor([[3.0, 0.0]]), others, temperature=1.0))
    assert value == pytest.approx((math.e - 1) / (math.e + 1), rel=1e-6)


def test_nothing_is_lost_at_equality_whatever_the_sizes_of_the_vectors():
    teacher, others = drawn(2, ROWS).float(), drawn(3, OTHERS).float()
    assert float(bank(teacher, teacher, others)) == pytest.approx(0, abs=1e-6)
    assert float(bank(5 * teacher, teacher, 0.1 * others)) == pytest.approx(0, abs=1e-6)
    assert float(bank(teacher, teacher, others, temperature=0.2, teacher_temperature=0.1)) > 0.01
    assert float(bank(-teacher, teacher, others)) > 1
