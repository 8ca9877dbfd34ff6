"""Losses on derivatives: how the answers change with what goes in, and where a model sees what it sees.

They say something that answers alone do not where examples are few. What each reads comes from the taps
``logits@gradient...`` and ``...@gradcam``; the teacher's side may be recorded.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from stillroom.contracts import Derivatives, Explanations, Gradients, Kind
from stillroom.errors import LossError, say
from stillroom.losses._shared import TINY, smaller, unit, wide

# Tokens, not steps in time: two readers of one text are not aligned here, as both gradients are taken at one point.
TokenGradients = Annotated[Tensor, Kind("token gradients", ("example", "token", "feature"), fit="equal")]
Embeddings = Annotated[Tensor, Kind("embeddings", ("example", "token", "feature"), fit="equal")]

Share = Annotated[float, Field(ge=0, le=1)]
SAME_POINT = 1e-2  # of the embeddings' root mean square: twenty times what float16 loses


def _mean(values: Tensor, counts: Tensor) -> Tensor:
    """Mean of (B) over the rows that count; 0 where none does."""
    return torch.where(counts, values, torch.zeros_like(values)).sum() / counts.sum().clamp(min=1)


def _relative(student: Tensor, teacher: Tensor, batch_share: float) -> Tensor:
    """Mean over the rows of ||s - t||^2 by what the row is measured by, a mix of its own ||t||^2 and the batch's."""
    student, teacher = wide(student).flatten(1), wide(teacher.detach()).flatten(1)
    length = torch.linalg.vector_norm(teacher, dim=1)
    counts = length > TINY
    own = torch.where(counts, length.square(), torch.ones_like(length))
    measure = (1 - batch_share) * own + batch_share * _mean(own, counts)
    return _mean(((student - teacher) / measure.sqrt()[:, None]).square().sum(1), counts)


def _unlike(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cosine of each row, and mean over the rows that have a direction on both sides; (B, N) twice."""
    counts = (torch.linalg.vector_norm(student.detach(), dim=1) > TINY) & (
        torch.linalg.vector_norm(teacher, dim=1) > TINY
    )
    return _mean(1 - (unit(student, dim=1) * unit(teacher, dim=1)).sum(1), counts)


def input_gradient(student_gradients: Gradients, teacher_gradients: Gradients, *, batch_share: Share = 0.01) -> Tensor:
    """Squared difference of the two models' gradients, relative to the teacher's: ||gS - gT||^2 / ||gT||^2.

    Sobolev training, Czarnecki et al. 2017 (https://arxiv.org/abs/1706.04859), and Jacobian matching, Srinivas and
    Fleuret 2018 (https://arxiv.org/abs/1803.00443), along one output, by default the teacher's top logit. Sobolev
    training does not divide; but the plain squared error depends on how inputs are scaled and is ruled by the few rows
    with steep answers, so that practice divides by the row's own. Where a teacher is flat, that blows noise up: a row
    is measured by (1 - batch_share) ||gT||^2 + batch_share mean(||gT||^2). 0 is the ratio alone; 1 the paper's error
    but for one factor a batch. Rows whose teacher's gradient is zero, such as those without a label, count for
    nothing. A student with no gradient at all has about 1.

    Shapes: equal, first axis the example; returns a scalar, 0 at equality.
    """
    return _relative(student_gradients, teacher_gradients, batch_share)


def input_gradient_cosine(student_gradients: Gradients, teacher_gradients: Gradients) -> Tensor:
    """One minus the cosine between the two models' gradients: where the answer comes from, not how steep it is.

    Half the squared distance of the gradients scaled to length 1, in which form Srinivas and Fleuret 2018
    (https://arxiv.org/abs/1803.00443) match Jacobians in practice. Mean over the rows that have a gradient on both
    sides; a student that is flat at a row is not pulled there, so that this loss wants another beside it.

    Shapes: equal, first axis the example; returns a scalar between 0 and 2, 0 where the gradients are proportional.
    """
    return _unlike(wide(student_gradients).flatten(1), wide(teacher_gradients.detach()).flatten(1))


def directional_derivative(
    student_derivatives: Derivatives, teacher_derivatives: Derivatives, *, batch_share: Share = 0.01
) -> Tensor:
    """Squared difference of the derivatives of all logits along few directions, relative to the teacher's.

    Stochastic Sobolev training, Czarnecki et al. 2017 (https://arxiv.org/abs/1706.04859): random directions of length 1
    in place of whole derivatives, by the tap ``logits@gradient(random=4)``. Along an attack, as
    ``logits@gradient(along=direction,step=1)``, it is indirect gradient matching (IGDM), Lee, Cho and Kim
    (https://arxiv.org/abs/2312.03286), with a difference from the clean example and squares, where the authors take
    f(x + d) - f(x - d) and a KL of softmaxed differences. A row is measured by all of its directions and classes
    together, and ``batch_share`` is that of :func:`input_gradient`; neither paper divides.

    Shapes: (B, ways, C) twice; returns a scalar, 0 at equality.
    """
    return _relative(student_derivatives, teacher_derivatives, batch_share)


def embedding_gradient(
    student_tokens: TokenGradients,
    teacher_tokens: TokenGradients,
    student_embeddings: Embeddings,
    teacher_embeddings: Embeddings,
    student_mask: Tensor | None = None,
    teacher_mask: Tensor | None = None,
) -> Tensor:
    """Gradient knowledge distillation for texts: squared distance of the directions of each token's gradients.

    GKD, Wang, Li and Sun 2022 (https://arxiv.org/abs/2211.01071; code lancopku/GKD): the gradients with respect to the
    word embeddings, each token's scaled to length 1; the sum of squares by the number of real tokens, all texts
    together, as in the authors' code, which differentiates the greatest probability where the taps take the teacher's
    top logit. As there, a token is real where the teacher's gradient is not zero; masks leave out more. The others
    count for nothing, where the authors' sum still pulls at the student. Both gradients must be taken at the same
    point: one tokenizer, and one embedding that neither side trains. The embeddings are read to see that they are. One
    place says all: ``student: logits@gradient(wrt=embed)`` reads ``embed`` too.

    Shapes: (B, T, D) four times, masks (B, T) False on padding; returns a scalar, 0 where all
    directions agree, 4 where they are opposite.

    Raises:
        LossError: the shapes differ, or the gradients were taken at different points.
    """
    masks = [mask for mask in (student_mask, teacher_mask) if mask is not None]
    used = torch.stack(masks).all(0) if masks else torch.ones_like(teacher_tokens[..., 0], dtype=torch.bool)
    _at_one_point(student_tokens, teacher_tokens, student_embeddings, teacher_embeddings, used)
    student, teacher = wide(student_tokens), wide(teacher_tokens.detach())
    used = used & (torch.linalg.vector_norm(teacher, dim=2) > TINY)
    return _mean((unit(student, dim=2) - unit(teacher, dim=2)).square().sum(2), used)


def _at_one_point(
    student: Tensor, teacher: Tensor, student_embeddings: Tensor, teacher_embeddings: Tensor, used: Tensor
) -> None:
    """Refuse gradients at different points: their coordinates mean different things."""
    what = "Gradients at word embeddings are compared token by token, at one and the same point"
    do = (
        "Give both models one tokenizer and length, copy the teacher's word embeddings into the student and freeze "
        "them; or match the answers instead (kd)."
    )
    shapes = [tuple(one.shape) for one in (student, teacher, student_embeddings, teacher_embeddings)]
    if len(set(shapes)) > 1 or student.dim() != 3:
        given = "gradients {} and {}, embeddings {} and {} (student, teacher)".format(*shapes)
        raise LossError(say(what, given, "(batch, tokens, width), four times the same", do))
    ours, theirs = (wide(one.detach())[used] for one in (student_embeddings, teacher_embeddings))
    apart, size = (float(one.square().mean().sqrt()) if one.numel() else 0.0 for one in (ours - theirs, theirs))
    if not apart <= SAME_POINT * size:  # not a number is no small difference either
        given = f"embeddings {apart:.2g} apart, at a root mean square of {size:.2g}"
        raise LossError(say(what, given, f"a difference of at most {SAME_POINT:.0%}, which storing may make", do))


def explanation(student_maps: Explanations, teacher_maps: Explanations) -> Tensor:
    """One minus the cosine between the two models' explanation maps: the student sees the class where the teacher does.

    e2KD, Parchami-Araghi et al. 2024 (https://arxiv.org/abs/2402.03119), with Grad-CAM of the teacher's top class
    (``layer3@gradcam``). Mean over the rows whose maps are not all zero; the authors give such a row the value 1, which
    is no pull either. The larger map is pooled to the smaller one's size, where the authors resize both to the image's.

    Shapes: (B, H1, W1) and (B, H2, W2); returns a scalar, 0 where the maps are proportional.
    """
    student, teacher = wide(student_maps), wide(teacher_maps.detach())
    if student.shape != teacher.shape:
        size = smaller(student[:, None], teacher[:, None])
        student, teacher = (F.adaptive_avg_pool2d(maps[:, None], size)[:, 0] for maps in (student, teacher))
    return _unlike(student.flatten(1), teacher.flatten(1))
