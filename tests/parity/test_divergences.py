"""Divergences of sequence models against their formulas, token by token."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from derive import check, drawn, kl, softmax

from stillroom.losses import forward_kl, jsd, kd, reverse_kl, skew_kl

ROWS, TIME, CLASSES = 3, 4, 5
STUDENT, TEACHER = drawn(1, ROWS, TIME, CLASSES, scale=2), drawn(2, ROWS, TIME, CLASSES, scale=2)
SHORT = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]).bool()
OTHER = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]).bool()
FORMULAS = {
    forward_kl: lambda p, q: kl(p, q),
    reverse_kl: lambda p, q: kl(q, p),
    skew_kl: lambda p, q, skew=0.1: kl(p, skew * p + (1 - skew) * q),
    jsd: lambda p, q, beta=0.5: beta * kl(p, beta * p + (1 - beta) * q) + (1 - beta) * kl(q, beta * p + (1 - beta) * q),
}
LOSSES = list(FORMULAS)
CASES = [
    (forward_kl, {}),
    (reverse_kl, {}),
    (skew_kl, {}),
    (skew_kl, {"skew": 0.0}),
    (skew_kl, {"skew": 0.6}),
    (jsd, {}),
    (jsd, {"beta": 0.1}),
    (jsd, {"beta": 0.9}),
]


def by_formula(loss, student, teacher, mask, **options) -> float:
    """Mean over the tokens that count, all texts together."""
    student, teacher = student.reshape(-1, CLASSES), teacher.reshape(-1, CLASSES)
    use = [True] * len(student) if mask is None else mask.flatten().tolist()
    values = [
        FORMULAS[loss](softmax(v), softmax(z), **options)
        for z, v, one in zip(student, teacher, use, strict=True)
        if one
    ]
    return float(np.mean(values))


@pytest.mark.parametrize(("loss", "options"), CASES)
@pytest.mark.parametrize("masks", [(None, None), (SHORT, None), (None, SHORT), (SHORT, OTHER)])
def test_the_formula_over_the_tokens_that_both_sides_have(loss, options, masks):
    both = None
    for mask in masks:
        both = mask if both is None else both if mask is None else both & mask
    check(
        loss,
        lambda given: by_formula(loss, given, TEACHER.numpy(), both, **options),
        STUDENT,
        TEACHER,
        *masks,
        **options,
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_rows_without_time(loss):
    student, teacher = STUDENT[:, 0], TEACHER[:, 0]
    check(loss, lambda given: by_formula(loss, given, teacher.numpy(), None), student, teacher)
    assert float(loss(student[:, None], teacher[:, None])) == pytest.approx(float(loss(student, teacher)), rel=1e-12)


def test_the_defaults():
    assert float(skew_kl(STUDENT, TEACHER)) == float(skew_kl(STUDENT, TEACHER, skew=0.1))
    assert float(jsd(STUDENT, TEACHER)) == float(jsd(STUDENT, TEACHER, beta=0.5))


def test_by_hand():
    # The teacher (1/2, 1/2), the student (3/4, 1/4).
    student, teacher = torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2)
    forward = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert float(forward_kl(student, teacher)) == pytest.approx(forward, rel=1e-5)
    reverse = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert float(reverse_kl(student, teacher)) == pytest.approx(reverse, rel=1e-5)
    half = 0.5 * math.log(0.5 / 0.625) + 0.5 * math.log(0.5 / 0.375)
    assert float(skew_kl(student, teacher, skew=0.5)) == pytest.approx(half, rel=1e-5)


def test_forward_is_kd_at_temperature_one_and_reverse_is_forward_the_other_way_round():
    assert float(forward_kl(STUDENT[:, 0], TEACHER[:, 0])) == pytest.approx(
        float(kd(STUDENT[:, 0], TEACHER[:, 0], temperature=1.0)), rel=1e-6
    )
    assert float(reverse_kl(STUDENT, TEACHER, SHORT)) == float(forward_kl(TEACHER, STUDENT, SHORT))


def test_jsd_is_symmetric_and_bounded_by_ln_2():
    assert float(jsd(STUDENT, TEACHER)) == pytest.approx(float(jsd(TEACHER, STUDENT)), rel=1e-12)
    apart = torch.tensor([[50.0, -50.0]])
    assert float(jsd(apart, -apart)) == pytest.approx(math.log(2), rel=1e-6)
    for seed in range(20):
        assert float(jsd(drawn(seed, 1, CLASSES, scale=9), drawn(seed + 50, 1, CLASSES, scale=9))) <= math.log(2)
    assert float(jsd(STUDENT, TEACHER, beta=0.3)) == pytest.approx(float(jsd(TEACHER, STUDENT, beta=0.7)), rel=1e-12)


def test_jsd_goes_to_both_kls():
    small = 1e-5
    assert float(jsd(STUDENT, TEACHER, beta=small)) / small == pytest.approx(
        float(forward_kl(STUDENT, TEACHER)), rel=1e-3
    )
    assert float(jsd(STUDENT, TEACHER, beta=1 - small)) / small == pytest.approx(
        float(reverse_kl(STUDENT, TEACHER)), rel=1e-3
    )


def test_skew_goes_to_the_forward_kl_and_is_bounded():
    assert float(skew_kl(STUDENT, TEACHER, skew=0.0)) == float(forward_kl(STUDENT, TEACHER))
    assert float(skew_kl(STUDENT, TEACHER, skew=1e-7)) == pytest.approx(float(forward_kl(STUDENT, TEACHER)), rel=1e-3)
    apart = torch.tensor([[90.0, -90.0]])
    assert float(skew_kl(apart, -apart, skew=0.1)) == pytest.approx(-math.log(0.1), rel=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_padding_neither_counts_nor_pulls(loss):
    student = STUDENT.clone().requires_grad_()
    gradient = torch.autograd.grad(loss(student, TEACHER, SHORT), student)[0]
    assert not gradient[~SHORT].any() and gradient[SHORT].abs().sum(1).min() > 0
    wild = torch.where(SHORT[..., None], STUDENT, torch.full_like(STUDENT, 1e4))
    assert float(loss(wild, TEACHER, SHORT)) == pytest.approx(float(loss(STUDENT, TEACHER, SHORT)), rel=1e-12)
