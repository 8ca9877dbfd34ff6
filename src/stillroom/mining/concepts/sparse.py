"""A sparse autoencoder of few units, of which each example may use only some."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stillroom.randomness import permutation

BATCH = 256


@dataclass(frozen=True)
class Sparse:
    """``directions`` (units, D) of length 1 and an encoder; ``middle`` (D) is the mean of the rows they came from.

    ``begin`` (D) is what all rows have before any unit is used; ``kept`` units are used by a row at most.
    """

    directions: Tensor
    encoder: Tensor
    bias: Tensor
    begin: Tensor
    middle: Tensor
    scale: float
    kept: int

    def codes(self, rows: Tensor) -> Tensor:
        """Return how strongly each unit is used (N, units), nought or more, in the units of ``rows``."""
        return _codes((rows - self.begin) / self.scale, self.encoder, self.bias, self.kept) * self.scale

    def rebuilt(self, rows: Tensor) -> Tensor:
        """Return rows (N, D) as their units give them again."""
        return self.begin + self.codes(rows) @ self.directions


def _codes(rows: Tensor, encoder: Tensor, bias: Tensor, kept: int) -> Tensor:
    strength = (rows @ encoder.T + bias).relu()
    top = strength.topk(kept, 1)
    return torch.zeros_like(strength).scatter(1, top.indices, top.values)


def fit(rows: Tensor, units: int, kept: int, *, steps: int = 500, seed: int = 0, moved: bool = False) -> Sparse:
    """Return a TopK sparse autoencoder of ``rows`` (N, D), of which each uses at most ``kept`` of ``units``.

    Gao et al. 2024 (https://arxiv.org/abs/2406.04093). Instead of their auxiliary loss, units that nobody used are
    begun anew from the rows that are explained worst: with few rows the loss revives none. All begins at the mean of
    the rows; as in the paper that place is learnt too where ``moved``, else it stays, and directions are found again
    more often.
    """
    middle = rows.mean(0)
    scale = float((rows - middle).square().sum(1).mean().sqrt().clamp(min=1e-12))
    data = (rows - middle) / scale
    order = torch.from_numpy(permutation(len(data), seed, "concepts begin")).repeat(1 + units // len(data))[:units]
    directions = torch.nn.functional.normalize(data[order], dim=1).clone().requires_grad_()
    encoder = directions.detach().clone().requires_grad_()
    bias = torch.zeros(units, requires_grad=True)
    begin = torch.zeros_like(middle, requires_grad=moved)
    optimizer = torch.optim.Adam([directions, encoder, bias, *([begin] if moved else [])], 5e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    parts: list[Tensor] = []
    for step in range(steps):
        if not parts:
            parts = list(torch.from_numpy(permutation(len(data), seed, "concepts", step)).split(BATCH))
        part = data[parts.pop()] - begin
        loss = (part - _codes(part, encoder, bias, kept) @ directions).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        rate.step()
        with torch.no_grad():
            directions.copy_(torch.nn.functional.normalize(directions, dim=1))
            if step % 100 == 99 and step < 0.7 * steps:
                _revive(data - begin, directions, encoder, bias, kept)
    at = middle + begin.detach() * scale
    return Sparse(directions.detach(), encoder.detach(), bias.detach(), at, middle, scale, kept)


def _revive(data: Tensor, directions: Tensor, encoder: Tensor, bias: Tensor, kept: int) -> None:
    codes = _codes(data, encoder, bias, kept)
    dead = (codes > 0).sum(0) == 0
    rest = data - codes @ directions
    worst = rest.square().sum(1).argsort(descending=True, stable=True)[: int(dead.sum())]
    places = dead.nonzero()[: len(worst), 0]
    fresh = torch.nn.functional.normalize(rest[worst], dim=1)
    directions[places], encoder[places] = fresh, fresh
    bias[places] = 0.0
