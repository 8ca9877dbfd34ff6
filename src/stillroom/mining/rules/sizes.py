"""Trees of every size, cut from one: the smallest that answers like the model, and its like on labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from stillroom.contracts import UNLABELLED
from stillroom.mining.rules.asking import Ground, Told, joined
from stillroom.mining.rules.reading import Taught
from stillroom.mining.rules.tree import Floats, Tree, grow
from stillroom.randomness import permutation

SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
MOST = 256  # leaves before those of one answer under one question are made one
NEAR, SURE = 0.01, 2.0  # of agreement: no more than chance; standard errors
CELLS = 3_000_000  # examples x features, up to ten classes: about what is learnt from in a few seconds


def agreement(tree: Tree, told: Told) -> float:
    """Return the share of ``told`` to which the tree answers the model's class."""
    return float((tree.answer(told.rows) == told.top).mean())


@dataclass(frozen=True)
class Series:
    """Trees of one growth by size, the smallest first; of equal size only the last, which has asked most."""

    trees: tuple[Tree, ...]

    def largest(self, leaves: int) -> Tree:
        """Return the largest tree of at most ``leaves`` leaves."""
        return next(tree for tree in reversed(self.trees) if tree.size <= leaves or tree.size == 1)

    def smallest(self, told: Sequence[Told], fidelity: float, leaves: int) -> Tree | None:
        """Return the smallest tree of at most ``leaves`` that agrees on so great a share of each of ``told``."""
        fitting = (tree for tree in self.trees if tree.size <= leaves)
        return next((tree for tree in fitting if all(agreement(tree, one) >= fidelity for one in told)), None)

    def curve(self, told: Told) -> tuple[list[int], list[float]]:
        """Return sizes, each about twice the last, and how far the tree of each agrees with the model on ``told``."""
        trees = {tree.size: tree for tree in (self.largest(size) for size in SIZES)}
        return list(trees), [agreement(tree, told) for tree in trees.values()]


def series(tree: Tree) -> Series:
    """Return all sizes of a tree."""
    cuts = [tree.cut(leaves) for leaves in range(1, len(tree.order) + 2)]
    by_size = {one.size: one for one in cuts}
    return Series(tuple(by_size[size] for size in sorted(by_size)))


@dataclass(frozen=True)
class Grown:
    """The trees: on the model's answers to rows and queries, to rows alone, and on labels (None: none are known).

    ``queries`` says whether those on both are told of, else those on rows alone.
    """

    both: Series
    rows: Series
    labels: Series | None
    queries: bool = True

    @property
    def own(self) -> Series:
        """The trees that are told of."""
        return self.both if self.queries else self.rows

    @property
    def other(self) -> Series:
        """Those that are not."""
        return self.rows if self.queries else self.both

    def suited(self, told: Told, leaves: int) -> Grown:
        """Return the same, without queries where these surely cost agreement on ``told`` at so many ``leaves``.

        They teach what the model does away from the data; with few leaves for many classes that can be more than a
        tree holds.
        """
        rows, both = (one.largest(leaves).answer(told.rows) == told.top for one in (self.rows, self.both))
        gain = rows.astype(float) - both
        surely = SURE * float(gain.std()) / max(1, len(gain)) ** 0.5
        return replace(self, queries=float(gain.mean()) <= max(NEAR, surely))


def grow_all(ground: Ground, *, most: int = MOST, points: bool = False, seed: int = 0) -> tuple[Grown, Sequence[str]]:
    """Grow all that is compared, each alike; and say what was left out.

    With ``points`` trees may ask what the words of a text add up to: the tree on labels by points learnt from labels.
    """
    rows, notes = ground.rows, []
    features = ground.rows.rows.shape[1]
    fit = max(1000, int(CELLS / max(1, features) / max(1.0, rows.answers.shape[1] / 10)))
    both = joined([rows, ground.queries])
    if len(both) > fit:
        notes.append(
            f"Trees were grown on {fit:,} of {len(both):,} examples, drawn at random: {features} features each."
        )
        both = _some(both, fit, seed)
        rows = _some(rows, fit, seed)
    known = rows.labels != UNLABELLED
    classes = ground.rows.answers.shape[1]
    labels = None
    if known.any():
        given = _may_ask(ground, rows.rows[known], "labels" if points else None)
        labels = series(grow(given, np.eye(classes)[rows.labels[known]], leaves=most, seed=seed))
    of: Taught | None = "answers" if points else None
    soft = series(grow(_may_ask(ground, rows.rows, of), rows.answers, leaves=most, seed=seed))
    grown = series(grow(_may_ask(ground, both.rows, of), both.answers, leaves=most, seed=seed))
    return Grown(grown, soft, labels), notes


def _may_ask(ground: Ground, rows: Floats, points: Taught | None) -> Floats:
    """Rows in which what may not be asked about is 0 throughout, so that no question parts them by it."""
    hidden = [at for at, one in enumerate(ground.reading.features) if one.kind == "points" and one.of != points]
    if not hidden:
        return rows
    left = rows.copy()
    left[:, hidden] = 0
    return left


def _some(told: Told, count: int, seed: int) -> Told:
    if len(told) <= count:
        return told
    chosen = permutation(len(told), seed, "rules, grown on")[:count]
    return Told(told.rows[chosen], told.answers[chosen], told.labels[chosen])
