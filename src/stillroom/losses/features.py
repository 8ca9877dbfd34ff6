"""Losses on inner representations, place by place."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stillroom.contracts import Features, FreeMaps, Maps
from stillroom.losses._shared import smaller, unit, wide

LEVELS = (4, 2, 1)


def hint(student: Features, teacher: Features) -> Tensor:
    """Mean squared difference of the student's (projected) representation and the teacher's.

    FitNets, Romero et al. 2015 (https://arxiv.org/abs/1412.6550). Mean over all entries, as in mdistiller;
    the paper writes half the sum of squares of an example. The projector is the objective's connector.

    Shapes: equal, first axis the example; returns a scalar.
    """
    return F.mse_loss(student, teacher)


def hcl(student_maps: Maps, teacher_maps: Maps) -> Tensor:
    """Hierarchical context loss: mean squared difference of the maps and of their 4 x 4, 2 x 2 and 1 x 1 averages.

    ReviewKD, Chen et al. 2021 (https://arxiv.org/abs/2104.09044). Weights 1, 1/2, 1/4, 1/8 divided by their sum,
    leaving out sizes not smaller than the map's height, as in mdistiller. The review itself, its fusion of stages, is
    no part of the loss: here a connector stands between one pair of maps; name several pairs for several stages.

    Shapes: (B, C, H, W) twice; returns a scalar, 0 at equality.
    """
    value, weight, total = F.mse_loss(student_maps, teacher_maps), 1.0, 1.0
    for size in LEVELS:
        if size < student_maps.shape[2]:
            weight /= 2
            total += weight
            ours, theirs = (F.adaptive_avg_pool2d(maps, size) for maps in (student_maps, teacher_maps))
            value = value + weight * F.mse_loss(ours, theirs)
    return value / total


def _kernel(left: Tensor, right: Tensor) -> Tensor:
    """Mean over the batch and all pairs of channels of the squared inner product of their maps."""
    return torch.bmm(left, right.transpose(1, 2)).square().mean()


def nst(student_maps: FreeMaps, teacher_maps: FreeMaps) -> Tensor:
    """Neuron selectivity transfer: squared MMD between the two models' channels, each a map of length 1.

    Huang and Wang 2017 (https://arxiv.org/abs/1707.01219), with the paper's polynomial kernel (x . y)^2. Mean over the
    batch, as in mdistiller. The larger map is pooled to the smaller one's size. Channels need not agree in number.

    Shapes: (B, C1, H1, W1) and (B, C2, H2, W2); returns a scalar, 0 where the channels are alike as a set.
    """
    if student_maps.shape[2:] != teacher_maps.shape[2:]:
        size = smaller(student_maps, teacher_maps)
        student_maps, teacher_maps = (F.adaptive_avg_pool2d(maps, size) for maps in (student_maps, teacher_maps))
    student, teacher = (unit(wide(maps).flatten(2), dim=2) for maps in (student_maps, teacher_maps))
    return _kernel(teacher, teacher) + _kernel(student, student) - 2 * _kernel(student, teacher)
