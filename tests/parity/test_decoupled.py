"""DKD and NKD against the papers' formulas, row by row."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from derive import check, drawn, kl, softmax

from stillroom.errors import LossError
from stillroom.losses import dkd, kd, labels, nkd

ROWS, CLASSES = 5, 4
TRUTH = torch.tensor([0, 3, -1, 2, 1])


def without(row: np.ndarray, label: int) -> np.ndarray:
    return np.delete(row, label)


def dkd_by_formula(student, teacher, truth, temperature, alpha, beta) -> float:
    rows = []
    for z, v, t in zip(student, teacher, truth.tolist(), strict=True):
        if t < 0:
            continue
        q, p = softmax(z / temperature), softmax(v / temperature)
        target = kl([p[t], 1 - p[t]], [q[t], 1 - q[t]])
        others = kl(without(p, t) / (1 - p[t]), without(q, t) / (1 - q[t]))
        rows.append(temperature**2 * (alpha * target + beta * others))
    return float(np.mean(rows))


@pytest.mark.parametrize("options", [(4.0, 1.0, 8.0), (1.0, 0.5, 2.0), (2.0, 0.0, 1.0), (1.0, 1.0, 0.0)])
def test_dkd_is_the_papers_formula(options):
    student, teacher = drawn(1, ROWS, CLASSES, scale=2), drawn(2, ROWS, CLASSES, scale=2)
    temperature, alpha, beta = options
    check(
        dkd,
        lambda given: dkd_by_formula(given, teacher.numpy(), TRUTH, *options),
        student,
        teacher,
        TRUTH,
        temperature=temperature,
        alpha=alpha,
        beta=beta,
    )


def test_the_defaults_of_dkd_are_the_authors():
    student, teacher = drawn(1, ROWS, CLASSES), drawn(2, ROWS, CLASSES)
    expected = dkd_by_formula(student.numpy(), teacher.numpy(), TRUTH, 4.0, 1.0, 8.0)
    assert float(dkd(student, teacher, TRUTH)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dkd_with_beta_one_minus_p_of_the_label_is_kd_row_by_row(temperature):
    student, teacher = drawn(3, ROWS, CLASSES, scale=2), drawn(4, ROWS, CLASSES, scale=2)
    for row in range(ROWS):
        label = row % CLASSES
        one = (student[row : row + 1].requires_grad_(), teacher[row : row + 1])
        beta = 1 - float(torch.softmax(one[1] / temperature, 1)[0, label])
        apart = dkd(*one, torch.tensor([label]), temperature=temperature, alpha=1.0, beta=beta)
        whole = kd(*one, temperature=temperature)
        assert float(apart) == pytest.approx(float(whole), rel=1e-6)
        gradients = [torch.autograd.grad(value, one[0])[0] for value in (apart, whole)]
        assert torch.allclose(*gradients, rtol=1e-5, atol=1e-7)


def test_dkd_by_hand():
    # Three classes alike for the teacher, (1/2, 1/4, 1/4) for the student; the true class is the first.
    student, teacher = torch.tensor([[math.log(2.0), 0.0, 0.0]]), torch.zeros(1, 3)
    target = 1 / 3 * math.log((1 / 3) / (1 / 2)) + 2 / 3 * math.log((2 / 3) / (1 / 2))
    assert float(dkd(student, teacher, torch.tensor([0]), temperature=1)) == pytest.approx(target, rel=1e-5)
    # And with the second one true, the others are (2/3, 1/3) against (1/2, 1/2).
    target = 1 / 3 * math.log((1 / 3) / (1 / 4)) + 2 / 3 * math.log((2 / 3) / (3 / 4))
    others = 0.5 * math.log(0.5 / (2 / 3)) + 0.5 * math.log(0.5 / (1 / 3))
    value = float(dkd(student, teacher, torch.tensor([1]), temperature=1, alpha=2, beta=3))
    assert value == pytest.approx(2 * target + 3 * others, rel=1e-5)


def test_two_classes_have_no_others():
    student, teacher, truth = drawn(1, 3, 2), drawn(2, 3, 2), torch.tensor([0, 1, 1])
    assert float(dkd(student, teacher, truth, alpha=0)) == pytest.approx(0, abs=1e-12)
    assert float(dkd(student, teacher, truth)) == pytest.approx(float(kd(student, teacher)), rel=1e-6)


def nkd_by_formula(student, teacher, truth, temperature, gamma) -> float:
    rows = []
    for z, v, t in zip(student, teacher, truth.tolist(), strict=True):
        if t < 0:
            continue
        q, p = softmax(without(z, t) / temperature), softmax(without(v, t) / temperature)
        rows.append(-softmax(v)[t] * np.log(softmax(z)[t]) - gamma * temperature**2 * (p * np.log(q)).sum())
    return float(np.mean(rows))


@pytest.mark.parametrize(("temperature", "gamma"), [(1.0, 1.5), (4.0, 0.5), (2.0, 0.0)])
def test_nkd_is_the_papers_formula(temperature, gamma):
    student, teacher = drawn(1, ROWS, CLASSES, scale=2), drawn(2, ROWS, CLASSES, scale=2)
    check(
        nkd,
        lambda given: nkd_by_formula(given, teacher.numpy(), TRUTH, temperature, gamma),
        student,
        teacher,
        TRUTH,
        temperature=temperature,
        gamma=gamma,
    )


def test_the_defaults_of_nkd_are_the_authors():
    student, teacher = drawn(1, ROWS, CLASSES), drawn(2, ROWS, CLASSES)
    expected = nkd_by_formula(student.numpy(), teacher.numpy(), TRUTH, 1.0, 1.5)
    assert float(nkd(student, teacher, TRUTH)) == pytest.approx(expected, rel=1e-9)


def test_nkd_of_a_teacher_that_is_sure_is_the_loss_of_labels():
    student, truth = drawn(1, ROWS, CLASSES), torch.arange(ROWS) % CLASSES
    teacher = 1e3 * torch.nn.functional.one_hot(truth, CLASSES).double()
    assert float(nkd(student, teacher, truth, gamma=0)) == pytest.approx(float(labels(student, truth)), rel=1e-9)


def test_nkd_is_least_over_the_others_at_the_teachers_shape():
    teacher, truth = drawn(2, ROWS, CLASSES), torch.arange(ROWS) % CLASSES
    student = teacher.clone().requires_grad_()
    gradient = torch.autograd.grad(nkd(student, teacher, truth, gamma=1.5), student)[0]
    pull = torch.autograd.grad(nkd(student, teacher, truth, gamma=0.0), student)[0]
    assert torch.allclose(gradient, pull, atol=1e-12), "at equality only the true class pulls"
    assert (gradient.gather(1, truth[:, None]) < 0).all(), "towards a surer student"


@pytest.mark.parametrize("loss", [dkd, nkd])
@pytest.mark.parametrize("sure", [1e2, 1e4])
def test_sure_models_give_finite_gradients(loss, sure):
    teacher = sure * drawn(2, ROWS, CLASSES).float()
    student = (sure * drawn(1, ROWS, CLASSES).float()).requires_grad_()
    value = loss(student, teacher, TRUTH)
    assert torch.isfinite(value) and torch.isfinite(torch.autograd.grad(value, student)[0]).all()


@pytest.mark.parametrize("loss", [dkd, nkd])
@pytest.mark.parametrize("wrong", [4, -2])
def test_a_label_out_of_range_is_named(loss, wrong):
    with pytest.raises(LossError, match=rf"got \[{wrong}\] where the model answers 4 classes"):
        loss(torch.randn(2, 4), torch.randn(2, 4), torch.tensor([0, wrong]))
