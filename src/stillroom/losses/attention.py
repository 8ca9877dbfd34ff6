"""Losses on where a model looks."""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from stillroom.contracts import FreeMaps


def _attention(maps: Tensor, power: float) -> Tensor:
    """Mean of |activation|^power over channels, flattened and scaled to length 1: (B, H * W)."""
    return F.normalize(maps.abs().pow(power).mean(1).flatten(1), dim=1)


def attention_transfer(
    student_maps: FreeMaps, teacher_maps: FreeMaps, *, power: Annotated[float, Field(gt=0)] = 2.0
) -> Tensor:
    """Mean squared difference of the two models' normalised spatial attention maps.

    Zagoruyko and Komodakis 2017 (https://arxiv.org/abs/1612.03928). Mean over batch and positions, as in the
    authors' code and mdistiller; the paper's equation takes the norm of the difference instead. The larger map
    is pooled to the smaller one's size. Channels need not agree.

    Shapes: (B, C1, H1, W1) and (B, C2, H2, W2); returns a scalar, 0 when the maps are proportional.
    """
    if student_maps.shape[2:] != teacher_maps.shape[2:]:
        size = [min(a, b) for a, b in zip(student_maps.shape[2:], teacher_maps.shape[2:], strict=True)]
        student_maps, teacher_maps = (F.adaptive_avg_pool2d(maps, size) for maps in (student_maps, teacher_maps))
    return (_attention(student_maps, power) - _attention(teacher_maps, power)).pow(2).mean()
