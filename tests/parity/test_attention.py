"""Attention transfer against the formula of Zagoruyko and Komodakis, derived once more in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from stillroom.losses import attention_transfer


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attention(maps: Tensor, power: float) -> list[list[float]]:
    """Each row's map: the mean over channels of |A|^p, as a vector of length 1."""
    rows = []
    for image in maps:
        summed = [
            math.fsum(abs(float(image[c, y, x])) ** power for c in range(image.shape[0])) / image.shape[0]
            for y in range(image.shape[1])
            for x in range(image.shape[2])
        ]
        length = math.sqrt(math.fsum(value**2 for value in summed))
        rows.append([value / length for value in summed])
    return rows


@pytest.mark.parametrize("power", [1.0, 2.0, 4.0])
def test_the_papers_formula(power):
    student, teacher = drawn(1, 3, 4, 3, 5), drawn(2, 3, 6, 3, 5)
    squares = [
        (a - b) ** 2
        for mine, theirs in zip(attention(student, power), attention(teacher, power), strict=True)
        for a, b in zip(mine, theirs, strict=True)
    ]
    expected = math.fsum(squares) / len(squares)
    value = float(attention_transfer(student.float(), teacher.float(), power=power))
    assert abs(value - expected) <= 2e-6 * expected


def test_the_gradient_is_that_of_finite_differences():
    student, teacher = drawn(1, 2, 3, 2, 2).requires_grad_(), drawn(2, 2, 4, 2, 2)
    found = torch.autograd.grad(attention_transfer(student, teacher), student)[0]
    assert torch.autograd.gradcheck(lambda maps: attention_transfer(maps, teacher), (student,))
    in_float32 = student.detach().float().requires_grad_()
    narrow = torch.autograd.grad(attention_transfer(in_float32, teacher.float()), in_float32)[0]
    assert (narrow.double() - found).norm() <= 1e-6 * found.norm()


def test_by_hand():
    # Squares are 9, 16, 0, 0 of length sqrt(337), against a teacher that looks at the last place only.
    student, teacher = torch.tensor([[[[3.0, 4.0], [0.0, 0.0]]]]), torch.tensor([[[[0.0, 0.0], [0.0, 2.0]]]])
    length = math.sqrt(9**2 + 16**2)
    expected = ((9 / length) ** 2 + (16 / length) ** 2 + 1) / 4
    assert float(attention_transfer(student, teacher)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("scale", [0.01, 7.0])
def test_the_size_sign_and_number_of_channels_do_not_matter(scale):
    maps, other = drawn(1, 3, 4, 3, 3).float(), drawn(2, 3, 5, 3, 3).float()
    value = attention_transfer(maps, other)
    assert torch.allclose(attention_transfer(scale * maps, other), value, rtol=1e-5)
    assert torch.allclose(attention_transfer(-maps, other * scale), value, rtol=1e-5)
    assert torch.allclose(attention_transfer(torch.cat([maps, maps], 1), other), value, rtol=1e-5)
    assert float(attention_transfer(scale * maps, maps)) < 1e-12


def test_the_larger_map_is_pooled_to_the_smaller():
    student, teacher = drawn(1, 2, 3, 8, 8).float(), drawn(2, 2, 3, 4, 4).float()
    pooled = student.unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean((3, 5))
    assert torch.allclose(attention_transfer(student, teacher), attention_transfer(pooled, teacher), rtol=1e-5)
    assert torch.allclose(attention_transfer(teacher, student), attention_transfer(student, teacher), rtol=1e-5)
