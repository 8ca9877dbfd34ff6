"""What changes when parts of an input are taken away: attribution that needs answers only."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from stillroom.mining.attribution.gradients import Score, centred
from stillroom.randomness import draw

BATCH = 1024  # inputs with parts taken away that are asked about at once

Ask = Callable[[Tensor, Tensor], Tensor]
"""``(rows (M), keep (M, parts)) -> (M, classes)``: shares, float64, for examples of which some parts are kept."""


def occlusion(ask: Ask, counts: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Return what each part adds (N, parts): the score of ``classes`` less that without the part; and answers without.

    ``counts`` (N) says how many parts each example has; parts beyond get 0. The score is the logarithm of the share,
    less its mean over classes. The second is (N, parts), int64: the class answered without the part, -1 beyond.
    """
    most = int(counts.max())
    there = torch.arange(most) < counts[:, None]
    whole = logarithms(ask_all(ask, torch.arange(len(counts)), torch.ones(len(counts), most, dtype=torch.bool)))
    rows, parts = there.nonzero(as_tuple=True)
    without = torch.cat(
        [
            logarithms(ask(some, torch.arange(most) != part[:, None]))
            for some, part in zip(rows.split(BATCH), parts.split(BATCH), strict=True)
        ]
    )
    values = torch.zeros(len(counts), most, dtype=torch.float64)
    values[rows, parts] = centred(whole, classes)[rows] - centred(without, classes[rows])
    answers = torch.full((len(counts), most), -1)
    answers[rows, parts] = without.argmax(1)
    return values, answers


def ask_all(ask: Ask, rows: Tensor, keep: Tensor) -> Tensor:
    """Return what ``ask`` does, some at a time."""
    return torch.cat([ask(some, kept) for some, kept in zip(rows.split(BATCH), keep.split(BATCH), strict=True)])


def logarithms(shares: Tensor) -> Tensor:
    """Return logarithms of shares, none of them infinite."""
    return shares.double().clamp(min=1e-300).log()


def shapley(score: Score, inputs: Tensor, background: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return sampled Shapley values (N, columns) of ``score``: (all draws, those of each half of them (2, N, columns)).

    Each row of ``background`` (P, columns; P even) is one draw: the row is turned into the example one column after
    another, in an order of its own, and each column is credited with the change; every second order is the one before
    reversed. The values of an example sum up to its score less the mean score of the background, exactly, and those of
    an additive score are exact. So a value is always one that was seen, alone; together they may be a row that cannot
    be. Strumbelj and Kononenko 2014 (https://doi.org/10.1007/s10115-013-0679-x), with pairs of orders after Mitchell
    et al. 2022 (https://arxiv.org/abs/2104.12199).
    """
    count, columns = inputs.shape
    draws = len(background)
    order = _orders(count, draws, columns, seed).flatten(0, 1)
    of = torch.arange(count).repeat_interleave(draws)
    now = background.repeat(count, 1)
    values = torch.zeros(count * draws, columns, dtype=torch.float64)
    known = _asked(score, now, of)
    each = torch.arange(len(now))
    for step in range(columns):
        column = order[:, step]
        now[each, column] = inputs[of, column]
        then = _asked(score, now, of)
        values[each, column] = then - known
        known = then
    found = values.view(count, draws, columns)
    half = torch.arange(draws) // 2 % 2
    return found.mean(1), torch.stack([found[:, half == side].mean(1) for side in range(2)])


def _orders(count: int, draws: int, columns: int, seed: int) -> Tensor:
    """Orders of columns (count, draws, columns), each second one that before it reversed."""
    pairs = -(-draws // 2)
    places = np.arange(count)[:, None, None], np.arange(pairs)[:, None], np.arange(columns)
    first = torch.from_numpy(np.argsort(draw(seed, "shapley", *places), axis=2, kind="stable"))
    return torch.stack([first, first.flip(2)], 2).flatten(1, 2)[:, :draws]


def _asked(score: Score, points: Tensor, rows: Tensor) -> Tensor:
    with torch.no_grad():
        parts = zip(points.split(BATCH), rows.split(BATCH), strict=True)
        return torch.cat([score(some, of).double() for some, of in parts])
