"""A last layer fitted anew, of which leaving out any example is exact."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the penalty, by mean row; the best for rows left out is taken


@dataclass(frozen=True)
class LastLayer:
    """A linear layer by penalised least squares on ``rows`` (N, D + 1), the last column 1, towards ``aims`` (N, K).

    Of least squares the answer to a row that was left out, and the effect of leaving it out on any other answer, follow
    from one fit without another (Allen 1974, https://doi.org/10.1080/00401706.1974.10489157; Cook 1977,
    https://doi.org/10.1080/00401706.1977.10489493). Where influence functions (Koh and Liang 2017,
    https://arxiv.org/abs/1703.04730) approximate, this is exact, for this layer on features that stay as they are.
    """

    rows: Tensor
    aims: Tensor
    gram: Tensor
    inverse: Tensor
    standing: Standing
    strength: float

    @cached_property
    def leverage(self) -> Tensor:
        """How much each row (N) makes its own answer, 0 to 1."""
        return ((self.rows @ self.inverse) * self.rows).sum(1).clamp(max=1 - 1e-9)

    @cached_property
    def weights(self) -> Tensor:
        """The layer itself (D + 1, K), the bias last."""
        return self.inverse @ (self.rows.T @ self.aims)

    @cached_property
    def scores(self) -> Tensor:
        """Scores (N, K) of the rows it was fitted on; they sum to 1 in each row, and are not held to 0 and 1."""
        return self.rows @ self.weights

    @cached_property
    def left_out(self) -> Tensor:
        """Scores (N, K) that each row would get from a layer fitted on all the others."""
        return self.aims - (self.aims - self.scores) / (1 - self.leverage)[:, None]

    def asked(self, features: Tensor) -> Tensor:
        """Return features (M, D) as rows of this layer (M, D + 1)."""
        return self.standing.rows(features)

    def answer(self, features: Tensor) -> Tensor:
        """Return scores (M, K) of other features (M, D)."""
        return self.asked(features) @ self.weights

    def pull(self, features: Tensor) -> Tensor:
        """Return by how much each row moved the scores of features (M, D) towards its own class: (M, N).

        Without row n the scores of m are lower by ``pull[m, n] * (aims - scores)[n]``.
        """
        return (self.asked(features) @ self.inverse @ self.rows.T) / (1 - self.leverage)

    def loss_without(self, features: Tensor, aims: Tensor) -> Tensor:
        """Return by how much the summed squared error on (M, D), (M, K) rises when each row (N) is left out."""
        asked, rest = self.asked(features), self.aims - self.scores
        gap = aims - asked @ self.weights
        own = (self.rows @ self.inverse) / (1 - self.leverage)[:, None]  # so that pull is asked @ own.T, never made
        squares = ((own @ (asked.T @ asked)) * own).sum(1)
        return 2 * ((own @ (asked.T @ gap)) * rest).sum(1) + squares * rest.square().sum(1)

    def without(self, gone: Tensor) -> Tensor:
        """Return the weights (D + 1, K) fitted without some rows, given by number; each row left is penalised alike."""
        rows, aims = self.rows[gone], self.aims[gone]
        left = len(self.rows) - len(rows)
        penalised = self.gram - rows.T @ rows + self.standing.penalty(self.strength, left)
        return torch.linalg.solve(penalised, self.rows.T @ self.aims - rows.T @ aims)

    def relabelled(self, labels: Tensor) -> LastLayer:
        """Return the layer fitted to other labels (N)."""
        return replace(self, aims=one_hot(labels, self.aims.shape[1]))


@dataclass(frozen=True)
class Standing:
    """How features become rows of a layer: about their middle, at one scale, in the directions of the fitted rows.

    Where there are more features than fitted rows, a penalised fit uses no direction but theirs; to leave out the
    others changes no answer. Rows get a last column of 1.
    """

    middle: Tensor
    scale: Tensor
    turn: Tensor | None

    def rows(self, features: Tensor) -> Tensor:
        """Return features (M, D) as rows, float64."""
        values = (features.double() - self.middle) / self.scale
        values = values if self.turn is None else values @ self.turn
        return torch.cat([values, torch.ones(len(values), 1, dtype=torch.float64)], 1)

    def penalty(self, strength: float, rows: int) -> Tensor:
        """Return what is added to the Gram matrix of so many rows; the last column, in all alike, is not penalised."""
        width = len(self.middle) if self.turn is None else self.turn.shape[1]
        penalty = torch.full((width + 1,), strength * rows / (len(self.middle) + 1), dtype=torch.float64)
        penalty[-1] = 1e-9 * rows
        return torch.diag(penalty)


def fitted(features: Tensor, labels: Tensor, classes: int) -> LastLayer:
    """Return the layer of features (N, D) and labels (N) with the penalty that answers left-out rows best."""
    standing = _standing(features.double())
    rows, aims = standing.rows(features), one_hot(labels, classes)
    gram, best, least = rows.T @ rows, None, torch.inf
    for strength in STRENGTHS:
        inverse = torch.linalg.inv(gram + standing.penalty(strength, len(rows)))
        layer = LastLayer(rows, aims, gram, inverse, standing, strength)
        loss = float((aims - layer.left_out).square().sum())
        if best is None or loss < least:
            best, least = layer, loss
    assert best is not None
    return best


def _standing(features: Tensor) -> Standing:
    middle, scale = features.mean(0), features.std(0).clamp(min=1e-6) * features.shape[1] ** 0.5
    if features.shape[1] <= len(features):
        return Standing(middle, scale, None)
    return Standing(middle, scale, torch.linalg.qr(((features - middle) / scale).T).Q)


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Return labels (N) as aims (N, classes), float64."""
    return torch.nn.functional.one_hot(labels, classes).double()
