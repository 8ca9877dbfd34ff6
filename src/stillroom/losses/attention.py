"""Losses on where a model looks."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from stillroom.contracts import FreeMaps, FreeTokens
from stillroom.errors import LossError
from stillroom.losses._shared import floor_of, kl, smaller, wide


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
        size = smaller(student_maps, teacher_maps)
        student_maps, teacher_maps = (F.adaptive_avg_pool2d(maps, size) for maps in (student_maps, teacher_maps))
    return (_attention(student_maps, power) - _attention(teacher_maps, power)).pow(2).mean()


def _relations(tokens: Tensor, heads: int, mask: Tensor | None, whose: str) -> Tensor:
    """Return the logarithms of softmax(A A^T / sqrt(width of a head)) between the tokens: (B, heads, T, T)."""
    if tokens.shape[2] % heads:
        raise LossError(
            f"Tokens cannot be split into relation heads: got {heads} heads for the {whose}'s width {tokens.shape[2]}. "
            f"Allowed: divisors of {tokens.shape[2]}, the same number for both sides. Set heads to one of them."
        )
    parts = wide(tokens).unflatten(2, (heads, -1)).transpose(1, 2)
    scores = parts @ parts.transpose(2, 3) / parts.shape[3] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], floor_of(scores))
    return torch.log_softmax(scores, dim=3)


def attention_relations(
    student_tokens: FreeTokens,
    teacher_tokens: FreeTokens,
    student_mask: Tensor | None = None,
    teacher_mask: Tensor | None = None,
    *,
    heads: Annotated[int, Field(ge=1)] = 1,
) -> Tensor:
    """Self-attention relations: KL of the softmax of the tokens' scaled inner products with each other, in nats.

    MiniLMv2, Wang et al. 2021 (https://arxiv.org/abs/2012.15828): tap the queries, the keys and the values as three
    pairs (and weigh 1/3 for their mean); the vectors are split anew into ``heads`` relation heads, so that widths need
    not agree. The authors take 48 heads for base and 64 for large teachers; 1, the default here, divides any width.
    Mean over heads and over the tokens of a text, then over the batch, padding left out, as in Bloomberg's
    re-implementation (minilmv2.bb); the authors released no training code.

    Shapes: (B, T, D1) and (B, T, D2), masks (B, T) False on padding; returns a scalar, 0 at equality.

    Raises:
        LossError: the lengths differ, or a width is no multiple of ``heads``.
    """
    if student_tokens.shape[:2] != teacher_tokens.shape[:2]:
        raise LossError(
            f"Relations between tokens need equal lengths: got the student's {tuple(student_tokens.shape)} and the "
            f"teacher's {tuple(teacher_tokens.shape)}. Allowed: (batch, time, width) with equal batch and time. "
            "Give both sides the same tokens."
        )
    masks = [mask for mask in (student_mask, teacher_mask) if mask is not None]
    mask = torch.stack(masks).all(0) if masks else None
    student = _relations(student_tokens, heads, mask, "student")
    values = kl(_relations(teacher_tokens, heads, mask, "teacher"), student).mean(1)
    if mask is None:
        return values.mean()
    return (torch.where(mask, values, torch.zeros_like(values)).sum(1) / mask.sum(1).clamp(min=1)).mean()
