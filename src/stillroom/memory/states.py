"""How much of a teacher's memory can be read from a student's, beside what so few numbers could hold at best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from stillroom.errors import DataError, say
from stillroom.memory.ridge import Numbers, explained, one_thread, predicted

PENALTIES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True)
class StateFit:
    """``r2`` of the student's map on held-out rows; ``ceiling``: of the teacher's first principal components.

    ``ratio`` is r2 / ceiling; ``units`` and ``of`` are the numbers in the student's and in the teacher's state.
    """

    r2: float
    ceiling: float
    ratio: float
    units: int
    of: int

    def plain(self) -> dict[str, Any]:
        """Return this as JSON values."""
        return {"r2": self.r2, "ceiling": self.ceiling, "ratio": self.ratio, "units": self.units, "of": self.of}


def state_r2(
    student: Tensor | NDArray[Any], teacher: Tensor | NDArray[Any], mask: Tensor | NDArray[Any] | None = None
) -> StateFit:
    """Return how much of the teacher's state a linear map from the student's explains on rows it was not fitted to.

    ``student`` (B, T, ...) and ``teacher`` (B, T, ...): states of the same inputs at the same steps, all further axes
    are units; ``mask`` (B, T) leaves out padding. The first half of the rows fits, the other is asked. The share is
    pooled over the teacher's units, each by its own variance. ``ceiling`` is what the teacher's first n principal
    components of the fitting half explain on the other, n the student's units: no map from n numbers does better.

    Raises:
        DataError: the two do not have the same rows and steps, or fewer than four rows.
    """
    ours, theirs = _plain(student), _plain(teacher)
    if ours.shape[:2] != theirs.shape[:2] or len(ours) < 4:
        given = f"{ours.shape[:2]} of the student, {theirs.shape[:2]} of the teacher"
        raise DataError(say("These states cannot be compared", given, "the same rows (4 or more) and steps of both"))
    real = np.ones(ours.shape[:2], bool) if mask is None else np.asarray(mask, dtype=bool)
    half = len(ours) // 2
    known, asked = ours[:half][real[:half]], ours[half:][real[half:]]
    targets, truth = theirs[:half][real[:half]], theirs[half:][real[half:]]
    with one_thread():
        found = float(explained(truth, predicted(known, targets, asked, PENALTIES), pooled=True)[0])
        middle = targets.mean(0)
        _, turn = np.linalg.eigh((targets - middle).T @ (targets - middle))
        few = turn[:, ::-1][:, : ours.shape[2]]
        best = float(explained(truth, middle + (truth - middle) @ few @ few.T, pooled=True)[0])
    return StateFit(found, best, found / best if best > 0 else 0.0, ours.shape[2], theirs.shape[2])


def _plain(states: Tensor | NDArray[Any]) -> Numbers:
    array = states.detach().cpu().double().numpy() if isinstance(states, Tensor) else np.asarray(states, np.float64)
    return array.reshape(*array.shape[:2], -1)
