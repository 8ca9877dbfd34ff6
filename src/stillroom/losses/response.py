"""Losses on what a model answers: its logits, compared with labels or with a teacher's logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from stillroom.contracts import UNLABELLED, Labels, Logits
from stillroom.errors import LossError, say
from stillroom.losses._shared import kl, out_of_range, wide

Temperature = Annotated[float, Field(gt=0)]
ClassWeights = Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=2)]


def labels(
    student_logits: Logits,
    labels: Labels,
    *,
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    class_weights: ClassWeights | None = None,
) -> Tensor:
    """Cross-entropy with the true labels, in nats, mean over the labelled rows of the batch.

    Rows whose label is -1 are left out; a batch without a labelled row gives 0. ``smoothing`` mixes the
    one-hot target with the uniform one (Szegedy et al. 2016, https://arxiv.org/abs/1512.00567). ``class_weights``, one
    for each class in its order, make it the mean weighted by that of each row's label, as PyTorch's ``weight`` does, so
    only their ratios count; unlike there, a row's smoothed target weighs as its label does.

    Shapes: ``student_logits`` (B, C), ``labels`` (B) int64 in -1 .. C - 1; returns a scalar.

    Raises:
        LossError: a label is outside that range, or there are not C class weights.
    """
    if class_weights is not None:
        return _weighted(student_logits, labels, smoothing, class_weights)
    try:
        total = F.cross_entropy(
            student_logits, labels, ignore_index=UNLABELLED, reduction="sum", label_smoothing=smoothing
        )
    except IndexError as error:
        raise out_of_range(labels, student_logits.shape[1]) from error
    return total / (labels != UNLABELLED).sum().clamp(min=1)


def _weighted(logits: Tensor, labels: Tensor, smoothing: float, weights: Sequence[float]) -> Tensor:
    if len(weights) != logits.shape[1]:
        given, allowed = f"{len(weights)} weights", f"{logits.shape[1]}, one for each class the model answers"
        raise LossError(say("There must be a weight for each class", given, allowed, "Change class_weights."))
    try:
        each = F.cross_entropy(logits, labels, ignore_index=UNLABELLED, reduction="none", label_smoothing=smoothing)
    except IndexError as error:
        raise out_of_range(labels, logits.shape[1]) from error
    by_class = torch.tensor(weights, dtype=each.dtype, device=each.device)
    rows = by_class[labels.clamp(min=0)] * (labels != UNLABELLED)
    return (each * rows).sum() / torch.where(rows.sum() > 0, rows.sum(), torch.ones_like(rows.sum()))


def soften(teacher_logits: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Return the teacher's probabilities at a temperature, at least in float32: (B, C) -> (B, C)."""
    return torch.softmax(wide(teacher_logits) / temperature, dim=1)


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


def _standardised(logits: Tensor) -> Tensor:
    """Return each row's z-scores: mean 0, (unbiased) standard deviation 1; one class alone gives 0."""
    centred = logits - logits.mean(1, keepdim=True)
    if logits.shape[1] == 1:
        return centred
    return centred / (logits.std(1, keepdim=True) + 1e-7)


def lskd(student_logits: Logits, teacher_logits: Logits, *, temperature: Temperature = 2.0) -> Tensor:
    """Logit standardisation: :func:`kd` of each row's z-scores, so that only the shape of the answer counts.

    Sun et al. 2024 (https://arxiv.org/abs/2403.01427). Unbiased standard deviation, 1e-7 added to it, T^2 KL, summed
    over classes, mean over the batch, as in the authors' code; their runs weigh it 9 against 0.9 for plain ``kd``, so
    part of what they report is weight. Scaling a row of logits by a positive number, or shifting it, changes nothing.

    Shapes: (B, C) and (B, C); returns a scalar, 0 where the logits of each row agree up to scale and shift.
    """
    student, teacher = (_standardised(wide(logits)) / temperature for logits in (student_logits, teacher_logits))
    divergence = kl(torch.log_softmax(teacher, dim=1), torch.log_softmax(student, dim=1))
    return divergence.mean() * temperature**2


def _correlation(student: Tensor, teacher: Tensor, dim: int) -> Tensor:
    """Pearson correlation along ``dim``; 0 where one side is constant."""
    student, teacher = (values - values.mean(dim, keepdim=True) for values in (student, teacher))
    length = torch.linalg.vector_norm(student, dim=dim)
    product = length * torch.linalg.vector_norm(teacher, dim=dim) + 1e-8
    # Where the student is constant (a head that begins with zeros), dividing by 1e-8 would burst its gradient.
    correlation: Tensor = (student * teacher).sum(dim) / torch.where(length > 1e-7, product, torch.ones_like(product))
    return correlation


def dist(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    temperature: Temperature = 1.0,
    beta: Annotated[float, Field(ge=0)] = 1.0,
    gamma: Annotated[float, Field(ge=0)] = 1.0,
) -> Tensor:
    """One minus the Pearson correlation of the probabilities: beta within rows plus gamma within columns, times T^2.

    DIST, Huang et al. 2022 (https://arxiv.org/abs/2205.10536). Rows compare the classes of one example (the paper's
    inter-class relation), columns the examples of one class (intra-class); means over rows and over columns, 1e-8 in
    the denominator, as in the authors' code. Affine maps of the *probabilities* do not matter; of the logits, only
    shifts. A constant row or column correlates 0 with anything, so a batch of one adds the constant ``gamma``;
    where the student's is constant its gradient is that of the covariance, 1e8 times smaller than in the authors' code.

    Shapes: (B, C) and (B, C); returns a scalar, 0 at equality.
    """
    student, teacher = (torch.softmax(wide(logits) / temperature, dim=1) for logits in (student_logits, teacher_logits))
    rows, columns = (1 - _correlation(student, teacher, dim).mean() for dim in (1, 0))
    return (beta * rows + gamma * columns) * temperature**2


def kd_multilabel(student_logits: Logits, teacher_logits: Logits, *, temperature: Temperature = 1.0) -> Tensor:
    """Knowledge distillation where each class is a yes or no of its own: T^2 KL of the sigmoids, in nats.

    Summed over classes, mean over the batch, as in the authors' code of multi-label logits distillation (Yang et al.
    2023, https://arxiv.org/abs/2308.06453), which knows no temperature and clamps probabilities at 1e-8.

    Shapes: (B, C) and (B, C); returns a scalar, 0 at equality.
    """
    student, teacher = (wide(logits) / temperature for logits in (student_logits, teacher_logits))
    yes = teacher.sigmoid() * (F.logsigmoid(teacher) - F.logsigmoid(student))
    no = (-teacher).sigmoid() * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    return (yes + no).sum(1).mean() * temperature**2


def regression(
    student_output: Logits, teacher_output: Logits, *, huber: Annotated[float, Field(gt=0)] | None = None
) -> Tensor:
    """Mean squared difference between a regressor's values and its teacher's, or the Huber loss from ``huber`` on.

    With ``huber`` d, half the square up to a difference of d and d (|difference| - d / 2) beyond (Huber 1964,
    https://doi.org/10.1214/aoms/1177703732): a teacher's rare wild value then pulls no harder than d.

    Shapes: equal, (B, outputs); returns a scalar in squared units, mean over batch and outputs, 0 at equality.
    """
    if huber is None:
        return F.mse_loss(student_output, teacher_output)
    return F.huber_loss(student_output, teacher_output, delta=huber)
