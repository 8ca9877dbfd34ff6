"""Points for words: what a text's words add up to says more than whether one of them is there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stillroom.mining.rules.tree import Floats
from stillroom.randomness import permutation

FREQUENT, LEAST = 2000, 3  # words that are looked at, and in how many texts each must be
HELD = 300  # words that have points, at most
HIGHEST = 10  # points a word can have
TEXTS, CLASSES = 200, 20  # no fewer texts, no more classes
STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)  # of the penalty, tried on a fifth of the texts
FIFTH = 5


@dataclass(frozen=True)
class Worth:
    """Points of words for a class: whole numbers from -10 to 10, those that matter most first."""

    place: int
    points: tuple[tuple[str, int], ...]


def worths(pieces: Sequence[set[str]], answers: Floats, seed: int) -> list[Worth]:
    """Return what each word is worth for each class, from texts in pieces and ``answers`` (B, classes; shares).

    Ridge regression of the answers on which words are there, cut to the words that matter most and rounded: a scoring
    system. With two classes there is one set of points, for the second. Few texts, or many classes, give none.
    """
    classes = answers.shape[1]
    if len(pieces) < TEXTS or classes > CLASSES:
        return []
    counts = Counter(piece for row in pieces for piece in row)
    often = sorted((-count, piece) for piece, count in counts.items() if LEAST <= count <= len(pieces) - LEAST)
    words = [piece for _, piece in often[:FREQUENT]]
    if not words:
        return []
    there = presence(pieces, words)
    aims = answers - answers.mean(1, keepdims=True)
    strength = _strength(there, aims, permutation(len(there), seed, "points"))
    spread = there.std(0)
    matter = (np.abs(_ridge(there, aims, strength)) * spread[:, None]).max(1)
    kept = np.argsort(-matter, kind="stable")[:HELD]
    weights = _ridge(there[:, kept], aims, strength)
    if not np.abs(weights).max() > 0:
        return []
    whole = np.round(HIGHEST * weights / np.abs(weights).max()).astype(int)
    found = []
    for place in range(classes) if classes > 2 else (1,):
        points = tuple(
            (words[at], int(one)) for at, one in zip(kept.tolist(), whole[:, place].tolist(), strict=True) if one
        )
        if points:
            found.append(Worth(place, points))
    return found


def dealt(worth: Worth, seed: int) -> Worth:
    """Return the same points, dealt to the same words at random: what points that mean nothing reach."""
    words, points = zip(*worth.points, strict=True)
    order = permutation(len(points), seed, "points dealt", worth.place)
    return Worth(worth.place, tuple((word, points[at]) for word, at in zip(words, order.tolist(), strict=True)))


def presence(pieces: Sequence[set[str]], words: Sequence[str]) -> Floats:
    """Return 1 where a word (columns) is among the pieces of a text (rows)."""
    numbers = {word: number for number, word in enumerate(words)}
    there = np.zeros((len(pieces), len(words)))
    for row, cut in enumerate(pieces):
        there[row, [numbers[piece] for piece in cut if piece in numbers]] = 1
    return there


def added(pieces: Sequence[set[str]], points: dict[str, int]) -> Floats:
    """Return the points (B) that the words of each text add up to."""
    return np.array([sum(points.get(piece, 0) for piece in row) for row in pieces], np.float64)


def _ridge(there: Floats, aims: Floats, strength: float) -> Floats:
    """Weights (words, classes) of centred columns."""
    rows = there - there.mean(0)
    gram = rows.T @ rows + strength * np.eye(rows.shape[1])
    weights: Floats = np.linalg.solve(gram, rows.T @ (aims - aims.mean(0)))
    return weights


def _strength(there: Floats, aims: Floats, order: np.ndarray) -> float:
    """The penalty with which a fifth of the texts, not learnt from, is answered most alike."""
    cut = len(order) // FIFTH
    held, learnt = order[:cut], order[cut:]
    mean, start = there[learnt].mean(0), aims[learnt].mean(0)
    top = aims[held].argmax(1)
    right = [
        float((((there[held] - mean) @ _ridge(there[learnt], aims[learnt], one) + start).argmax(1) == top).mean())
        for one in STRENGTHS
    ]
    return STRENGTHS[len(right) - 1 - int(np.argmax(right[::-1]))]
