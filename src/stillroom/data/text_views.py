"""Replayable views of texts: each is a pure function of (seed, example, view), never of the batch it is in.

View 0 is the plain text. In a view v >= 1 words are masked, and some texts are cut to a few words in a row: two of
the three rules by which Tang et al. 2019 (https://arxiv.org/abs/1903.12136) made texts for a teacher to answer. The
third, other words of the same part of speech, is left out: it needs a tagger.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stillroom.data.views import check_views
from stillroom.errors import DataError, say
from stillroom.files import fingerprint
from stillroom.randomness import integers, uniform

MASK = "[MASK]"
"""What stands for a masked word: BERT's tokenizers know it, a vocabulary of one's own takes it for an unknown word."""

_CHINESE = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
UNITS = {
    "auto": re.compile(rf"[{_CHINESE}]|[^\s{_CHINESE}]+"),
    "character": re.compile(r"\S"),
    "word": re.compile(r"\S+"),
}
"""What is masked or cut as one. ``auto``: what stands between white space, and each Chinese or Japanese character."""


@dataclass(frozen=True)
class TextViews:
    """How many views a text has (view 0, the plain one, among them) and how the others are made.

    Each word becomes :data:`MASK` with probability ``mask``; with probability ``sample`` only n words in a row are
    kept, n uniform in ``shortest`` .. ``longest`` and every place equally likely; a shorter text is kept whole. One
    word of every view is never masked: the authors drop texts of masks alone, and a view cannot be absent. The
    defaults are the paper's; the authors' program has 0 for ``sample``, and never takes the last n words of a text.
    Raises DataError on impossible settings.
    """

    count: int = 1
    mask: float = 0.1
    sample: float = 0.25
    seed: int = 0
    unit: Literal["auto", "word", "character"] = "auto"
    shortest: int = 1
    longest: int = 5

    def __post_init__(self) -> None:
        for name, least in (("count", 1), ("shortest", 1), ("longest", 1), ("seed", None)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or (least is not None and value < least):
                allowed = "a whole number" + ("" if least is None else f" from {least} on")
                raise DataError(say("Views of texts cannot be made", f"{name}={value!r}", allowed))
        for name in ("mask", "sample"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise DataError(say("Views of texts cannot be made", f"{name}={value!r}", "a number from 0 to 1"))
        if self.unit not in UNITS:
            raise DataError(say("Views of texts cannot be made", f"unit={self.unit!r}", sorted(UNITS)))
        if self.shortest > self.longest:
            given = f"shortest={self.shortest} and longest={self.longest}"
            raise DataError(say("Views of texts cannot be made", given, "shortest at most as large as longest"))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the settings that shape views 1, 2, ...: ``count`` only says how many are used."""
        settings = asdict(self) | {"mask": float(self.mask), "sample": float(self.sample)}
        del settings["count"]
        return fingerprint({"kind": "mask-and-sample", "version": 1, **settings})

    def check(self, views: NDArray[np.int64]) -> None:
        """Refuse view numbers that do not exist.

        Raises:
            DataError: a view is below 0 or not below ``count``.
        """
        check_views(views, self.count)

    def apply(self, texts: Sequence[str], examples: NDArray[np.int64], views: NDArray[np.int64]) -> list[str]:
        """Return the views of ``texts``, which are the plain ``examples``; all three of one length."""
        find = UNITS[self.unit].finditer
        units = [[] if view == 0 else list(find(text)) for text, view in zip(texts, views, strict=True)]
        sizes = np.array([len(found) for found in units], np.int64)
        ends = np.cumsum(sizes)
        place = np.arange(int(sizes.sum())) - np.repeat(ends - sizes, sizes)
        chances = uniform(self.seed, "mask", np.repeat(examples, sizes), np.repeat(views, sizes), place)
        first, last = self._windows(sizes, examples, views)
        seen = list(texts)
        for row in np.flatnonzero(sizes).tolist():
            kept = slice(first[row], last[row])
            own = chances[ends[row] - sizes[row] : ends[row]][kept]
            masked = own < self.mask
            if masked.all():
                masked[own.argmax()] = False
            seen[row] = _written(texts[row], units[row][kept], masked)
        return seen

    def _windows(
        self, sizes: NDArray[np.int64], examples: NDArray[np.int64], views: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the first word of each text that is kept, and the one after the last."""
        cut = uniform(self.seed, "sample", examples, views) < self.sample
        length = self.shortest + integers(self.longest - self.shortest + 1, self.seed, "length", examples, views)
        length = np.where(cut, np.minimum(length, sizes), sizes)
        first = (uniform(self.seed, "first", examples, views) * (sizes - length + 1)).astype(np.int64)
        return first, first + length


def _written(text: str, units: Sequence[re.Match[str]], masked: NDArray[np.bool_]) -> str:
    """Return the text from the first to the last of ``units`` with :data:`MASK` for the masked ones."""
    parts: list[str] = []
    written = units[0].start()
    for unit in (units[index] for index in np.flatnonzero(masked).tolist()):
        parts += [text[written : unit.start()], MASK]
        written = unit.end()
    parts.append(text[written : units[-1].end()])
    return "".join(parts)
