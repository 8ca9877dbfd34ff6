"""Making two representations comparable: pool what differs in place, then a linear map of what differs in width."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillroom.errors import LossError

STATE = 5  # axes of a memory: example, time, layer, direction, feature


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of (B, T, ...) over time where ``mask`` (B, T) is true; 0 for a row without any step."""
    if mask is None:
        return values.mean(1)
    weight = mask.to(values.dtype).reshape(*mask.shape, *[1] * (values.dim() - 2))
    return (values * weight).sum(1) / weight.sum(1).clamp(min=1)


def _flat(values: Tensor, mask: Tensor | None) -> Tensor:
    """One vector an example: mean over space or time, then whatever axes are left in a row."""
    if values.dim() == 4 and mask is None:
        return values.mean((2, 3))
    if values.dim() >= 3:
        values = masked_mean(values, mask)
    return values.flatten(1)


def pool(
    student: Tensor, teacher: Tensor, student_mask: Tensor | None = None, teacher_mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return both with the same places: maps at the smaller size, sequences at equal lengths, else one vector each.

    Shapes: any with the example first; the last axis (of maps the second) is the width, and may still differ.
    """
    if student.shape == teacher.shape and student_mask is None and teacher_mask is None:
        return student, teacher
    if student.dim() == teacher.dim() == 4 and student_mask is None and teacher_mask is None:
        size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
        return tuple(  # type: ignore[return-value]
            maps if tuple(maps.shape[2:]) == size else F.adaptive_avg_pool2d(maps, size) for maps in (student, teacher)
        )
    if (
        student.dim() == teacher.dim() == 3
        and student_mask is None
        and teacher_mask is None
        and (student.shape[1] == teacher.shape[1])
    ):
        return student, teacher
    return _flat(student, student_mask), _flat(teacher, teacher_mask)


class Connector(nn.Module):
    """A linear map from the student's width to the teacher's, without bias, orthogonal at the start.

    Maps (B, C, H, W) go through it place by place; states (B, T, layers, directions, D) all layers by the same map, and
    each direction by one of its own. It is trained with the student and is no part of it.
    """

    def __init__(self, student: Tensor, teacher: Tensor) -> None:
        super().__init__()
        if student.dim() != teacher.dim() and student.dim() != STATE:
            raise LossError(
                f"No connector fits these shapes: got a student's {tuple(student.shape)} and a teacher's "
                f"{tuple(teacher.shape)}. "
                "Allowed: the same number of axes after pooling. Tap other places."
            )
        axis = 1 if student.dim() == 4 else -1
        self.maps = student.dim() == 4
        blocks = (student.shape[3],) if student.dim() == STATE and student.shape[3] > 1 else ()
        self.weight = nn.Parameter(torch.empty(*blocks, teacher.shape[axis], student.shape[axis]))
        for block in self.weight if blocks else [self.weight]:
            nn.init.orthogonal_(block)

    def forward(self, values: Tensor) -> Tensor:
        """(B, ..., student width) -> (B, ..., teacher width), or the same for the channels of maps."""
        if self.maps:
            return F.conv2d(values, self.weight[:, :, None, None])
        if self.weight.dim() == 3:
            return torch.einsum("btldi,doi->btldo", values, self.weight)
        return F.linear(values, self.weight)
