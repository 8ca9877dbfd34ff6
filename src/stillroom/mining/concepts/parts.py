"""Non-negative parts: features as sums of few directions, none of which takes anything away."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

STEPS = 200
NOTHING = 1e-3  # of a row's length: a code below it is none


@dataclass(frozen=True)
class Parts:
    """``directions`` (units, D) of length 1, none negative; ``middle`` (D) is the mean of the rows they came from."""

    directions: Tensor
    middle: Tensor

    def codes(self, rows: Tensor) -> Tensor:
        """Return how much of each part a row has (N, units), nought or more, in the units of ``rows``."""
        codes, _ = _factors(rows, self.directions, len(self.directions))
        return codes * (codes > NOTHING * rows.norm(dim=1, keepdim=True))

    def rebuilt(self, rows: Tensor) -> Tensor:
        """Return rows (N, D) as their parts give them again."""
        return self.codes(rows) @ self.directions


def factored(rows: Tensor, units: int, *, seed: int = 0) -> Parts:
    """Return a non-negative matrix factorisation of ``rows`` (N, D), none of which is negative.

    As in CRAFT (Fel et al. 2023, https://arxiv.org/abs/2211.10154), which factorises features behind a ReLU with the
    same solver of scikit-learn, of the crops of one class; here of whole examples of all classes.
    """
    units = min(units, *rows.shape)
    _, directions = _factors(rows, None, units, seed)
    return Parts(torch.nn.functional.normalize(directions, dim=1), rows.mean(0))


def _factors(rows: Tensor, directions: Tensor | None, units: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    from sklearn.decomposition import non_negative_factorization
    from sklearn.exceptions import ConvergenceWarning

    given: dict[str, Any] = {"init": "nndsvda"}
    if directions is not None:
        given = {"H": directions.numpy(), "update_H": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # what is not reached shows in what is explained
        codes, found, _ = non_negative_factorization(
            rows.numpy(), n_components=units, max_iter=STEPS, tol=1e-3, random_state=seed, **given
        )
    return torch.from_numpy(codes), torch.from_numpy(found)
