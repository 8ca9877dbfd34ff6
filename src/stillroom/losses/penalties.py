"""Penalties on the student's own weights: Omega in J = mean loss + lambda * Omega, lambda being the weight."""

from __future__ import annotations

import torch
from torch import Tensor

from stillroom.contracts import Parameters
from stillroom.losses._shared import wide


def l1(parameters: Parameters) -> Tensor:
    """Sum of the absolute values of the weights (lasso; Tibshirani 1996).

    Its subgradient at 0 is taken as 0, so plain gradient descent makes weights small rather than exactly 0.

    Shapes: any; by default the student's parameters with two or more axes. Returns a scalar.
    """
    return torch.stack([wide(value).abs().sum() for value in parameters.values()]).sum()


def l2(parameters: Parameters) -> Tensor:
    """Sum of the squares of the weights (ridge, Tikhonov).

    Under SGD a weight lambda on this term equals a weight decay of 2 * lambda, which training uses as its fast path.

    Shapes: any; by default the student's parameters with two or more axes. Returns a scalar.
    """
    return torch.stack([wide(value).square().sum() for value in parameters.values()]).sum()
