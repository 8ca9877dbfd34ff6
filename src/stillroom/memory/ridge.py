"""A linear map fitted on some rows and judged on others, its penalty chosen for each target on a part of the first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
CHECKED = 0.25  # of the fitting rows: kept apart to choose the penalty


@contextmanager
def one_thread() -> Iterator[None]:
    """Linear algebra on one thread: the same numbers on every machine, and no quarrel between jobs."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(1):
        yield


def predicted(known: Numbers, targets: Numbers, asked: Numbers, penalties: Sequence[float]) -> Numbers:
    """Return what a ridge map fitted to ``known`` (rows, units) -> ``targets`` (rows, targets) says of ``asked``.

    Units are brought to deviation 1 first, so a penalty p weighs as noise of deviation sqrt(p) on every unit would
    (Bishop 1995, https://doi.org/10.1162/neco.1995.7.1.108). Each target gets the penalty that serves it best on the
    last quarter of the known rows, or its plain mean where none serves. Rows that belong together must stand together.
    """
    cut = max(1, round((1 - CHECKED) * len(known)))
    first, check = _Fit(known[:cut], targets[:cut]), (known[cut:], targets[cut:])
    errors = [((first(check[0], np.full(targets.shape[1], one)) - check[1]) ** 2).sum(0) for one in penalties]
    errors.append(((targets[:cut].mean(0) - check[1]) ** 2).sum(0))
    chosen = np.asarray([*penalties, np.inf])[np.argmin(np.stack(errors), axis=0)]
    return _Fit(known, targets)(asked, chosen)


def explained(truth: Numbers, guess: Numbers, *, pooled: bool = False) -> Numbers:
    """Return 1 - squared error / squared distance from the mean: for each target, or ``pooled`` over all of them.

    A target that never changes has 0.
    """
    errors, spread = ((truth - guess) ** 2).sum(0), ((truth - truth.mean(0)) ** 2).sum(0)
    if pooled:
        errors, spread = errors.sum(keepdims=True), spread.sum(keepdims=True)
    shares: Numbers = np.where(spread > 0, 1 - errors / np.where(spread > 0, spread, 1), 0.0)
    return shares


class _Fit:
    """Every penalty's map from one decomposition."""

    def __init__(self, known: Numbers, targets: Numbers) -> None:
        self.middle, self.mean = known.mean(0), targets.mean(0)
        spread = known.std(0)
        self.scale = np.where(spread > 1e-7 * max(float(spread.max(initial=0)), 1e-30), spread, np.inf)
        units = (known - self.middle) / self.scale
        self.sizes, self.turn = np.linalg.eigh(units.T @ units / len(units))
        self.along = self.turn.T @ (units.T @ (targets - self.mean) / len(units))

    def __call__(self, asked: Numbers, penalties: Numbers) -> Numbers:
        turned = ((asked - self.middle) / self.scale) @ self.turn
        found: Numbers = turned @ (self.along / (self.sizes.clip(min=0)[:, None] + penalties[None])) + self.mean
        return found
