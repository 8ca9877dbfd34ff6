"""The few strokes of SVG that the charts share: elements, scales, ticks, marks, axes.

Every text goes through ``markupsafe.escape``; colours come from CSS classes, so that one drawing serves
light, dark and paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from markupsafe import Markup, escape

from stillroom.report.numbers import digits_for, number

Scale = Callable[[float], float]
Palette = Mapping[str, str]

RESERVED = {"teacher": "s-teacher", "alone": "s-alone", "distilled": "s0", "student": "s0"}
SLOTS = 6


def slots(names: Iterable[str]) -> dict[str, str]:
    """Give each series name its CSS class: the same name has the same colour and mark in the whole report."""
    found: dict[str, str] = {}
    taken = 0
    for name in names:
        if name in found:
            continue
        if name in RESERVED:
            found[name] = RESERVED[name]
        else:
            found[name] = f"s{taken % SLOTS}"
            taken += 1
    return found


def tag(element: str, *children: object, **attributes: object) -> Markup:
    """Return one element; ``class_`` loses its underscore, others become hyphens, None is left out."""
    written = []
    for key, value in attributes.items():
        if value is None:
            continue
        if isinstance(value, float):
            value = f"{value:.2f}".rstrip("0").rstrip(".")
        written.append(Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), value))
    inside = Markup("").join(escape(child) for child in children)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(element), Markup("").join(written), inside)


def drawing(width: float, height: float, title: str, *children: object) -> Markup:
    """Return a whole ``<svg>`` with its accessible name."""
    return tag(
        "svg", tag("title", title), *children,
        xmlns="http://www.w3.org/2000/svg", role="img", aria_label=title,
        viewBox=f"0 0 {width:g} {height:g}", width=f"{width:g}", height=f"{height:g}",
        class_="wide" if width > 500 else "narrow",
    )  # fmt: skip


def text(x: float, y: float, content: str, anchor: str = "start", **more: object) -> Markup:
    """Return a text anchored at ``start``, ``middle`` or ``end``."""
    return tag("text", content, x=float(x), y=float(y), text_anchor=None if anchor == "start" else anchor, **more)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """Return a straight line."""
    return tag("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=class_)


def clipped(label: str, room: float, letter: float = 6.6) -> str:
    """Shorten ``label`` to about ``room`` pixels."""
    fits = max(int(room / letter), 3)
    return label if len(label) <= fits else label[: fits - 1] + "…"


def scale(low: float, high: float, start: float, end: float, log: bool = False) -> Scale:
    """Return the map from the values ``low`` to ``high`` onto the pixels ``start`` to ``end``."""
    if log:
        low, high = math.log10(low), math.log10(high)
    span = (high - low) or 1.0

    def place(value: float) -> float:
        where = math.log10(value) if log else value
        return start + (where - low) / span * (end - start)

    return place


def domain(values: Sequence[float], zero: bool = False, log: bool = False) -> tuple[float, float]:
    """Return limits that hold ``values`` with some air; ``zero`` keeps nought inside."""
    held = [*values, 0.0] if zero else list(values)
    if not held:
        return (0.1, 1.0) if log else (0.0, 1.0)
    low, high = min(held), max(held)
    if log:
        return (low / 1.15, high * 1.15)
    if low == high:
        air = abs(low) * 0.1 or 1.0
        return (low if zero and low == 0 else low - air, high + air)
    air = (high - low) * 0.06
    return (low if zero and low == 0 else low - air, high if zero and high == 0 else high + air)


def ticks(low: float, high: float, wanted: int = 5, log: bool = False) -> list[float]:
    """Return round values between ``low`` and ``high``."""
    if log:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        steps = (1, 2, 5) if math.log10(high / low) < 2.5 else (1,)
        return [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
    rough = (high - low) / max(wanted, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) + 0.0 for index in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_labels(values: Sequence[float]) -> list[str]:
    """Write ``values`` of one axis with just the decimals that tell them apart."""
    for digits in range(0, 8):
        shown = [number(value, digits) for value in values]
        close = all(abs(float(f"{value:.{digits}f}") - value) <= abs(value) * 1e-6 + 1e-12 for value in values)
        if close and len(set(shown)) == len(shown):
            return [_thousands(value) for value in values] if values and max(map(abs, values)) >= 10_000 else shown
    return [number(value, digits_for([value])) for value in values]


def _thousands(value: float) -> str:
    return "0" if not value else f"{value / 1000:g}k"


def x_axis(place: Scale, values: Sequence[float], top: float, bottom: float, label: str, right: float) -> Markup:
    """Draw vertical grid lines, their numbers below, and the axis' name at its right end."""
    parts: list[object] = []
    for value, shown in zip(values, tick_labels(values), strict=True):
        parts += [
            line(place(value), top, place(value), bottom, "grid"),
            text(place(value), bottom + 16, shown, "middle", class_="tick"),
        ]
    if label:
        parts.append(text(right, bottom + 33, label, "end", class_="axis"))
    return Markup("").join(escape(part) for part in parts)


def y_axis(place: Scale, values: Sequence[float], left: float, right: float, label: str) -> Markup:
    """Draw horizontal grid lines, their numbers at the left, and the axis' name above them."""
    parts: list[object] = []
    for value, shown in zip(values, tick_labels(values), strict=True):
        parts += [
            line(left, place(value), right, place(value), "grid"),
            text(left - 7, place(value) + 4, shown, "end", class_="tick"),
        ]
    if label:
        parts.append(text(0, 12, label, class_="axis"))
    return Markup("").join(escape(part) for part in parts)


def mark(series: str, x: float, y: float, radius: float = 5.0, about: str = "") -> Markup:
    """Draw the mark of a series (its CSS class): shape and colour both tell it apart."""
    told = (tag("title", about),) if about else ()
    if series == "s-alone":
        return tag("circle", *told, cx=x, cy=y, r=radius - 0.75, class_=f"{series} hollow")
    if series in ("s1", "s5"):
        side = radius * 0.88
        return tag("rect", *told, x=x - side, y=y - side, width=2 * side, height=2 * side, class_=f"{series} mark")
    if series in ("s4", "s-teacher"):
        corners: tuple[tuple[float, float], ...] = ((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0))
    elif series == "s2":
        corners = ((0, -1.2), (1.15, 0.9), (-1.15, 0.9))
    elif series == "s3":
        corners = ((0, 1.2), (1.15, -0.9), (-1.15, -0.9))
    else:
        return tag("circle", *told, cx=x, cy=y, r=radius, class_=f"{series} mark")
    points = " ".join(f"{x + radius * dx:.1f},{y + radius * dy:.1f}" for dx, dy in corners)
    return tag("polygon", *told, points=points, class_=f"{series} mark")


def legend(names: Sequence[str], palette: Palette, kind: str) -> Markup:
    """Name the series above a figure of ``kind``, in HTML so that the names wrap on a narrow screen."""
    items = []
    for name in names:
        series, width = palette.get(name, "s0"), 16
        if kind == "lines":
            width, drawn = 26, tag("line", x1=0.0, y1=7.0, x2=26.0, y2=7.0, class_=f"{series} stroke")
        elif kind == "bars":
            drawn = tag("rect", x=2.0, y=1.0, width=12.0, height=12.0, class_=f"{series} bar")
        else:
            drawn = mark(series, 8, 7)
        swatch = tag("svg", drawn, viewBox=f"0 0 {width} 14", width=str(width), height="14", aria_hidden="true")
        items.append(tag("li", swatch, name))
    return tag("ul", *items, class_="legend")
