"""Losses on how examples relate to each other."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from stillroom.contracts import Vectors


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
    rows = F.normalize(bank, dim=1).T
    log_student = F.normalize(student, dim=1) @ rows / temperature
    log_teacher = F.normalize(teacher, dim=1) @ rows / (teacher_temperature or temperature)
    if bank_mask is not None:
        # A finite floor instead of minus infinity: a row without any partner then gives 0, not NaN.
        floor = torch.finfo(log_student.dtype).min / 4
        log_student = log_student.masked_fill(~bank_mask, floor)
        log_teacher = log_teacher.masked_fill(~bank_mask, floor)
    return F.kl_div(
        torch.log_softmax(log_student, dim=1), torch.log_softmax(log_teacher, dim=1), log_target=True,
        reduction="batchmean",
    )
