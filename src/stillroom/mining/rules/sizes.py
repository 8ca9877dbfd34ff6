"""Trees of every size, cut from one: the smallest that answers like the model, and its like on labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stillroom.contracts import UNLABELLED
from stillroom.mining.rules.asking import Ground, Told, joined
from stillroom.mining.rules.reading import Taught
from stillroom.mining.rules.tree import Floats, Tree, grow, one_hot
from stillroom.randomness import permutation

SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
MOST = 256  # leaves before those of one answer under one question are made one
NOISED = 0.3  # weight of a noised picture beside a real one: whole, they cost agreement on real ones, gaining none
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
    """The trees: on the model's answers to rows and queries, to rows alone, and on labels (None: none are known)."""

    both: Series
    rows: Series
    labels: Series | None


def grow_all(ground: Ground, *, most: int = MOST, points: bool = False, seed: int = 0) -> tuple[Grown, Sequence[str]]:
    """Grow all that is compared, each alike; and say what was left out.

    With ``points`` trees may ask what the words of a text add up to: the tree on labels by points learnt from labels.
    """
    rows, notes = ground.rows, []
    features = ground.rows.rows.shape[1]
    fit = max(1000, int(CELLS / max(1, features) / max(1.0, rows.answers.shape[1] / 10)))
    both = joined([rows, ground.queries])
    weight = NOISED if ground.reading.kind == "image" else 1.0
    weights = np.repeat([1.0, weight], [len(rows), len(ground.queries)])
    if len(both) > fit:
        notes.append(
            f"Trees were grown on {fit:,} of {len(both):,} examples, drawn at random: {features} features each."
        )
        weights = weights[_drawn(len(both), fit, seed)]
        both, rows = _some(both, fit, seed), _some(rows, fit, seed)
    known = rows.labels != UNLABELLED
    classes = ground.rows.answers.shape[1]
    labels = None
    if known.any():
        given = _may_ask(ground, rows.rows[known], "labels" if points else None)
        labels = series(grow(given, one_hot(rows.labels[known], classes), leaves=most, seed=seed))
    of: Taught | None = "answers" if points else None
    soft = series(grow(_may_ask(ground, rows.rows, of), rows.answers, leaves=most, seed=seed))
    grown = series(grow(_may_ask(ground, both.rows, of), both.answers, leaves=most, weights=weights, seed=seed))
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
    chosen = _drawn(len(told), count, seed)
    return Told(told.rows[chosen], told.answers[chosen], told.labels[chosen])


def _drawn(many: int, count: int, seed: int) -> NDArray[np.int64]:
    return permutation(many, seed, "rules, grown on")[:count]
