"""A last layer fitted anew, of which leaving out any example is exact."""

from __future__ import annotations

from dataclasses import dataclass

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
    inverse: Tensor
    middle: Tensor
    scale: Tensor
    strength: float

    @property
    def leverage(self) -> Tensor:
        """How much each row (N) makes its own answer, 0 to 1."""
        return ((self.rows @ self.inverse) * self.rows).sum(1).clamp(max=1 - 1e-9)

    @property
    def scores(self) -> Tensor:
        """Scores (N, K) of the rows it was fitted on; they sum to 1 in each row, and are not held to 0 and 1."""
        return self.rows @ (self.inverse @ (self.rows.T @ self.aims))

    @property
    def left_out(self) -> Tensor:
        """Scores (N, K) that each row would get from a layer fitted on all the others."""
        return self.aims - (self.aims - self.scores) / (1 - self.leverage)[:, None]

    def asked(self, features: Tensor) -> Tensor:
        """Return features (M, D) as rows of this layer (M, D + 1)."""
        return _rows(features, self.middle, self.scale)

    def answer(self, features: Tensor) -> Tensor:
        """Return scores (M, K) of other features (M, D)."""
        return self.asked(features) @ (self.inverse @ (self.rows.T @ self.aims))

    def pull(self, features: Tensor) -> Tensor:
        """Return by how much each row moved the scores of features (M, D) towards its own class: (M, N).

        Without row n the scores of m are lower by ``pull[m, n] * (aims - scores)[n]``.
        """
        return (self.asked(features) @ self.inverse @ self.rows.T) / (1 - self.leverage)

    def loss_without(self, features: Tensor, aims: Tensor) -> Tensor:
        """Return by how much the summed squared error on (M, D), (M, K) rises when each row (N) is left out."""
        rest, pull = self.aims - self.scores, self.pull(features)
        gap = aims - self.answer(features)
        return 2 * ((pull.T @ gap) * rest).sum(1) + pull.square().sum(0) * rest.square().sum(1)

    def without(self, gone: Tensor) -> LastLayer:
        """Return the layer fitted without some rows, given by number; as strong a penalty for each row left."""
        kept = torch.ones(len(self.rows), dtype=torch.bool)
        kept[gone] = False
        rows, aims = self.rows[kept], self.aims[kept]
        return LastLayer(rows, aims, _inverse(rows, self.strength), self.middle, self.scale, self.strength)

    def relabelled(self, labels: Tensor) -> LastLayer:
        """Return the layer fitted to other labels (N)."""
        aims = one_hot(labels, self.aims.shape[1])
        return LastLayer(self.rows, aims, self.inverse, self.middle, self.scale, self.strength)


def fitted(features: Tensor, labels: Tensor, classes: int) -> LastLayer:
    """Return the layer of features (N, D) and labels (N) with the penalty that answers left-out rows best."""
    features = features.double()
    middle, scale = features.mean(0), features.std(0).clamp(min=1e-6) * features.shape[1] ** 0.5
    rows, aims = _rows(features, middle, scale), one_hot(labels, classes)
    tried = [LastLayer(rows, aims, _inverse(rows, one), middle, scale, one) for one in STRENGTHS]
    return min(tried, key=lambda layer: float((aims - layer.left_out).square().sum()))


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Return labels (N) as aims (N, classes), float64."""
    return torch.nn.functional.one_hot(labels, classes).double()


def _rows(features: Tensor, middle: Tensor, scale: Tensor) -> Tensor:
    return torch.cat([(features.double() - middle) / scale, torch.ones(len(features), 1, dtype=torch.float64)], 1)


def _inverse(rows: Tensor, strength: float) -> Tensor:
    """The inverse of the penalised Gram matrix; the last column, added to all answers alike, is not penalised."""
    penalty = torch.full((rows.shape[1],), strength * len(rows) / rows.shape[1], dtype=torch.float64)
    penalty[-1] = 1e-9 * len(rows)
    return torch.linalg.inv(rows.T @ rows + torch.diag(penalty))
