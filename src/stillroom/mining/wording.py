"""How numbers are written in the sentences of mining."""

from __future__ import annotations

from collections.abc import Sequence

NAMED = 5  # names that a sentence lists


def percent(share: float, digits: int = 1) -> str:
    """Return a share as per cent; never rounded up to all of it."""
    shown, whole = f"{100 * share:.{digits}f}", f"{100:.{digits}f}"
    return f"{shown if shown != whole or share >= 1 else f'{100 - 10.0**-digits:.{digits}f}'} %"


def listed(names: Sequence[str], most: int = NAMED, *, quoted: bool = True) -> str:
    """Return names as a sentence lists them: ``'a'``, ``'a' and 'b'``, ``'a', 'b', 'c' and 7 more``."""
    shown = [f"'{name}'" if quoted else name for name in names[:most]]
    if len(names) > most:
        return f"{', '.join(shown)} and {len(names) - most:,} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
