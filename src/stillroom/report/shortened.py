"""Long texts in a page: the beginning is shown, the rest is folded behind "more", without a script."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from markupsafe import Markup, escape

from stillroom.report.svg import tag

LONGEST = 300  # characters that stand in the page
OVER = 60  # more than that may be left unfolded, rather than to fold a few words


def shortened(text: str, longest: int = LONGEST) -> Markup:
    """Return ``text``, escaped; where it is long its beginning, ended at a space, and the rest to unfold."""
    if len(text) <= longest + OVER:
        return escape(text)
    end = text.rfind(" ", longest // 2, longest)
    end = longest if end < 0 else end
    return unfolding(text[:end], text[end:], len(text) - end)


def shortened_pieces(pieces: Iterable[tuple[str, object]], longest: int = LONGEST) -> Markup:
    """Return a text given in pieces (what is written, and how it is drawn), folded like :func:`shortened`."""
    held = list(pieces)
    ends = list(itertools.accumulate(len(written) for written, _ in held))
    drawn = [shown for _, shown in held]
    if not ends or ends[-1] <= longest + OVER:
        return _joined(drawn)
    kept = max(1, sum(1 for end in ends if end <= longest))
    return unfolding(_joined(drawn[:kept]), _joined(drawn[kept:]), ends[-1] - ends[kept - 1])


def unfolding(beginning: object, rest: object, length: int) -> Markup:
    """Return a beginning and, folded behind "more", the rest of ``length`` characters."""
    summary = tag("summary", f"more ({length:,} characters)")
    return Markup("").join([escape(beginning), "…", tag("details", summary, rest, class_="more")])


def _joined(parts: Iterable[object]) -> Markup:
    return Markup("").join(escape(part) for part in parts)
