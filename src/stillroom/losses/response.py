"""Losses on what a model answers: its logits, compared with labels or with a teacher's logits."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from stillroom.contracts import UNLABELLED, Labels, Logits
from stillroom.errors import LossError

Temperature = Annotated[float, Field(gt=0)]


def labels(
    student_logits: Logits, labels: Labels, *, smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
) -> Tensor:
    """Cross-entropy with the true labels, in nats, mean over the labelled rows of the batch.

    Rows whose label is -1 are left out; a batch without a labelled row gives 0. ``smoothing`` mixes the
    one-hot target with the uniform one (Szegedy et al. 2016, https://arxiv.org/abs/1512.00567).

    Shapes: ``student_logits`` (B, C), ``labels`` (B) int64 in -1 .. C - 1; returns a scalar.

    Raises:
        LossError: a label is outside that range.
    """
    try:
        total = F.cross_entropy(
            student_logits, labels, ignore_index=UNLABELLED, reduction="sum", label_smoothing=smoothing
        )
    except IndexError as error:
        classes = student_logits.shape[1]
        wrong = labels[(labels < UNLABELLED) | (labels >= classes)].unique().tolist()
        raise LossError(
            f"Labels are out of range: got {wrong[:5]} where the model answers {classes} classes. "
            f"Allowed: 0 to {classes - 1}, or -1 for a row without a label. Number the classes from 0, "
            "or give the model as many outputs as there are classes."
        ) from error
    return total / (labels != UNLABELLED).sum().clamp(min=1)


def soften(teacher_logits: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Return the teacher's probabilities at a temperature, in float32: (B, C) -> (B, C)."""
    return torch.softmax(teacher_logits.float() / temperature, dim=1)


def kd_soft(student_logits: Tensor, teacher_probabilities: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Return :func:`kd` from probabilities that :func:`soften` made beforehand at the same temperature."""
    divergence = F.kl_div(
        torch.log_softmax(student_logits / temperature, dim=1), teacher_probabilities, reduction="sum"
    )
    return divergence * (temperature**2 / len(student_logits))


def kd(student_logits: Logits, teacher_logits: Logits, *, temperature: Temperature = 4.0) -> Tensor:
    """Knowledge distillation: T^2 KL(teacher || student) of the softened answers, in nats.

    Hinton, Vinyals and Dean 2015 (https://arxiv.org/abs/1503.02531). Summed over classes, mean over the
    batch, as in mdistiller. The paper minimises the cross-entropy, which differs by the teacher's entropy
    (no gradient); T^2 keeps the gradient's size when T changes.

    Shapes: (B, C) and (B, C); returns a scalar, 0 at equality up to a constant per row.
    """
    return kd_soft(student_logits, soften(teacher_logits, temperature=temperature), temperature=temperature)


def mse_logits(student_logits: Logits, teacher_logits: Logits) -> Tensor:
    """Mean squared difference of the logits, over batch and classes.

    Kim et al. 2021 (https://arxiv.org/abs/2105.08919). For logits whose row means agree, :func:`kd` tends to
    half this value as the temperature grows.

    Shapes: (B, C) and (B, C); returns a scalar in squared logits.
    """
    return F.mse_loss(student_logits, teacher_logits)
