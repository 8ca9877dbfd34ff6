"""What a parity test needs: inputs, and a comparison of a loss with its formula written once more in NumPy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Formula = Callable[[np.ndarray], float]
STEP = 1e-3
STENCIL = ((-2, 1 / 12), (-1, -8 / 12), (1, 8 / 12), (2, -1 / 12))  # first derivative, error of order STEP^4


def drawn(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    """Normal numbers in float64."""
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(row) -> np.ndarray:
    """Of one row, the way the books write it."""
    powers = np.exp(np.asarray(row) - np.max(row))
    return powers / powers.sum()


def kl(p, q) -> float:
    """In nats, between two rows of probabilities; 0 log 0 is 0."""
    return float(sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0))


def slopes(formula: Formula, at: np.ndarray) -> np.ndarray:
    """The gradient of the formula itself, entry by entry."""
    found = np.zeros_like(at)
    for place in np.ndindex(at.shape):
        for steps, weight in STENCIL:
            moved = at.copy()
            moved[place] += steps * STEP
            found[place] += weight * formula(moved) / STEP
    return found


def check(
    loss: Callable[..., Tensor], formula: Formula, student: Tensor, *others, rel: float = 1e-6, **options
) -> float:
    """The loss in float64 has the formula's value and gradient to 1e-6, and in float32 nearly so; gives the value."""
    expected, slope = formula(student.numpy()), slopes(formula, student.numpy())
    given = student.clone().requires_grad_()
    value = loss(given, *others, **options)
    gradient, value = torch.autograd.grad(value, given)[0].numpy(), value.detach()
    assert value.dtype == torch.float64
    assert abs(float(value) - expected) <= rel * abs(expected), (float(value), expected)
    assert np.linalg.norm(gradient - slope) <= rel * np.linalg.norm(slope), np.abs(gradient - slope).max()
    narrow = [one.float() if one is not None and one.is_floating_point() else one for one in others]
    in_float32 = student.float().requires_grad_()
    value = loss(in_float32, *narrow, **options)
    gradient, value = torch.autograd.grad(value, in_float32)[0].double().numpy(), value.detach()
    assert abs(float(value) - expected) <= 5e-6 * max(1.0, abs(expected)), (float(value), expected)
    assert np.linalg.norm(gradient - slope) <= 1e-4 * np.linalg.norm(slope)
    return expected


def rotation(width: int, seed: int = 9) -> Tensor:
    """A random orthogonal matrix."""
    return torch.linalg.qr(drawn(seed, width, width))[0]
