"""What several losses need: a precision wide enough, vectors of length 1, a KL, and rows that have a label."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stillroom.contracts import UNLABELLED
from stillroom.errors import LossError

NARROW = (torch.float16, torch.bfloat16)
TINY = 1e-12


def wide(values: Tensor) -> Tensor:
    """Return values in float32 where they are narrower; float64 stays."""
    return values.float() if values.dtype in NARROW else values


def unit(values: Tensor, dim: int, *, extra: float = 0.0) -> Tensor:
    """Scale to length 1 along ``dim``; a vector of zeros stays, with a gradient of ordinary size.

    ``extra`` is added to the lengths, where a published loss does so.
    """
    length = torch.linalg.vector_norm(values, dim=dim, keepdim=True)
    return values / torch.where(length > TINY, length + extra, torch.ones_like(length))


def smaller(one: Tensor, other: Tensor) -> tuple[int, int]:
    """Return the height and the width of the smaller of two maps (B, C, H, W), each by itself."""
    return min(one.shape[2], other.shape[2]), min(one.shape[3], other.shape[3])


def floor_of(values: Tensor) -> float:
    """Return a logit that stands for "impossible": finite, so that 0 times it is 0 and not NaN."""
    return torch.finfo(values.dtype).min / 4


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) in nats over the last axis, from logarithms."""
    return F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)


def out_of_range(labels: Tensor, classes: int) -> LossError:
    """Return the error that names labels outside -1 .. classes - 1."""
    wrong = labels[(labels < UNLABELLED) | (labels >= classes)].unique().tolist()
    return LossError(
        f"Labels are out of range: got {wrong[:5]} where the model answers {classes} classes. "
        f"Allowed: 0 to {classes - 1}, or -1 for a row without a label. Number the classes from 0, "
        "or give the model as many outputs as there are classes."
    )


def log_of_label(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return the log-probability of each row's label, (B, C) and (B) -> (B); 0 for a row without a label.

    Raises:
        LossError: a label is out of range.
    """
    try:
        return -F.nll_loss(log_probabilities, labels, ignore_index=UNLABELLED, reduction="none")
    except IndexError as error:
        raise out_of_range(labels, log_probabilities.shape[1]) from error


def is_label(logits: Tensor, labels: Tensor) -> Tensor:
    """Return where a row's label stands: bool (B, C)."""
    return torch.arange(logits.shape[1], device=logits.device) == labels[:, None]


def mean_of_labelled(values: Tensor, labels: Tensor) -> Tensor:
    """Mean of (B) over the rows that have a label; 0 where none has."""
    known = labels != UNLABELLED
    return torch.where(known, values, torch.zeros_like(values)).sum() / known.sum().clamp(min=1)
