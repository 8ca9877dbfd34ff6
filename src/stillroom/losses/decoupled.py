"""Losses that take the teacher's answer apart: the probability of the true class, and the shape of all others."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from stillroom.contracts import Labels, Logits
from stillroom.losses._shared import floor_of, is_label, kl, log_of_label, mean_of_labelled, wide

Weight = Annotated[float, Field(ge=0)]
Temperature = Annotated[float, Field(gt=0)]


def _others(logits: Tensor, target: Tensor) -> Tensor:
    """Return the logits with the true class made impossible."""
    return logits.masked_fill(target, floor_of(logits))


def _target_or_not(logits: Tensor, target: Tensor, labels: Tensor) -> Tensor:
    """Return the logarithms of (p_t, 1 - p_t), each row's distribution over "the true class" and "another": (B, 2)."""
    rest = torch.logsumexp(_others(logits, target), dim=1) - torch.logsumexp(logits, dim=1)
    return torch.stack([log_of_label(torch.log_softmax(logits, dim=1), labels), rest], dim=1)


def dkd(
    student_logits: Logits,
    teacher_logits: Logits,
    labels: Labels,
    *,
    temperature: Temperature = 4.0,
    alpha: Weight = 1.0,
    beta: Weight = 8.0,
) -> Tensor:
    """Decoupled knowledge distillation: T^2 (alpha TCKD + beta NCKD), in nats.

    Zhao et al. 2022 (https://arxiv.org/abs/2203.08679). TCKD is the KL between the two models' (p_t, 1 - p_t), t the
    true class; NCKD the KL between their distributions over the other classes. With alpha = 1 and beta = 1 - p_t of
    the teacher, a row's value is :func:`kd`'s. Sum over classes, mean over the batch, as in the authors' mdistiller,
    which takes logarithms of sums where we subtract them (no infinity where a model is sure) and lets the weight grow
    over its first 20 epochs: ``weight: {from: 0, to: 1, until: 0.08}``. Rows without a label are left out of the mean.

    Shapes: logits (B, C) twice, ``labels`` (B) int64 in -1 .. C - 1; returns a scalar, 0 at equality.

    Raises:
        LossError: a label is out of range.
    """
    student, teacher = wide(student_logits) / temperature, wide(teacher_logits) / temperature
    target = is_label(student, labels)
    tckd = kl(_target_or_not(teacher, target, labels), _target_or_not(student, target, labels))
    nckd = kl(*(torch.log_softmax(_others(logits, target), dim=1) for logits in (teacher, student)))
    return mean_of_labelled(alpha * tckd + beta * nckd, labels) * temperature**2


def nkd(
    student_logits: Logits,
    teacher_logits: Logits,
    labels: Labels,
    *,
    temperature: Temperature = 1.0,
    gamma: Weight = 1.5,
) -> Tensor:
    """Normalised knowledge distillation: cross-entropy with the teacher on the true class and, apart, on the others.

    Yang et al. 2023 (https://arxiv.org/abs/2303.13005): -p_t log q_t - gamma T^2 sum over the others of p' log q',
    with p', q' renormalised over the classes that are not the true one t. ``temperature`` touches that second term
    only, as in the authors' code (cls_KD). Mean over the batch; rows without a label are left out. Its second term is a
    cross-entropy, so the value at equality is not 0, and its first one always asks for a larger q_t.

    Shapes: logits (B, C) twice, ``labels`` (B) int64 in -1 .. C - 1; returns a scalar.

    Raises:
        LossError: a label is out of range.
    """
    student, teacher = wide(student_logits), wide(teacher_logits)
    target = is_label(student, labels)
    log_q = log_of_label(torch.log_softmax(student, dim=1), labels)
    p = log_of_label(torch.log_softmax(teacher, dim=1), labels).exp()
    log_others = torch.log_softmax(_others(student / temperature, target), dim=1)
    others = torch.softmax(_others(teacher / temperature, target), dim=1)
    value = -p * log_q - gamma * temperature**2 * (others * log_others).sum(1)
    return mean_of_labelled(value, labels)
