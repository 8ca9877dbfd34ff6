"""A tree as a person, a program and a file have it: text, standalone Python, plain JSON values, single rules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.mining.rules.asking import Told
from stillroom.mining.rules.reading import Feature, Reading
from stillroom.mining.rules.tree import LEAF, Floats, Tree

DIGITS = 4  # of a probability
WIDE = 110  # letters in a line of Python

Bounds = dict[int, tuple[float | None, float | None]]


@dataclass(frozen=True)
class Rule:
    """One leaf: what holds of all that come to it, in words, and the model's mean answer there."""

    leaf: int
    conditions: tuple[str, ...]
    answer: str
    shares: Floats

    @property
    def sentence(self) -> str:
        """The rule in one line."""
        return f"{' and '.join(self.conditions) or 'always'} -> {self.answer}"


def rules_of(tree: Tree, reading: Reading, classes: Sequence[str]) -> list[Rule]:
    """Return the rules of a tree in the order of its text; what is asked twice of a feature is said once."""
    found = []
    for leaf, bounds in _paths(tree, 0, {}):
        conditions = tuple(reading.features[number].says(low, high) for number, (low, high) in bounds.items())
        shares = tree.value[leaf]
        found.append(Rule(leaf, conditions, str(classes[int(shares.argmax())]), shares))
    return found


def _sides(tree: Tree, node: int) -> list[tuple[int, float | None, float | None]]:
    """Return what follows from a question, with the bounds that hold there: a leaf first, where there is one."""
    threshold = float(tree.threshold[node])
    sides = [(int(tree.left[node]), None, threshold), (int(tree.right[node]), threshold, None)]
    return sorted(sides, key=lambda side: tree.feature[side[0]] != LEAF)


def _paths(tree: Tree, node: int, bounds: Bounds) -> Iterator[tuple[int, Bounds]]:
    if tree.feature[node] == LEAF:
        yield node, bounds
        return
    number = int(tree.feature[node])
    known = bounds.get(number, (None, None))
    for side, low, high in _sides(tree, node):
        new = (known[0] if low is None else low, known[1] if high is None else high)
        yield from _paths(tree, side, bounds | {number: new})


def held_against(tree: Tree, rule: Rule, told: Told) -> tuple[float, float | None, NDArray[np.bool_]]:
    """Return the share of ``told`` that a rule covers, how often the model answers as it says there, and which rows."""
    covered = tree.leaf(told.rows) == rule.leaf
    same = told.top[covered] == rule.shares.argmax()
    return float(covered.mean()), float(same.mean()) if covered.any() else None, covered


def as_text(tree: Tree, reading: Reading, classes: Sequence[str]) -> str:
    """Return the tree as text: questions, with what follows below them, or beside them where it is an answer."""
    numbers = {rule.leaf: place for place, rule in enumerate(rules_of(tree, reading, classes), 1)}

    def answer(leaf: int) -> str:
        top = int(tree.value[leaf].argmax())
        return f"{classes[top]} ({100 * tree.value[leaf][top]:.0f} %)  [rule {numbers[leaf]}]"

    def lines(node: int, depth: int, word: str) -> Iterator[str]:
        space = "    " * depth
        if tree.feature[node] == LEAF:
            yield f"{space}{word.strip() + ': ' if word else ''}{answer(node)}"
            return
        (first, low, high), (second, _, _) = _sides(tree, node)
        asked = f"{space}{word}if {reading.features[tree.feature[node]].says(low, high)}:"
        if tree.feature[first] == LEAF:
            yield f"{asked} {answer(first)}"
            yield from lines(second, depth, "else ")
            return
        yield asked
        yield from lines(first, depth + 1, "")
        yield f"{space}else:"
        yield from lines(second, depth + 1, "")

    return "\n".join(lines(0, 0, ""))


def as_plain(tree: Tree, reading: Reading, classes: Sequence[str]) -> dict[str, Any]:
    """Return the tree as JSON values: a node is a question with ``below`` and ``else``, or a ``leaf``."""
    used = sorted({int(tree.feature[node]) for node in tree.order})
    numbers = {rule.leaf: place for place, rule in enumerate(rules_of(tree, reading, classes), 1)}

    def node_of(node: int) -> dict[str, Any]:
        if tree.feature[node] == LEAF:
            shares = [round(float(one), DIGITS) for one in tree.value[node]]
            return {"leaf": str(classes[int(tree.value[node].argmax())]), "shares": shares, "rule": numbers[node]}
        return {
            "feature": used.index(int(tree.feature[node])),
            "below": float(tree.threshold[node]),
            "then": node_of(int(tree.left[node])),
            "else": node_of(int(tree.right[node])),
        }

    return {
        "classes": [str(one) for one in classes],
        "features": [reading.features[number].plain() for number in used],
        "tree": node_of(0),
    }


# --- Python ----------------------------------------------------------------------------------------------

_ROW = {
    "table": "``row`` holds one value a column of COLUMNS, in their order; a category as its text or its number.",
    "image": "``row`` is a picture as numbers, row[channel][row][column], as the model's data has them.",
    "text": "``row`` is a text, or its words in lower case.",
}
_MEAN = '''

def mean(row, channel, top, bottom, left, right):
    """Return the mean of a square of a picture."""
    values = [float(row[channel][y][x]) for y in range(top, bottom) for x in range(left, right)]
    return sum(values) / len(values)
'''
_CODED = '''

def coded(row):
    """Return a row with numbers for the texts of categories."""
    known = {column: {text: code for code, text in enumerate(texts)} for column, texts in CATEGORIES.items()}
    return [known[i].get(one, -1) if isinstance(one, str) else one for i, one in enumerate(row)]
'''
_CUT = '''

def apart(one):
    """Return whether a character is a piece of its own: Chinese, Japanese, marks and, by WORDS_ARE, letters."""
    code = ord(one)
    ranges = ((0x3005, 0x3007), (0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF))
    if not (one.isalnum() or 0x300 <= code < 0x370):
        return True
    latin = code < 0x250 or 0x1E00 <= code < 0x1F00 or 0xFF10 <= code < 0xFF5B
    if WORDS_ARE == "character" and not latin:
        return True
    return any(low <= code <= high for low, high in ranges) or 0xFF66 <= code <= 0xFF9F or code >= 0x20000


def cut(text):
    """Return the words of a text that the model sees."""
    words, word = [], ""
    text = text.lower().replace("\\u2019", "'")
    for i, one in enumerate(text + " "):
        inside = one == "'" and word and not apart(text[i + 1 : i + 2] or " ")
        if inside or not apart(one):
            word += one
            continue
        words += [part for part in (word, one.strip()) if part]
        word = ""
    return words[:LONGEST] if LONGEST else words
'''


def as_python(tree: Tree, reading: Reading, classes: Sequence[str], about: str) -> str:
    """Return the tree as standalone Python without imports: ``predict(row)`` gives the class and its probabilities."""
    head = ['"""' + _quoted(about), "", "Written by Stillroom. Nothing is needed but Python.", '"""', ""]
    head.append(f"CLASSES = {_listed(classes)}")
    head += _constants(tree, reading)
    body = [
        "",
        "",
        "def predict(row):",
        '    """Return the class of a row and the probability of each class, in the order of CLASSES.',
        "",
        f"    {_ROW[reading.kind]}",
        '    """',
        "    top, shares = leaf_of(row)",
        "    return CLASSES[top], shares",
        "",
        "",
        "def leaf_of(row):",
        '    """Return the number of the class and the probabilities at the leaf where a row ends."""',
    ]
    if reading.kind == "text":
        body.append("    words = set(cut(row) if isinstance(row, str) else row)")
    elif reading.categories:
        body.append("    row = coded(row)")
    helper = {"image": _MEAN, "text": _CUT}.get(reading.kind, _CODED if reading.categories else "")
    return "\n".join(head) + helper + "\n".join(body + list(_branches(tree, reading, 0, 1))) + "\n"


def _constants(tree: Tree, reading: Reading) -> list[str]:
    if reading.kind == "text":
        lines = [f"WORDS_ARE = {reading.unit!r}", f"LONGEST = {reading.longest}  # words the model sees, 0: all"]
        asked = sorted({int(tree.feature[node]) for node in tree.order})
        for one in (reading.features[number] for number in asked):
            if one.points:
                pairs = [f"{word!r}: {points}, " for word, points in one.points]
                lines += [f"{_constant(one)} = {{  # {_quoted(one.name)}", *_filled(pairs), "}"]
        return lines
    if reading.kind == "image":
        return []
    named = {one.place[0]: one.name for one in reading.features}
    lines = [f"COLUMNS = {_listed([named.get(place, '') for place in range(max(named, default=-1) + 1)])}"]
    if reading.categories:
        lines.append(f"CATEGORIES = { ({place: list(texts) for place, texts in reading.categories.items()})!r}")
    return lines


def _branches(tree: Tree, reading: Reading, node: int, depth: int) -> Iterator[str]:
    space = "    " * depth
    if tree.feature[node] == LEAF:
        shares = tree.value[node]
        yield f"{space}return {int(shares.argmax())}, {[round(float(one), DIGITS) for one in shares]}"
        return
    one, threshold = reading.features[tree.feature[node]], float(tree.threshold[node])
    yield f"{space}if {_asked(one, threshold)}:  # {_quoted(one.says(None, threshold))}"
    yield from _branches(tree, reading, int(tree.left[node]), depth + 1)
    yield from _branches(tree, reading, int(tree.right[node]), depth)  # what came to the branch above has returned


def _asked(one: Feature, threshold: float) -> str:
    """Return the Python for "this feature is below its threshold"."""
    if one.points:
        return f"sum({_constant(one)}.get(word, 0) for word in words) < {threshold!r}"
    if one.kind == "word":
        return f"{one.value!r} not in words"
    if one.kind == "category":
        return f"row[{one.place[0]}] != {one.place[1]}"
    if one.kind != "pixel":
        return f"row[{one.place[0]}] < {threshold!r}"
    channel, top, bottom, left, right = one.place
    if (bottom - top, right - left) == (1, 1):
        return f"row[{channel}][{top}][{left}] < {threshold!r}"
    return f"mean(row, {channel}, {top}, {bottom}, {left}, {right}) < {threshold!r}"


def _constant(one: Feature) -> str:
    return f"POINTS_{one.place[0]}"


def _filled(pairs: Sequence[str]) -> list[str]:
    """Lines of pairs, none of them long."""
    lines = ["    "]
    for pair in pairs:
        if len(lines[-1]) + len(pair) > WIDE and lines[-1].strip():
            lines.append("    ")
        lines[-1] += pair
    return [line.rstrip() for line in lines]


def _listed(texts: Sequence[str]) -> str:
    return "(" + "".join(f"{str(one)!r}, " for one in texts).strip() + ")"


def _quoted(text: str) -> str:
    """Return text that ends no comment and no docstring."""
    shown = "".join(one if one.isprintable() else " " for one in " ".join(text.split()))
    return shown.replace("\\", "/").replace('"""', "'''")
