"""Losses on inner representations, place by place."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from stillroom.contracts import Features


def hint(student: Features, teacher: Features) -> Tensor:
    """Mean squared difference of the student's (projected) representation and the teacher's.

    FitNets, Romero et al. 2015 (https://arxiv.org/abs/1412.6550). Mean over all entries, as in mdistiller;
    the paper writes half the sum of squares of an example. The projector is the objective's connector.

    Shapes: equal, first axis the example; returns a scalar.
    """
    return F.mse_loss(student, teacher)
