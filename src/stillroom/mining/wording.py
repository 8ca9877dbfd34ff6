"""How numbers are written in the sentences of mining."""

from __future__ import annotations


def percent(share: float, digits: int = 1) -> str:
    """Return a share as per cent; never rounded up to all of it."""
    shown, whole = f"{100 * share:.{digits}f}", f"{100:.{digits}f}"
    return f"{shown if shown != whole or share >= 1 else f'{100 - 10.0**-digits:.{digits}f}'} %"
