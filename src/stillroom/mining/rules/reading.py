"""What a rule may speak of: columns and categories of a table, pixels or small squares of them, words of a text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from stillroom.mining.rules.tree import Floats
from stillroom.mining.subject import Subject
from stillroom.models import vocabulary
from stillroom.utf8 import unpack

SIDE = 14  # squares along a picture's longer side, at most: more pixels are too many to read about
FREQUENT, WORDS = 2000, 300  # words that are looked at, and of these the ones rules may speak of
_COLOURS = {1: [""], 3: ["red of ", "green of ", "blue of "]}


@dataclass(frozen=True)
class Feature:
    """One thing that can be asked about an example, as a number.

    ``place``: the column of a table (and the number of the category); of a picture channel, top, bottom, left, right
    (the latter of each two not included); nothing for a word. ``value``: the category, or the word.
    """

    kind: Literal["number", "flag", "category", "pixel", "word"]
    name: str
    place: tuple[int, ...] = ()
    value: str = ""
    unit: str = ""

    def says(self, low: float | None, high: float | None) -> str:
        """Say in words that the feature is ``low`` or above, and below ``high``."""
        if self.kind in ("category", "word"):
            yes = low is not None
            if self.kind == "category":
                return f"{self.name} is {'' if yes else 'not '}{self.value}"
            return f'has {"" if yes else "no "}"{self.value}"'
        if self.kind == "flag":
            return f"{self.name} is {int(low is not None)}"
        unit = f" {self.unit}" if self.unit else ""
        if low is not None and high is not None:
            return f"{_number(low)} <= {self.name} < {_number(high)}{unit}"
        return f"{self.name} {'<' if low is None else '>='} {_number(high if low is None else low)}{unit}"

    def plain(self) -> dict[str, Any]:
        """Return this as JSON values."""
        told: dict[str, Any] = {"kind": self.kind, "name": self.name, "place": list(self.place)}
        return told | ({"value": self.value} if self.value else {}) | ({"unit": self.unit} if self.unit else {})


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
            return _presence([set(cut) for cut in self.cut(inputs)], [one.value for one in self.features])
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


def read_as(subject: Subject, inputs: Tensor, answers: Floats) -> Reading:
    """Return how the examples of ``subject`` are read; ``inputs`` and ``answers`` (B, classes) are of training rows."""
    if subject.kind == "text":
        return _words(subject, inputs, answers)
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


def _words(subject: Subject, inputs: Tensor, answers: Floats) -> Reading:
    """Choose the words: among the most frequent that the model knows, those whose presence moves its answers most."""
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
    there = _presence(pieces, frequent)
    share = there.mean(0)
    moved = (there - share).T @ (answers - answers.mean(0)) / len(texts)
    moving = (moved**2).sum(1) / np.maximum(share * (1 - share), 1e-12)
    chosen = sorted(np.argsort(-moving, kind="stable")[:WORDS].tolist())
    features = tuple(Feature("word", frequent[number], value=frequent[number]) for number in chosen)
    return Reading("text", features, unit, longest)


def unit_of(encode: object) -> vocabulary.Unit | None:
    """Return what a model's own ``encode`` cuts texts into, where it says so."""
    return next((unit for unit in vocabulary.UNITS if unit == getattr(encode, "unit", None)), None)


def _presence(pieces: Sequence[set[str]], words: Sequence[str]) -> Floats:
    numbers = {word: number for number, word in enumerate(words)}
    there = np.zeros((len(pieces), len(words)))
    for row, cut in enumerate(pieces):
        there[row, [numbers[piece] for piece in cut if piece in numbers]] = 1
    return there


def fine(inputs: Tensor, most: int) -> Tensor:
    """Return pictures (B, C, H, W) as float32, brought down by whole squares to at most ``most`` pixels a side."""
    side = -(-max(inputs.shape[2:]) // most)
    pooled = inputs.float()
    return pooled if side == 1 else torch.nn.functional.avg_pool2d(pooled, side, ceil_mode=True)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.12g}"
