"""What directions are held against: other directions, and rows in which there are no parts to be found."""

from __future__ import annotations

import torch
from torch import Tensor

from stillroom.randomness import forked

SOME = 2000  # rows whose sums at random are directions as rows vary
ALIKE = 0.9  # cosine, from which on two directions are the same
TURNS, WIDE = 8, 4096  # in which mean and covariance are set right; fewer of wide features, where each takes long


def explained(rows: Tensor, again: Tensor, middle: Tensor) -> float:
    """Return the share of the variance around ``middle`` that ``again`` has of ``rows``."""
    return 1 - float((rows - again).square().sum() / (rows - middle).square().sum().clamp(min=1e-12))


def axes(rows: Tensor) -> Tensor:
    """Return the principal components of rows, of length 1 (D, D), the last of the most variance."""
    return torch.linalg.eigh((rows - rows.mean(0)).T.cov().double()).eigenvectors.float().T


def principal(others: Tensor, middle: Tensor, components: Tensor) -> float:
    """Return the share of variance of ``others`` around ``middle`` that principal ``components`` (K, D) explain."""
    return explained(others, middle + (others - middle) @ components.T @ components, middle)


def found_again(one: Tensor, other: Tensor) -> float:
    """Return the share of directions of ``one`` (units, D), of length 1, that have a partner in ``other``.

    Each has a partner of its own (the assignment that makes the sum of cosines greatest), alike by a cosine of 0.9.
    """
    from scipy.optimize import linear_sum_assignment

    cosines = (one @ other.T).double().numpy()
    first, second = linear_sum_assignment(-cosines)
    return float((cosines[first, second] >= ALIKE).sum()) / len(one)


def without_parts(rows: Tensor, count: int, *, seed: int = 0) -> Tensor:
    """Return ``count`` rows (count, D) with the mean and covariance of ``rows`` and no other structure.

    They are drawn from a normal distribution. Where no feature is ever negative, negative ones become nought, as a ReLU
    would have it, and mean and covariance are set right again, by turns, until both hold nearly: by a few per cent.
    """
    mean, wanted = rows.mean(0), _root(rows, 0.5)
    with forked(seed, "concepts without parts"):
        drawn = torch.randn(count, rows.shape[1]) @ wanted + mean
    if float(rows.min()) < 0:
        return drawn
    for _ in range(max(2, min(TURNS, WIDE // rows.shape[1]))):
        drawn = drawn.clamp(min=0)
        drawn = (drawn - drawn.mean(0)) @ (_root(drawn, -0.5) @ wanted) + mean
    return drawn.clamp(min=0)


def _root(rows: Tensor, power: float) -> Tensor:
    """A power of the covariance of rows; of directions in which nothing varies, nought."""
    values, vectors = torch.linalg.eigh((rows - rows.mean(0)).T.cov().double())
    varies = values > 1e-6 * values.max().clamp(min=1e-30)
    powers = torch.where(varies, values, torch.ones_like(values)).pow(power) * varies
    return (vectors * powers @ vectors.T).float()


def drawn(rows: Tensor, count: int, *, like: bool, seed: int = 0) -> Tensor:
    """Return directions of length 1 (count, D) at random: anywhere, or ``like`` the rows, where those vary.

    A sum of centred rows with normal weights has, on average, their covariance.
    """
    with forked(seed, "concepts random", like):
        if not like:
            return torch.nn.functional.normalize(torch.randn(count, rows.shape[1]), dim=1)
        some = rows[:SOME]
        return torch.nn.functional.normalize(torch.randn(count, len(some)) @ (some - some.mean(0)), dim=1)
