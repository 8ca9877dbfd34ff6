"""How many rows and random draws fit into the time that there is."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from stillroom.mining.examples.left_out import STRENGTHS
from stillroom.mining.examples.mislabels import EVALUATIONS
from stillroom.mining.examples.prototypes import MOST
from stillroom.mining.examples.untrained import HASHED, WIDTH, seen
from stillroom.mining.panel import Budget
from stillroom.mining.subject import Subject

DRAWS, FEWEST = 20, 5  # of random rows, to compare with; no fewer are drawn for want of time
LEAST = 300  # rows of a split; no fewer are looked at for want of time
SHARE = 0.6  # of the time that is left, for which work is planned: not all of it is products of matrices
PILOT = 64  # rows by which the reading of inputs is timed
ROWS, SIDE, TIMES = 2048, 512, 3  # of a matrix, and how often it is multiplied, to time this machine
NEAREST = 10  # prototypes a class, the most that are tried
# How many multiplications and additions of a matrix product take as long as one of an inverse, of a distance (both for
# each number that goes in), and as one softened answer.
INVERTED, APART, SOFTENED = 2, 3, 300


def fit(subject: Subject, longest: int, width: int, known: float, budget: Budget) -> int:
    """Return how many rows of a split, at most ``longest``, can be looked at in the time that is left.

    ``width`` is that of the features, ``known`` the share of rows with labels. How long one product of matrices and the
    reading of a few inputs take here and now is measured; the rest follows from how many products there are.
    """
    if longest <= LEAST:
        return longest
    left, rows = SHARE * budget.left, LEAST
    if left > 0:
        reading, once = _reading(subject), _once()
        rows = longest
        while rows > LEAST and reading * rows + once * _work(subject, rows, width, known) > left:
            rows = max(LEAST, int(0.9 * rows))
    return rows


def draws(budget: Budget, share: float) -> Iterator[int]:
    """Count random draws: ``DRAWS`` of them, or fewer, ``FEWEST`` at least, if a share of the time left is used up."""
    end = (1 - share) * budget.left
    for draw in range(DRAWS):
        if draw >= FEWEST and budget.left <= end:
            return
        yield draw


def _reading(subject: Subject) -> float:
    """Seconds that it takes to read a row and to make of it what no label has touched."""
    some = subject.examples("train")[:PILOT]
    seen(subject, some[:4])  # what is done once, such as importing, is not timed
    began = time.perf_counter()
    seen(subject, some)
    return (time.perf_counter() - began) / len(some)


def _once() -> float:
    """Seconds that one multiplication and addition takes in a product of matrices."""
    rows = torch.linspace(0, 1, ROWS * SIDE, dtype=torch.float64).view(ROWS, SIDE)
    rows @ rows[:SIDE]  # finding memory is not timed
    began = time.perf_counter()
    for _ in range(TIMES):
        rows @ rows[:SIDE]
    return (time.perf_counter() - began) / (TIMES * ROWS * SIDE**2)


def _work(subject: Subject, rows: int, width: int, known: float) -> float:
    """Multiplications and additions, roughly, of the panel with so many rows of each split."""
    classes, labelled = len(subject.classes), max(1.0, known * rows)
    alike = rows * min(MOST, rows / classes) * (APART * width + SOFTENED)
    near = (DRAWS + 1) * APART * NEAREST * classes * rows * width
    untouched = HASHED if subject.kind == "text" else WIDTH
    layers = _layer(labelled, width, classes, DRAWS + 2) + _layer(labelled, untouched, classes, 0)
    return alike + near + layers + 3 * EVALUATIONS * SOFTENED * labelled * classes


def _layer(rows: float, width: int, classes: int, left_out: int) -> float:
    """The same for a layer of each strength, the doubt of its rows, and some of them left out so many times."""
    wide = min(rows, width) + 1
    inverses, products = len(STRENGTHS) * INVERTED + left_out, len(STRENGTHS) + 6 + 0.1 * left_out
    turned = 4 * width * rows**2 if width > rows else 0.0
    return inverses * wide**3 + products * rows * wide**2 + turned + (left_out + 6) * rows * wide * classes
