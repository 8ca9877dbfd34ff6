"""Numbers as a reader wants them: digits that fit, dashes for what is missing, intervals over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from stillroom.statistics import MINUS, over_seeds

DASH = "–"
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def finite(value: object) -> float | None:
    """Return ``value`` as a float, or None where it is missing, not a number, NaN or infinite."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return None
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def digits_for(values: Sequence[float]) -> int:
    """Return how many decimals serve a whole column or axis of ``values``."""
    largest = max((abs(value) for value in values), default=0.0)
    if not largest or (largest >= 100 and all(value == int(value) for value in values)):
        return 0
    for bound, digits in ((10.0, 1), (1.0, 2), (0.01, 3)):
        if largest >= bound:
            return digits
    return min(2 - math.floor(math.log10(largest)), 9)


def number(value: object, digits: int | None = None, unit: str = "") -> str:
    """Write one number: thousands apart, a real minus sign, bytes as kB or MB, a dash for what is missing.

    ``unit`` ``"bytes"`` and ``"count"`` are understood; any other unit is the caller's to print.
    """
    held = finite(value)
    if held is None:
        return DASH
    if unit == "bytes":
        return size(held)
    if unit == "count":
        digits = 0 if held == int(held) or abs(held) >= 100 else 1
    if digits is None:
        if held and abs(held) < 1e-4:
            mantissa, _, exponent = f"{held:.1e}".partition("e")
            return f"{mantissa}·10{str(int(exponent)).translate(SUPERSCRIPT)}".replace("-", MINUS)
        digits = digits_for([held])
    text = f"{held:,.{digits}f}"
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("-")
    return text.replace("-", MINUS)


def size(count: float) -> str:
    """Write a number of bytes in decimal units: ``812 B``, ``41.2 kB``, ``1.30 MB``."""
    if abs(count) < 1000:
        return f"{count:.0f} B"
    power = next((power for power in (1, 2) if abs(count) < 999.5 * 1000**power), 3)
    count, unit = count / 1000**power, ("kB", "MB", "GB")[power - 1]
    digits = 2 if abs(count) < 10 else 1 if abs(count) < 100 else 0
    return f"{count:.{digits}f} {unit}"


def with_interval(mean: object, low: object, high: object, digits: int | None = None, unit: str = "") -> str:
    """Write ``90.4 ± 0.6``, or ``90.4 (89.1 to 90.9)`` where the interval is lopsided, or the mean alone."""
    middle, bottom, top = finite(mean), finite(low), finite(high)
    shown = number(middle, digits, unit)
    if middle is None or bottom is None or top is None or bottom == top:
        return shown
    if digits is None:
        digits = digits_for([middle])
    half = (top - bottom) / 2
    if abs((top + bottom) / 2 - middle) <= max(0.1 * half, 0.5 * 10**-digits):
        return f"{shown} ± {number(half, digits, unit)}"
    return f"{shown} ({number(bottom, digits, unit)} to {number(top, digits, unit)})"


def spread(values: Sequence[object]) -> dict[str, Any]:
    """Return the numbers among ``values`` with their mean and its interval: ``{mean, low, high, n, points}``.

    The interval is :func:`stillroom.statistics.over_seeds`. With fewer than two numbers ``low`` and ``high`` are None;
    without any, ``mean`` is None too.
    """
    held = [found for value in values if (found := finite(value)) is not None]
    if not held:
        return {"mean": None, "low": None, "high": None, "n": 0, "points": []}
    whole = over_seeds(held)
    return {"mean": whole.mean, "low": whole.low, "high": whole.high, "n": whole.n, "points": held}


def scaled(reading: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """Return ``reading`` (as of :func:`spread`) with every number but ``n`` multiplied by ``factor``."""
    result: dict[str, Any] = {"n": reading.get("n", 0)}
    for name in ("mean", "low", "high"):
        held = finite(reading.get(name))
        result[name] = None if held is None else held * factor
    result["points"] = [value * factor for value in reading.get("points", ())]
    return result | ({"method": reading["method"]} if "method" in reading else {})
