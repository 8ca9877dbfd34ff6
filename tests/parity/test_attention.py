"""Attention transfer and MiniLMv2's relations against their formulas, derived once more in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from derive import check, drawn, rotation, softmax
from derive import kl as divergence
from torch import Tensor

from stillroom.errors import LossError
from stillroom.losses import attention_relations, attention_transfer


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


# --- MiniLMv2's relations --------------------------------------------------------------------------------------------

TEXTS, TIME, WIDTH = 3, 4, 6
SHORT = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0]]).bool()


def relations_by_formula(student, teacher, mask, heads) -> float:
    """Mean over texts of the mean over heads and tokens of KL(teacher's relations || student's)."""
    texts = []
    for mine, theirs, use in zip(student, teacher, mask.tolist(), strict=True):
        tokens, values = [index for index, one in enumerate(use) if one], []
        for head in range(heads):
            both = []
            for vectors in (theirs, mine):
                wide = vectors.shape[1] // heads
                part = vectors[tokens, head * wide : (head + 1) * wide]
                both.append([softmax([float(a @ b) / math.sqrt(wide) for b in part]) for a in part])
            values += [divergence(p, q) for p, q in zip(*both, strict=True)]
        texts.append(float(np.mean(values)) if values else 0.0)
    return float(np.mean(texts))


@pytest.mark.parametrize("heads", [1, 2, 3])
@pytest.mark.parametrize("masks", [(None, None), (SHORT, None), (None, SHORT), (SHORT, SHORT)])
def test_relations_are_the_papers_formula_without_the_padding(heads, masks):
    student, teacher = drawn(1, TEXTS, TIME, WIDTH), drawn(2, TEXTS, TIME, 2 * WIDTH)
    mask = torch.ones_like(SHORT) if masks == (None, None) else SHORT
    check(
        attention_relations,
        lambda given: relations_by_formula(given, teacher.numpy(), mask, heads),
        student,
        teacher,
        *masks,
        heads=heads,
    )


def test_relations_by_hand():
    # Two tokens of width 1: the teacher's are alike; the student's are 1 and 0, related (e, 1) / (e + 1) and evenly.
    student, teacher = torch.tensor([[[1.0], [0.0]]]), torch.tensor([[[2.0], [2.0]]])
    p = math.e / (math.e + 1)
    expected = (0.5 * math.log(0.5 / p) + 0.5 * math.log(0.5 / (1 - p)) + 0) / 2
    assert float(attention_relations(student, teacher)) == pytest.approx(expected, rel=1e-5)


def test_relations_do_not_turn_with_the_vectors_and_padding_pulls_nothing():
    student, teacher = drawn(1, TEXTS, TIME, WIDTH), drawn(2, TEXTS, TIME, WIDTH)
    value = float(attention_relations(student, teacher))
    turned = student @ rotation(WIDTH)
    assert float(attention_relations(turned, teacher)) == pytest.approx(value, rel=1e-9)
    assert float(attention_relations(turned, student)) == pytest.approx(0, abs=1e-12)
    assert float(attention_relations(turned, student, heads=2)) > 1e-3, "within heads they do"
    student.requires_grad_()
    gradient = torch.autograd.grad(attention_relations(student, teacher, SHORT, SHORT), student)[0]
    assert not gradient[~SHORT].any() and gradient[0].any()


@pytest.mark.parametrize(
    ("shape", "heads", "message"),
    [((2, 4, 6), 4, r"got 4 heads for the student's width 6"), ((2, 5, 6), 1, r"\(2, 5, 6\).*\(2, 4, 6\)")],
)
def test_what_cannot_be_related_is_said(shape, heads, message):
    with pytest.raises(LossError, match=message):
        attention_relations(torch.zeros(shape), torch.zeros(2, 4, 6), heads=heads)
