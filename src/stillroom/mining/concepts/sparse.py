"""A sparse autoencoder of few units, of which each example may use only some."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stillroom.randomness import forked, permutation

BATCH = 256


@dataclass(frozen=True)
class Sparse:
    """``directions`` (units, D) of length 1 and an encoder; ``middle`` (D) is where all begin, ``kept`` units a row."""

    directions: Tensor
    encoder: Tensor
    bias: Tensor
    middle: Tensor
    scale: float
    kept: int

    def codes(self, rows: Tensor) -> Tensor:
        """Return how strongly each unit is used (N, units), nought or more, in the units of ``rows``."""
        return _codes((rows - self.middle) / self.scale, self.encoder, self.bias, self.kept) * self.scale

    def rebuilt(self, rows: Tensor) -> Tensor:
        """Return rows (N, D) as their units give them again."""
        return self.middle + self.codes(rows) @ self.directions


def _codes(rows: Tensor, encoder: Tensor, bias: Tensor, kept: int) -> Tensor:
    strength = (rows @ encoder.T + bias).relu()
    top = strength.topk(kept, 1)
    return torch.zeros_like(strength).scatter(1, top.indices, top.values)


def fit(rows: Tensor, units: int, kept: int, *, steps: int = 1000, seed: int = 0) -> Sparse:
    """Return a TopK sparse autoencoder of ``rows`` (N, D).

    Gao et al. 2024 (https://arxiv.org/abs/2406.04093). Instead of their auxiliary loss, units that nobody used are
    begun anew from the rows that are explained worst: with few rows the loss revives none.
    """
    middle = rows.mean(0)
    scale = float((rows - middle).square().sum(1).mean().sqrt().clamp(min=1e-12))
    data = (rows - middle) / scale
    order = torch.from_numpy(permutation(len(data), seed, "concepts begin")).repeat(1 + units // len(data))[:units]
    directions = torch.nn.functional.normalize(data[order], dim=1).clone().requires_grad_()
    encoder = directions.detach().clone().requires_grad_()
    bias = torch.zeros(units, requires_grad=True)
    optimizer = torch.optim.Adam([directions, encoder, bias], 5e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    parts: list[Tensor] = []
    for step in range(steps):
        if not parts:
            parts = list(torch.from_numpy(permutation(len(data), seed, "concepts", step)).split(BATCH))
        part = data[parts.pop()]
        loss = (part - _codes(part, encoder, bias, kept) @ directions).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        rate.step()
        with torch.no_grad():
            directions.copy_(torch.nn.functional.normalize(directions, dim=1))
            if step % 100 == 99 and step < 0.7 * steps:
                _revive(data, directions, encoder, bias, kept)
    return Sparse(directions.detach(), encoder.detach(), bias.detach(), middle, scale, kept)


def _revive(data: Tensor, directions: Tensor, encoder: Tensor, bias: Tensor, kept: int) -> None:
    codes = _codes(data, encoder, bias, kept)
    dead = (codes > 0).sum(0) == 0
    rest = data - codes @ directions
    worst = rest.square().sum(1).argsort(descending=True, stable=True)[: int(dead.sum())]
    places = dead.nonzero()[: len(worst), 0]
    fresh = torch.nn.functional.normalize(rest[worst], dim=1)
    directions[places], encoder[places] = fresh, fresh
    bias[places] = 0.0


def explained(rows: Tensor, again: Tensor, middle: Tensor) -> float:
    """Return the share of the variance around ``middle`` that ``again`` has of ``rows``."""
    return 1 - float((rows - again).square().sum() / (rows - middle).square().sum().clamp(min=1e-12))


def principal(rows: Tensor, others: Tensor, count: int) -> float:
    """Return the share of variance of ``others`` that the first ``count`` principal components of ``rows`` explain."""
    middle = rows.mean(0)
    axes = torch.linalg.svd(rows - middle, full_matrices=False)[2][:count]
    return explained(others, middle + (others - middle) @ axes.T @ axes, middle)


def by_chance(rows: Tensor, units: int, kept: int, *, seed: int = 0) -> float:
    """Return how much is explained of rows that have the mean and covariance of ``rows`` and no other structure.

    A unit is chosen for each row, so that something is explained also where there are no parts: this is how much. Half
    of the drawn rows are for the fit, half for the measure.
    """
    with forked(seed, "concepts by chance"):
        drawn = rows.mean(0) + torch.randn(2 * len(rows), rows.shape[1]) @ _spread(rows).T
    first, second = drawn[: len(rows)], drawn[len(rows) :]
    found = fit(first, units, kept, seed=seed)
    return explained(second, found.rebuilt(second), found.middle)


def drawn(rows: Tensor, count: int, *, like: bool, seed: int = 0) -> Tensor:
    """Return directions of length 1 (count, D) at random: anywhere, or ``like`` the rows, where those vary."""
    with forked(seed, "concepts random"):
        ways = torch.randn(count, rows.shape[1])
        return torch.nn.functional.normalize(ways @ _spread(rows).T if like else ways, dim=1)


def _spread(rows: Tensor) -> Tensor:
    """The square root of the covariance of rows."""
    values, vectors = torch.linalg.eigh((rows - rows.mean(0)).T.cov().double())
    return (vectors * values.clamp(min=0).sqrt()).float()
