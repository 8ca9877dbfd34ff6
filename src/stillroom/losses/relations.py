"""Losses on how examples relate to each other."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from stillroom.contracts import FreeVectors, Vectors
from stillroom.losses._shared import unit, wide


def bank(
    student: Vectors,
    teacher: Vectors,
    bank: Vectors,
    bank_mask: Tensor | None = None,
    *,
    temperature: Annotated[float, Field(gt=0)] = 0.07,
    teacher_temperature: Annotated[float, Field(gt=0)] | None = None,
) -> Tensor:
    """KL between the teacher's and the student's similarity distributions to other rows of the store, in nats.

    The idea of SEED (Fang et al. 2021, https://arxiv.org/abs/2101.04731) and CompRess (Koohpayegani et al. 2020,
    https://arxiv.org/abs/2010.14713): cosine similarities to a bank of teacher features, through a softmax. They
    keep a queue of recent batches; here the bank is drawn afresh from the store, so there is nothing to keep.
    One temperature for both sides as in CompRess (0.04 there); SEED gives the teacher 1e-4: ``teacher_temperature``.

    Shapes: ``student``, ``teacher`` (B, D); ``bank`` (N, D) teacher features of other rows; ``bank_mask`` (B, N)
    False where a bank row is the example itself. Mean over the batch; 0 when the similarities agree.
    """
    rows = unit(bank, dim=1).T
    log_student = unit(student, dim=1) @ rows / temperature
    log_teacher = unit(teacher, dim=1) @ rows / (teacher_temperature or temperature)
    if bank_mask is not None:
        # A finite floor instead of minus infinity: a row without any partner then gives 0, not NaN.
        floor = torch.finfo(log_student.dtype).min / 4
        log_student = log_student.masked_fill(~bank_mask, floor)
        log_teacher = log_teacher.masked_fill(~bank_mask, floor)
    return F.kl_div(
        torch.log_softmax(log_student, dim=1),
        torch.log_softmax(log_teacher, dim=1),
        log_target=True,
        reduction="batchmean",
    )


def sp(student: FreeVectors, teacher: FreeVectors) -> Tensor:
    """Similarity-preserving: squared difference of the two models' normalised similarity matrices of the batch.

    Tung and Mori 2019 (https://arxiv.org/abs/1907.09682): G = F F^T, each row scaled to length 1; sum of squares over
    B^2, as in the paper and mdistiller. Anything with the example first may be given; it is flattened. Rotations and
    scale of the features do not matter. A batch of one gives 0; twice the same rows halve the value.

    Shapes: (B, D1) and (B, D2), or maps; returns a scalar, 0 at equality.
    """
    student, teacher = (wide(values).flatten(1) for values in (student, teacher))
    ours, theirs = (unit(values @ values.T, dim=1) for values in (student, teacher))
    return (ours - theirs).square().mean()


def _neighbours(values: Tensor) -> Tensor:
    """Return each row's distribution over the batch, by cosine similarity brought to 0..1: (B, B)."""
    values = unit(values, dim=1, extra=1e-7)
    # Rounding may put a cosine just below -1, and a logarithm of it must exist.
    similarity = ((values @ values.T + 1) / 2).clamp(min=0)
    return similarity / similarity.sum(1, keepdim=True)


def pkt(student: FreeVectors, teacher: FreeVectors) -> Tensor:
    """Probabilistic knowledge transfer: KL between the two models' similarity distributions over the batch.

    Passalis and Tefas 2018 (https://arxiv.org/abs/1803.10837), cosine kernel (cos + 1) / 2, each example among its own
    neighbours, 1e-7 in the norm and in the logarithms. Mean over all B^2 pairs, as in the authors' code and mdistiller;
    the paper sums them. Small values: mdistiller weighs it 30,000. A batch of one gives 0.

    Shapes: (B, D1) and (B, D2); returns a scalar, 0 at equality.
    """
    ours, theirs = (_neighbours(wide(values).flatten(1)) for values in (student, teacher))
    return (theirs * torch.log((theirs + 1e-7) / (ours + 1e-7))).mean()


def _distances(values: Tensor) -> Tensor:
    """Return the distances between rows over their mean, the diagonal left out of it: (B, B)."""
    squares = values.square().sum(1)
    square = (squares[:, None] + squares[None] - 2 * values @ values.T).clamp(min=1e-12)
    itself = torch.eye(len(values), dtype=torch.bool, device=values.device)
    distances = square.sqrt().masked_fill(itself, 0)
    pairs = max(1, len(values) * (len(values) - 1))
    return distances / (distances.sum() / pairs).clamp(min=1e-12)


def _angles(values: Tensor) -> Tensor:
    """Return the cosine at row i between the directions to rows j and k: (B, B, B)."""
    directions = unit(values[None] - values[:, None], dim=2)
    return directions @ directions.transpose(1, 2)


def rkd(
    student: FreeVectors,
    teacher: FreeVectors,
    *,
    distance_weight: Annotated[float, Field(ge=0)] = 25.0,
    angle_weight: Annotated[float, Field(ge=0)] = 50.0,
) -> Tensor:
    """Relational knowledge distillation: Huber loss of the distances between examples and of the angles they form.

    Park et al. 2019 (https://arxiv.org/abs/1904.05068): distances divided by their mean over the pairs of the batch,
    cosines of the angle at each example between each two. Huber loss with delta 1, mean over all B^2 and B^3 entries
    (those of an example with itself too), weights 25 and 50, as in the authors' code and mdistiller. Rotation, shift
    and scale of the features do not matter. A batch of one gives 0. Time and memory grow with B^3.

    Shapes: (B, D1) and (B, D2); returns a scalar, 0 at equality.
    """
    student, teacher = (wide(values).flatten(1) for values in (student, teacher))
    distance = F.smooth_l1_loss(_distances(student), _distances(teacher))
    angle = F.smooth_l1_loss(_angles(student), _angles(teacher))
    return distance_weight * distance + angle_weight * angle


def crd(
    student: Vectors,
    teacher: Vectors,
    bank: Vectors,
    bank_mask: Tensor | None = None,
    *,
    temperature: Annotated[float, Field(gt=0)] = 0.07,
) -> Tensor:
    """Contrastive representation distillation: tell the example's own teacher features from those of other rows.

    Tian et al. 2020 (https://arxiv.org/abs/1910.10699), noise-contrastive: with e = exp(cosine / T), m other rows and Z
    the mean of e, -log e+ / (e+ + m Z) for the own row and -log m Z / (e- + m Z) summed over the others, mean over the
    batch. The authors' code (RepDistiller, mdistiller) keeps two memories and adds the same term with the teacher as
    the anchor among remembered students; here the others come from the store, so there is one term and nothing to
    keep. It fixes Z at its first batch, here each batch has its own (no gradient in both); it maps both sides to 128
    dimensions, here the student is connected to the teacher's width; its 1e-7 in the denominators is left out.
    Not 0 at equality: the others push away, as they should.

    Shapes: ``student``, ``teacher`` (B, D); ``bank`` (N, D) teacher features of other rows; ``bank_mask`` (B, N)
    False where a bank row is the example itself; returns a scalar in nats. A row without others gives 0.
    """
    ours, theirs, rows = (unit(wide(values), dim=1) for values in (student, teacher, bank))
    own, others = (ours * theirs).sum(1) / temperature, ours @ rows.T / temperature
    use = torch.ones_like(others, dtype=torch.bool) if bank_mask is None else bank_mask
    count = use.sum(1)
    seen = torch.cat([own.detach(), others.detach().masked_fill(~use, float("-inf")).flatten()])
    log_noise = torch.logsumexp(seen, 0) - (len(own) + count.sum()).log() + count.clamp(min=1).log()
    refused = torch.where(use, F.logsigmoid(log_noise[:, None] - others), torch.zeros_like(others)).sum(1)
    value = -(F.logsigmoid(own - log_noise) + refused)
    return torch.where(count > 0, value, torch.zeros_like(value)).mean()
