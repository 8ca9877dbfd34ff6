"""What a terminal is shown: nothing that comes from a file or a name may steer it."""

from __future__ import annotations

import unicodedata

_KEPT = "\n\t"
_TURNING = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Characters that change the direction in which others are shown."""


def visible(text: str) -> str:
    """Return ``text`` with control characters, turned directions and halves of characters written out, as ``\\x1b``.

    Line breaks and tabs stay.

    Example:
        >>> visible("\\x1b[31mred")
        '\\\\x1b[31mred'
    """
    if text.isprintable():
        return text
    return "".join(_written(one) if _steers(one) else one for one in text)


def _steers(one: str) -> bool:
    return one not in _KEPT and (unicodedata.category(one) in ("Cc", "Cs", "Zl", "Zp") or one in _TURNING)


def _written(one: str) -> str:
    code = ord(one)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
