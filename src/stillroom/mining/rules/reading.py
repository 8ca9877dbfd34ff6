"""What a rule may speak of: columns and categories of a table, pixels or small squares of them, words of a text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillroom.contracts import UNLABELLED
from stillroom.mining.rules.points import Worth, added, dealt, presence, worths
from stillroom.mining.rules.tree import Floats, one_hot
from stillroom.mining.subject import Subject
from stillroom.models import vocabulary
from stillroom.utf8 import unpack

SIDE = 14  # squares along a picture's longer side, at most: more pixels are too many to read about
FREQUENT, WORDS = 2000, 300  # words that are looked at, and of these the ones rules may speak of
_COLOURS = {1: [""], 3: ["red of ", "green of ", "blue of "]}


Taught = Literal["answers", "labels", "chance"]


@dataclass(frozen=True)
class Feature:
    """One thing that can be asked about an example, as a number.

    ``points`` of words, whose sum is asked about, were learnt from the model's answers, from labels, or dealt at
    random, as ``of`` says; ``place`` is then the class.

    ``place``: the column of a table (and the number of the category); of a picture channel, top, bottom, left, right
    (the latter of each two not included); nothing for a word. ``value``: the category, or the word.
    """

    kind: Literal["number", "flag", "category", "pixel", "word", "points"]
    name: str
    place: tuple[int, ...] = ()
    value: str = ""
    unit: str = ""
    points: tuple[tuple[str, int], ...] = ()
    of: Taught = "answers"

    def says(self, low: float | None, high: float | None) -> str:
        """Say in words that the feature is ``low`` or above, and below ``high``."""
        if self.kind in ("category", "word"):
            yes = low is not None
            if self.kind == "category":
                return f"{self.name} is {'' if yes else 'not '}{self.value}"
            return f'has {"" if yes else "no "}"{self.value}"'
        if self.kind == "flag":
            return f"{self.name} is {int(low is not None)}"
        if self.kind == "points":
            return f"{self.name}: {_whole(low, high)}"
        unit = f" {self.unit}" if self.unit else ""
        if low is not None and high is not None:
            return f"{_number(low)} <= {self.name} < {_number(high)}{unit}"
        return f"{self.name} {'<' if low is None else '>='} {_number(high if low is None else low)}{unit}"

    def plain(self) -> dict[str, Any]:
        """Return this as JSON values."""
        told: dict[str, Any] = {"kind": self.kind, "name": self.name, "place": list(self.place)}
        more = {"value": self.value, "unit": self.unit, "points": dict(self.points)}
        return told | {name: one for name, one in more.items() if one}


@dataclass(frozen=True)
class Reading:
    """How an example is read as the numbers that rules speak of.

    ``unit`` and ``longest`` say how texts are cut into pieces and how many of them the model sees (0: all).
    ``categories``: of a column's number, its texts.
    """

    kind: str
    features: tuple[Feature, ...]
    unit: vocabulary.Unit = "word"
    longest: int = 0
    categories: Mapping[int, Sequence[str]] | None = None

    def __call__(self, inputs: Tensor) -> Floats:
        """Return raw inputs (B, ...) as numbers (B, features)."""
        if self.kind == "text":
            pieces = [set(cut) for cut in self.cut(inputs)]
            there = presence(pieces, [one.value for one in self.features if one.kind == "word"])
            return np.column_stack([there, *(added(pieces, dict(one.points)) for one in self.features if one.points)])
        rows = inputs.numpy().astype(np.float64)
        if self.kind == "image":
            return _squares(rows, _side(rows.shape[2:]))
        flat = rows.reshape(len(rows), -1)
        found = flat[:, [one.place[0] for one in self.features]]
        for number, one in enumerate(self.features):
            if one.kind == "category":
                found[:, number] = found[:, number] == one.place[1]
        return found

    def cut(self, inputs: Tensor) -> list[list[str]]:
        """Return the pieces of texts that the model sees."""
        return [vocabulary.split(text, self.unit, self.longest or None) for text in unpack(inputs)]


def read_as(subject: Subject, inputs: Tensor, answers: Floats, labels: NDArray[np.int64]) -> Reading:
    """Return how examples are read; ``inputs``, ``answers`` (B, classes) and ``labels`` (B) are of training rows."""
    if subject.kind == "text":
        return _words(subject, inputs, answers, labels)
    if subject.kind == "image":
        return Reading("image", tuple(_pixels(tuple(inputs.shape[1:]))))
    return _columns(subject, inputs)


# --- tables ----------------------------------------------------------------------------------------------


def _columns(subject: Subject, inputs: Tensor) -> Reading:
    flat = inputs.reshape(len(inputs), -1).numpy()
    data = subject.data
    names = [str(one) for one in getattr(data, "names", ())]
    if len(names) != flat.shape[1]:
        names = [_plain_name(number, tuple(inputs.shape[1:])) for number in range(flat.shape[1])]
    units, texts = getattr(data, "units", None) or {}, getattr(data, "categories", None) or {}
    kinds = list(getattr(data, "kinds", ())) or ["numeric"] * len(names)
    features: list[Feature] = []
    for column, name in enumerate(names):
        seen = np.unique(flat[:, column])
        if kinds[column] == "categorical":
            known = texts.get(name, ())
            for code in seen.astype(int).tolist():
                value = str(known[code]) if code < len(known) else str(code)
                features.append(Feature("category", name, (column, code), value))
        elif set(seen.tolist()) <= {0.0, 1.0}:
            features.append(Feature("flag", name, (column,)))
        else:
            features.append(Feature("number", name, (column,), unit=str(units.get(name, ""))))
    coded = {names.index(name): [str(one) for one in known] for name, known in texts.items() if name in names}
    return Reading("table", tuple(features), categories=coded)


def _plain_name(number: int, shape: tuple[int, ...]) -> str:
    if len(shape) == 1:
        return f"column {number}"
    places = (int(one) for one in np.unravel_index(number, shape))
    return f"value ({', '.join(map(str, places))})"


# --- pictures --------------------------------------------------------------------------------------------


def _side(shape: Sequence[int]) -> int:
    """Return the side of the squares that a picture (height, width) is read in."""
    return -(-max(shape) // SIDE)


def _pixels(shape: tuple[int, ...]) -> list[Feature]:
    channels, height, width = shape
    side = _side((height, width))
    colours = _COLOURS.get(channels) or [f"channel {number} of " for number in range(channels)]
    found = []
    for channel, colour in enumerate(colours):
        for top in range(0, height, side):
            for left in range(0, width, side):
                bottom, right = min(top + side, height), min(left + side, width)
                name = f"{colour}row {top}, column {left}"
                if side > 1:
                    name = f"mean {colour}rows {top}-{bottom - 1}, columns {left}-{right - 1}"
                found.append(Feature("pixel", name, (channel, top, bottom, left, right)))
    return found


def _squares(images: Floats, side: int) -> Floats:
    """Return images (B, C, H, W) as the means of squares (B, squares)."""
    if side > 1:
        down, across = (np.arange(0, size, side) for size in images.shape[2:])
        sums = np.add.reduceat(np.add.reduceat(images, down, axis=2), across, axis=3)
        high, wide = (np.diff([*starts, size]) for starts, size in zip((down, across), images.shape[2:], strict=True))
        images = sums / np.outer(high, wide)
    return np.ascontiguousarray(images.reshape(len(images), -1))


# --- texts -----------------------------------------------------------------------------------------------


def _words(subject: Subject, inputs: Tensor, answers: Floats, labels: NDArray[np.int64]) -> Reading:
    """Choose the words: among the most frequent that the model knows, those whose presence moves its answers most.

    Points for words stand behind them, one set for each class.
    """
    encode = subject.encode
    known = set(getattr(encode, "vocabulary", ()))
    texts = unpack(inputs)
    unit = unit_of(encode) or vocabulary.unit_for(texts)
    longest = int(getattr(encode, "longest", 0)) if known else 0
    pieces = [set(vocabulary.split(text, unit, longest or None)) for text in texts]
    counts = Counter(piece for row in pieces for piece in row if not known or piece in known)
    least = max(2, len(texts) // 200)
    often = sorted((-count, piece) for piece, count in counts.items() if least <= count <= len(texts) - least)
    frequent = [piece for _, piece in often[:FREQUENT]]
    there = presence(pieces, frequent)
    share = there.mean(0)
    moved = (there - share).T @ (answers - answers.mean(0)) / len(texts)
    moving = (moved**2).sum(1) / np.maximum(share * (1 - share), 1e-12)
    chosen = sorted(np.argsort(-moving, kind="stable")[:WORDS].tolist())
    features = tuple(Feature("word", frequent[number], value=frequent[number]) for number in chosen)
    known_words = [{piece for piece in row if not known or piece in known} for row in pieces]
    return Reading("text", (*features, *_points(subject, known_words, answers, labels)), unit, longest)


def _points(
    subject: Subject, pieces: Sequence[set[str]], answers: Floats, labels: NDArray[np.int64]
) -> Iterator[Feature]:
    """Points learnt from the model's answers, the same dealt at random, and points learnt from labels."""

    def feature(worth: Worth, of: Taught) -> Feature:
        name = f"points for '{subject.classes[worth.place]}'"
        return Feature("points", name, (worth.place,), points=worth.points, of=of)

    own = worths(pieces, answers, subject.seed)
    yield from (feature(one, "answers") for one in own)
    yield from (feature(dealt(one, subject.seed), "chance") for one in own)
    known = labels != UNLABELLED
    if own and known.any():
        some = [row for row, one in zip(pieces, known.tolist(), strict=True) if one]
        yield from (
            feature(one, "labels") for one in worths(some, one_hot(labels[known], answers.shape[1]), subject.seed)
        )


def unit_of(encode: object) -> vocabulary.Unit | None:
    """Return what a model's own ``encode`` cuts texts into, where it says so."""
    return next((unit for unit in vocabulary.UNITS if unit == getattr(encode, "unit", None)), None)


def fine(inputs: Tensor, most: int) -> Tensor:
    """Return pictures (B, C, H, W) as float32, brought down by whole squares to at most ``most`` pixels a side."""
    side = -(-max(inputs.shape[2:]) // most)
    pooled = inputs.float()
    return pooled if side == 1 else torch.nn.functional.avg_pool2d(pooled, side, ceil_mode=True)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.12g}"


def _whole(low: float | None, high: float | None) -> str:
    """Bounds of a sum of whole numbers, in words."""
    if low is None or high is None:
        return f"{math.ceil(high) - 1} or less" if high is not None else f"{math.ceil(low or 0.0)} or more"
    ends = math.ceil(low), math.ceil(high) - 1
    return f"{ends[0]} to {ends[1]}" if ends[0] != ends[1] else f"{ends[0]}"
