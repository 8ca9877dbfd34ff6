"""Divergences between two answers, token by token or row by row: what sequence models are distilled with."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from stillroom.contracts import TokenLogits
from stillroom.losses._shared import kl, wide


def _mean(values: Tensor, student_mask: Tensor | None, teacher_mask: Tensor | None) -> Tensor:
    """Mean over the tokens that both sides have; 0 where there is none."""
    masks = [mask for mask in (student_mask, teacher_mask) if mask is not None]
    if not masks:
        return values.mean()
    mask = torch.stack(masks).all(0)
    return torch.where(mask, values, torch.zeros_like(values)).sum() / mask.sum().clamp(min=1)


def _logs(student_logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
    return torch.log_softmax(wide(student_logits), dim=-1), torch.log_softmax(wide(teacher_logits), dim=-1)


def _mixed(log_one: Tensor, log_other: Tensor, share: float) -> Tensor:
    """Return log(share * one + (1 - share) * other)."""
    if share == 0:
        return log_other
    return torch.logaddexp(log_one + math.log(share), log_other + math.log(1 - share))


def forward_kl(
    student_logits: TokenLogits,
    teacher_logits: TokenLogits,
    student_mask: Tensor | None = None,
    teacher_mask: Tensor | None = None,
) -> Tensor:
    """KL(teacher || student), in nats, mean over tokens: the student covers all that the teacher thinks possible.

    :func:`kd` at temperature 1, for (B, T, C) too. The code of DistiLLM (https://arxiv.org/abs/2402.03898), after
    MiniLLM, leaves the teacher's entropy out, which has no gradient; both take the mean over the tokens of the batch
    that count, so that long texts weigh more.

    Shapes: (B, T, C) with masks (B, T), False where a token does not count, or (B, C); returns a scalar, 0 at equality.
    """
    log_q, log_p = _logs(student_logits, teacher_logits)
    return _mean(kl(log_p, log_q), student_mask, teacher_mask)


def reverse_kl(
    student_logits: TokenLogits,
    teacher_logits: TokenLogits,
    student_mask: Tensor | None = None,
    teacher_mask: Tensor | None = None,
) -> Tensor:
    """KL(student || teacher), in nats, mean over tokens: the student avoids what the teacher thinks impossible.

    MiniLLM, Gu et al. 2024 (https://arxiv.org/abs/2306.08543), token by token on given texts, as in the code of
    DistiLLM; the paper samples the texts from the student and optimises the sequence-wise form by policy gradient.

    Shapes: (B, T, C) with masks (B, T), False where a token does not count, or (B, C); returns a scalar, 0 at equality.
    """
    log_q, log_p = _logs(student_logits, teacher_logits)
    return _mean(kl(log_q, log_p), student_mask, teacher_mask)


def skew_kl(
    student_logits: TokenLogits,
    teacher_logits: TokenLogits,
    student_mask: Tensor | None = None,
    teacher_mask: Tensor | None = None,
    *,
    skew: Annotated[float, Field(ge=0, lt=1)] = 0.1,
) -> Tensor:
    """KL(teacher || skew * teacher + (1 - skew) * student), in nats, mean over tokens: never above -log(skew).

    DistiLLM, Ko et al. 2024 (https://arxiv.org/abs/2402.03898); ``skew`` 0.1 as in the authors' code, which leaves the
    teacher's entropy out (no gradient). At ``skew`` 0 it is :func:`forward_kl`.

    Shapes: (B, T, C) with masks (B, T), False where a token does not count, or (B, C); returns a scalar, 0 at equality.
    """
    log_q, log_p = _logs(student_logits, teacher_logits)
    return _mean(kl(log_p, _mixed(log_p, log_q, skew)), student_mask, teacher_mask)


def jsd(
    student_logits: TokenLogits,
    teacher_logits: TokenLogits,
    student_mask: Tensor | None = None,
    teacher_mask: Tensor | None = None,
    *,
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5,
) -> Tensor:
    """Generalised Jensen-Shannon divergence: beta KL(teacher || m) + (1 - beta) KL(student || m), in nats.

    GKD, Agarwal et al. 2024 (https://arxiv.org/abs/2306.13649), with m = beta * teacher + (1 - beta) * student; mean
    over tokens as in TRL. At ``beta`` 0.5 it is symmetric and never above ln 2; divided by ``beta`` it tends to
    :func:`forward_kl` as ``beta`` goes to 0, and divided by 1 - beta to :func:`reverse_kl` as it goes to 1.

    Shapes: (B, T, C) with masks (B, T), False where a token does not count, or (B, C); returns a scalar, 0 at equality.
    """
    log_q, log_p = _logs(student_logits, teacher_logits)
    log_m = _mixed(log_p, log_q, beta)
    return _mean(beta * kl(log_p, log_m) + (1 - beta) * kl(log_q, log_m), student_mask, teacher_mask)
