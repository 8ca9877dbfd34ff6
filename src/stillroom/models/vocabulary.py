"""Texts in pieces: words, or characters for Chinese and Japanese, and the list of those worth a vector of their own.

Without PyTorch, so that what answers with NumPy alone cuts texts by the same rule. A piece is lower-cased after it was
cut out, and where it lies is told in UTF-8 bytes of the raw text, which no lower-casing shifts.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Literal, NamedTuple

from stillroom.errors import ModelError, say

Unit = Literal["word", "character"]
UNITS: tuple[Unit, ...] = ("word", "character")
CHARACTERS_FROM = 1 / 3  # the share of letters that are Chinese or Japanese from which characters are the unit

_LONG = 4096  # from this many characters on, no more of a text is cut than is asked for


class Piece(NamedTuple):
    """A lower-cased piece of a text and the UTF-8 bytes [first, end) it was cut from."""

    text: str
    first: int
    end: int


def _ranges(points: Iterable[int]) -> str:
    """Return the inside of a character class that holds just these code points, which ascend."""
    parts: list[list[int]] = []
    for point in points:
        if parts and point == parts[-1][1] + 1:
            parts[-1][1] = point
        else:
            parts.append([point, point])
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in parts)


# Chinese and Japanese are written without spaces: each of these characters is a piece.
_APART = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
# Accents and vowel signs that stand alone in Unicode, and the joiners, belong to the letter before them. Python's
# \w knows none of them; without this, every word of Hindi would fall apart.
_MARKS = "\u200c\u200d" + _ranges(
    point for point in range(0x300, 0x10000) if unicodedata.category(chr(point))[0] == "M"
)
_LATIN = "0-9A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff\uff10-\uff19\uff21-\uff3a\uff41-\uff5a"
_MOST = 64  # a longer run is no word, and must not become an entry of megabytes


def _rule(start: str) -> re.Pattern[str]:
    """Runs that begin with ``start``, apostrophes inside them, or else any one character that is not a space."""
    run = f"{start}(?:{start}|[{_MARKS}]){{0,{_MOST - 1}}}"
    return re.compile(f"\\[MASK\\]|{run}(?:['\u2019]{run}){{0,3}}|[^\\s\ufeff\u200b][{_MARKS}]*")


_RULES: dict[str, re.Pattern[str]] = {"word": _rule(f"[^\\W_{_APART}]"), "character": _rule(f"[{_LATIN}]")}
_ASCII: dict[str, re.Pattern[str]] = dict.fromkeys(
    UNITS, re.compile(rf"\[mask\]|[0-9a-z]{{1,{_MOST}}}(?:'[0-9a-z]{{1,{_MOST}}}){{0,3}}|\S")
)
_LETTERS = re.compile(r"[^\W\d_]+")
_UNSPACED = re.compile(f"[{_APART}]")


def split(text: str, unit: Unit, most: int | None = None) -> list[str]:
    """Return the lower-cased pieces of ``text``, at most the first ``most``, without where they lie.

    A piece is a run of letters and digits (of at most 64 characters, with apostrophes inside: "don't"), or any other
    single character that is not a space. Chinese and Japanese characters are always pieces of their own; with unit
    "character" all letters are but Latin ones and digits. A typographic apostrophe becomes a plain one. "[MASK]", which
    stands for a hidden piece, is one too.
    """
    short = most is None or len(text) < _LONG
    if text.isascii():
        rule, lowered = _ASCII[unit], text.lower()
        found = rule.findall(lowered) if short else [match[0] for match in islice(rule.finditer(lowered), most)]
    else:
        rule = _RULES[unit]
        cut = rule.findall(text) if short else [match[0] for match in islice(rule.finditer(text), most)]
        found = [_plain(piece) for piece in cut]
    return found if most is None else found[:most]


def pieces(text: str, unit: Unit, most: int | None = None) -> list[Piece]:
    """Return what :func:`split` does, each with the UTF-8 bytes [first, end) of ``text`` that it stands for."""
    if text.isascii():
        matches = islice(_ASCII[unit].finditer(text.lower()), most)
        return [Piece(match[0], match.start(), match.end()) for match in matches]
    found, behind, first = [], 0, 0
    for match in islice(_RULES[unit].finditer(text), most):
        first += _bytes(text[behind : match.start()])
        end = first + _bytes(match[0])
        found.append(Piece(_plain(match[0]), first, end))
        behind, first = match.end(), end
    return found


def _plain(piece: str) -> str:
    # Only now, piece by piece: what a capital becomes may depend on its neighbours (Greek) or be longer (Turkish).
    return piece.lower().replace("\u2019", "'")


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))


def unit_for(texts: Iterable[str]) -> Unit:
    """Return "character" where more than a third of all letters are Chinese or Japanese, else "word"."""
    letters = unspaced = 0
    for text in texts:
        letters += sum(map(len, _LETTERS.findall(text)))
        if not text.isascii():
            unspaced += len(_UNSPACED.findall(text))
    return "character" if unspaced > CHARACTERS_FROM * letters else "word"


def build(
    texts: Iterable[str], *, unit: Unit | Literal["auto"] = "auto", size: int = 8000, least: int = 2
) -> tuple[list[str], Unit]:
    """Return the ``size`` most frequent pieces that occur at least ``least`` times, and the unit they were cut by.

    The most frequent comes first, equal ones by their text: the same texts in any order give the same list.

    Raises:
        ModelError: an unknown unit, a size or count below 1, or no piece occurs often enough.
    """
    if unit != "auto":
        check_unit(unit)
    for name, value in (("size", size), ("least", least)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ModelError(say(f"The {name} of a vocabulary does not fit", repr(value), "a whole number from 1 on"))
    texts = list(texts)
    chosen = unit_for(texts) if unit == "auto" else unit
    counts = Counter(piece for text in texts for piece in split(text, chosen))
    often = ((piece, count) for piece, count in counts.items() if count >= least)
    kept = [piece for piece, _ in sorted(often, key=lambda entry: (-entry[1], entry[0]))[:size]]
    if not kept:
        raise ModelError(
            say(
                "These texts give no vocabulary",
                f"{len(texts)} text{'s' * (len(texts) != 1)} with {len(counts)} different {chosen}s",
                f"at least one {chosen} that occurs {least} times",
                "Give more text, or ask for fewer occurrences (least).",
            )
        )
    return kept, chosen


def check_unit(unit: str) -> Unit:
    """Return ``unit`` if it is one.

    Raises:
        ModelError: it is not.
    """
    for known in UNITS:
        if unit == known:
            return known
    raise ModelError(say("Unknown unit of a vocabulary", f"'{unit}'", UNITS))


def counted(texts: Iterable[str], unit: Unit) -> Iterator[tuple[str, int]]:
    """Return each piece of ``texts`` and how often it occurs, the most frequent first, equal ones by their text."""
    counts = Counter(piece for text in texts for piece in split(text, unit))
    yield from sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
