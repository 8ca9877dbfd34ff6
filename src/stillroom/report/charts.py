"""The charts: each function takes a figure's data, a width in pixels and the palette, and returns one SVG.

At 720 pixels names stand at the left of their row; below 500 they stand above it, so that a telephone
shows the same letters at the same size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from stillroom.report.numbers import digits_for, finite, number, with_interval
from stillroom.report.svg import (
    Palette,
    Scale,
    clipped,
    domain,
    drawing,
    line,
    mark,
    scale,
    tag,
    text,
    ticks,
    x_axis,
    y_axis,
)

STACKED = 500
MOST_POINTS = 400


def _joined(parts: Sequence[object]) -> Markup:
    return Markup("").join(escape(part) for part in parts)


def _unit(figure: Mapping[str, Any]) -> str:
    return str(figure.get("unit") or "")


def _thinned(series: Mapping[str, Any]) -> list[tuple[float, float | None, float | None, float | None]]:
    """Return (x, y, low, high) rows, evenly thinned, the last one kept."""
    xs, ys = list(series.get("x", ())), list(series.get("y", ()))
    lows, highs = list(series.get("low") or ()), list(series.get("high") or ())
    rows = []
    for index in range(min(len(xs), len(ys))):
        x = finite(xs[index])
        if x is not None:
            low = finite(lows[index]) if index < len(lows) else None
            high = finite(highs[index]) if index < len(highs) else None
            rows.append((x, finite(ys[index]), low, high))
    stride = math.ceil(len(rows) / MOST_POINTS) or 1
    return [row for index, row in enumerate(rows) if (len(rows) - 1 - index) % stride == 0]


def lines(figure: Mapping[str, Any], width: float, palette: Palette) -> Markup:
    """Draw curves, with bands where a series has ``low`` and ``high``; gaps where a value is missing."""
    log = bool(figure.get("log_y"))
    series = [(str(one["name"]), _thinned(one)) for one in figure["series"]]
    heights = [v for _, rows in series for row in rows for v in row[1:] if v is not None and (v > 0 or not log)]
    spans = [row[0] for _, rows in series for row in rows]
    height = 320.0 if width > STACKED else 230.0
    left, right, top, bottom = 48.0, width - 16, 24.0, height - 42
    x_low, x_high = (min(spans), max(spans)) if spans else (0.0, 1.0)
    if x_low == x_high:
        x_low, x_high = x_low - 1, x_high + 1
    y_low, y_high = domain(heights, log=log)
    across, up = scale(x_low, x_high, left, right), scale(y_low, y_high, bottom, top, log)
    parts = [
        x_axis(across, ticks(x_low, x_high, int(width / 75)), top, bottom, str(figure.get("x_label", "")), right),
        y_axis(up, ticks(y_low, y_high, 5, log), left, right, str(figure.get("y_label", ""))),
    ]
    for name, rows in series:
        parts += _curve(name, rows, across, up, palette.get(name, "s0"), log)
    if not heights:
        parts.append(text(width / 2, height / 2, "nothing was measured", "middle", class_="axis"))
    names = ", ".join(name for name, _ in series)
    return drawing(width, height, f"Curves of {figure.get('y_label', 'values')} for {names}", *parts)


def _curve(name: str, rows: list[Any], across: Scale, up: Scale, series: str, log: bool) -> list[Markup]:
    def drawn(value: float | None) -> bool:
        return value is not None and (value > 0 or not log)

    band = [row for row in rows if drawn(row[2]) and drawn(row[3])]
    parts = []
    if len(band) > 1:
        edge = [(row[0], row[3]) for row in band] + [(row[0], row[2]) for row in reversed(band)]
        points = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in edge)
        parts.append(tag("polygon", points=points, class_=f"{series} band"))
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y, _, _ in rows:
        if drawn(y):
            runs[-1].append((across(x), up(y)))
        elif runs[-1]:
            runs.append([])
    for run in runs:
        if len(run) == 1:
            parts.append(mark(series, *run[0], 3.5, name))
        elif run:
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in run)
            parts.append(tag("polyline", tag("title", name), points=points, class_=f"{series} stroke"))
    return parts


def _frame(labels: Sequence[str], width: float, values: Sequence[float], zero: bool, shown: int) -> dict[str, Any]:
    """Return where rows with a label each (and ``shown`` letters of numbers at the right) lie."""
    stacked = width < STACKED
    longest = max((len(label) for label in labels), default=0)
    left = 6.0 if stacked else min(longest * 6.8 + 16, width * 0.34)
    right = width - (8 if stacked or not shown else shown * 6.8 + 16)
    low, high = domain(values, zero=zero)
    return {
        "stacked": stacked, "left": left, "right": right, "low": low, "high": high,
        "place": scale(low, high, left + 6, right - 6), "head": 18.0 if stacked else 0.0,
    }  # fmt: skip


def _named(label: str, frame: Mapping[str, Any], middle: float, shown: str, width: float) -> list[Markup]:
    """Return a row's name and its number, at both sides of the row or above it."""
    if frame["stacked"]:
        above = middle - 13
        room = width - len(shown) * 6.8 - 20
        return [
            text(frame.get("indent", 2.0), above, clipped(label, room), class_="label"),
            text(width - 4, above, shown, "end", class_="value"),
        ]
    return [
        text(frame["left"] - 6, middle + 4, clipped(label, frame["left"] - 6), "end", class_="label"),
        text(width - 2, middle + 4, shown, "end", class_="value"),
    ]


def dots(figure: Mapping[str, Any], width: float, palette: Palette) -> Markup:
    """Draw one row an arm: its mean, its interval as a bar, its seeds as small dots; references as lines."""
    rows, unit = list(figure["rows"]), _unit(figure)
    references = [one for one in figure.get("references", ()) if finite(one.get("value")) is not None]
    held = [finite(row.get(key)) for row in rows for key in ("mean", "low", "high")]
    held += [finite(value) for row in rows for value in row.get("points") or ()]
    held += [finite(one["value"]) for one in references]
    values = [value for value in held if value is not None]
    digits = figure.get("digits", digits_for(values))
    shown = [with_interval(row.get("mean"), row.get("low"), row.get("high"), digits) for row in rows]
    frame = _frame(
        [str(row["name"]) for row in rows], width, values, bool(figure.get("zero")), max(map(len, shown), default=0)
    )
    top, pitch = (26.0 if references else 6.0), 28.0 + frame["head"]
    bottom = top + pitch * len(rows) + 4
    place = frame["place"]
    axis = f"{figure.get('x_label', '')}{f', {unit}' if unit and figure.get('x_label') else unit}"
    parts: list[object] = [
        x_axis(
            place,
            ticks(frame["low"], frame["high"], int((frame["right"] - frame["left"]) / 75)),
            top,
            bottom,
            axis,
            frame["right"],
        )
    ]
    middles = [top + pitch * index + frame["head"] + 15 for index in range(len(rows))]
    # where names stand above their rows, a line through the rows only leaves the letters free
    spans = [(middle - 8, middle + 13) for middle in middles] if frame["stacked"] else [(top, bottom)]
    if figure.get("zero"):
        parts += [line(place(0.0), start, place(0.0), end, "zero") for start, end in spans]
    parts += _references(references, place, [(top - 6, top), *spans], width, palette, digits)
    for index, row in enumerate(rows):
        middle = middles[index]
        parts += _named(str(row["name"]), frame, middle, shown[index], width)
        parts += _dot(row, place, middle, palette, shown[index])
    return drawing(width, bottom + 40, str(figure.get("title") or "Means and intervals"), *parts)


def _dot(row: Mapping[str, Any], place: Scale, middle: float, palette: Palette, shown: str) -> list[Markup]:
    series = palette.get(str(row.get("series") or row["name"]), "s0")
    low, high, mean = (finite(row.get(key)) for key in ("low", "high", "mean"))
    parts = []
    if low is not None and high is not None:
        parts.append(line(place(low), middle, place(high), middle, f"{series} interval"))
    for value in row.get("points") or ():
        held = finite(value)
        if held is not None:
            parts.append(tag("circle", cx=place(held), cy=middle + 8, r=2.2, class_=f"{series} seed"))
    if mean is not None:
        parts.append(mark(series, place(mean), middle, 5.0, f"{row['name']}: {shown}"))
    return parts


def _references(
    references: Sequence[Mapping[str, Any]],
    place: Scale,
    spans: Sequence[tuple[float, float]],
    width: float,
    palette: Palette,
    digits: int,
) -> list[Markup]:
    parts = []
    for one in references:
        x, value = place(float(one["value"])), float(one["value"])
        series = palette.get(str(one["name"]), "s-teacher")
        anchor = "end" if x > width * 0.7 else "start" if x < width * 0.3 else "middle"
        told = f"{one['name']} {number(value, digits)}"
        parts += [line(x, start, x, end, f"{series} reference") for start, end in spans]
        parts.append(text(x, spans[0][0] - 5, told, anchor, class_="label"))
    return parts


def spread(figure: Mapping[str, Any], width: float, palette: Palette) -> Markup:
    """Draw one row a label with a mark for each series, joined by a thin line: who stands where."""
    labels, unit = [str(label) for label in figure["labels"]], _unit(figure)
    series = [(str(one["name"]), list(one["values"])) for one in figure["series"]]
    values = [held for _, row in series for value in row if (held := finite(value)) is not None]
    frame = _frame(labels, width, values, False, 0)
    top, pitch, place = 4.0, 24.0 + frame["head"], frame["place"]
    bottom = top + pitch * len(labels) + 4
    axis = f"{figure.get('x_label', '')}{f', {unit}' if unit and figure.get('x_label') else unit}"
    parts: list[object] = [
        x_axis(
            place,
            ticks(frame["low"], frame["high"], int((frame["right"] - frame["left"]) / 75)),
            top,
            bottom,
            axis,
            frame["right"],
        )
    ]
    for index, label in enumerate(labels):
        middle = top + pitch * index + frame["head"] + 13
        parts += _named(label, frame, middle, "", width)
        found = [(name, finite(row[index]) if index < len(row) else None) for name, row in series]
        held_here = [value for _, value in found if value is not None]
        if len(held_here) > 1:
            parts.append(line(place(min(held_here)), middle, place(max(held_here)), middle, "joint"))
        for name, value in found:
            if value is not None:
                about = f"{label}, {name}: {number(value, digits_for(values))} {unit}"
                parts.append(mark(palette.get(name, "s0"), place(value), middle, 4.6, about))
    return drawing(width, bottom + 40, str(figure.get("title") or "Values by label"), *parts)


def bars(figure: Mapping[str, Any], width: float, palette: Palette) -> Markup:
    """Draw grouped bars from zero; upright ones lie down where their names would not fit."""
    labels = [str(label) for label in figure["labels"]]
    room = (width - 60) / max(len(labels), 1)
    fits = max((len(label) for label in labels), default=0) * 6.8 < room - 4
    if figure.get("horizontal") or not fits:
        return _lying(figure, labels, width, palette)
    return _upright(figure, labels, width, palette)


def _bar_values(figure: Mapping[str, Any]) -> list[tuple[str, list[tuple[float | None, float | None, float | None]]]]:
    found = []
    for one in figure["series"]:
        values = list(one["values"])
        lows = list(one.get("low") or [None] * len(values))
        highs = list(one.get("high") or [None] * len(values))
        rows = [(finite(v), finite(low), finite(high)) for v, low, high in zip(values, lows, highs, strict=True)]
        found.append((str(one["name"]), rows))
    return found


def _lying(figure: Mapping[str, Any], labels: list[str], width: float, palette: Palette) -> Markup:
    series, unit = _bar_values(figure), _unit(figure)
    values = [held for _, rows in series for row in rows for held in row if held is not None]
    digits, single = figure.get("digits", digits_for(values)), len(series) == 1
    shown = [with_interval(*row, digits) for row in series[0][1]] if single else []
    frame = _frame(labels, width, values, True, max(map(len, shown), default=0))
    if frame["low"] >= 0:  # names above their bars begin beside the line of nought, not on it
        frame["indent"] = frame["place"](0.0) + 5
    thick, top, place = (14.0 if single else 9.0), 4.0, frame["place"]
    pitch = thick * len(series) + 12 + frame["head"]
    bottom = top + pitch * len(labels) + 4
    wanted = int((frame["right"] - frame["left"]) / 75)
    parts: list[object] = [x_axis(place, ticks(frame["low"], frame["high"], wanted), top, bottom, unit, frame["right"])]
    for index, label in enumerate(labels):
        start = top + pitch * index + frame["head"] + 6
        parts += _named(
            label, frame, start + thick * len(series) / 2, shown[index] if single and index < len(shown) else "", width
        )
        for order, (name, rows) in enumerate(series):
            value, low, high = rows[index] if index < len(rows) else (None, None, None)
            if value is None:
                continue
            y, class_ = start + thick * order, palette.get(name, "s0")
            x, end = sorted((place(0.0), place(value)))
            about = tag("title", f"{label}, {name}: {with_interval(value, low, high, digits)} {unit}")
            parts.append(
                tag("rect", about, x=x, y=y, width=max(end - x, 0.5), height=thick - 2, class_=f"{class_} bar")
            )
            if low is not None and high is not None:
                parts.append(line(place(low), y + thick / 2 - 1, place(high), y + thick / 2 - 1, "whisker"))
    parts.append(line(place(0.0), top, place(0.0), bottom, "zero"))
    return drawing(width, bottom + 40, str(figure.get("title") or "Bars by label"), *parts)


def _upright(figure: Mapping[str, Any], labels: list[str], width: float, palette: Palette) -> Markup:
    series, unit = _bar_values(figure), _unit(figure)
    values = [held for _, rows in series for row in rows for held in row if held is not None]
    height, left, right, top = (300.0 if width > STACKED else 220.0), 48.0, width - 6, 24.0
    bottom, digits = height - 26, digits_for(values)
    low_end, high_end = domain(values, zero=True)
    up = scale(low_end, high_end, bottom, top)
    parts: list[object] = [y_axis(up, ticks(low_end, high_end, 5), left, right, unit)]
    room = (right - left) / max(len(labels), 1)
    thick = min(room * 0.8 / max(len(series), 1), 46.0)
    for index, label in enumerate(labels):
        middle = left + room * (index + 0.5)
        parts.append(text(middle, bottom + 17, label, "middle", class_="label"))
        for order, (name, rows) in enumerate(series):
            value, low, high = rows[index] if index < len(rows) else (None, None, None)
            if value is None:
                continue
            x, class_ = middle + thick * (order - len(series) / 2), palette.get(name, "s0")
            y, end = sorted((up(0.0), up(value)))
            about = tag("title", f"{label}, {name}: {with_interval(value, low, high, digits)} {unit}")
            parts.append(
                tag("rect", about, x=x + 1, y=y, width=thick - 2, height=max(end - y, 0.5), class_=f"{class_} bar")
            )
            if low is not None and high is not None:
                parts.append(line(x + thick / 2, up(low), x + thick / 2, up(high), "whisker"))
    parts.append(line(left, up(0.0), right, up(0.0), "zero"))
    return drawing(width, height, str(figure.get("title") or "Bars by label"), *parts)


def reliability(one: Mapping[str, Any], width: float, palette: Palette) -> Markup:
    """Draw one model's calibration: a dot a bin (area: its share of examples) against the diagonal."""
    name = str(one["name"])
    series, height = palette.get(name, "s0"), width
    left, right, top, bottom = 34.0, width - 8, 12.0, height - 66
    across, up = scale(0, 1, left, right), scale(0, 1, bottom, top)
    marks = [0.0, 0.5, 1.0]
    floor = height - 20
    parts: list[object] = [line(across(0), up(0), across(1), up(1), "diagonal")]
    for value, shown in zip(marks, ("0", "50", "100"), strict=True):
        parts += [
            line(left, up(value), right, up(value), "grid"),
            text(left - 7, up(value) + 4, shown, "end", class_="tick"),
            text(across(value), floor + 15, shown, "middle" if value < 1 else "end", class_="tick"),
        ]
    shares = [finite(value) or 0.0 for value in one["share"]]
    most, bins = max(shares, default=0.0) or 1.0, max(len(shares), 1)
    for index, share in enumerate(shares):
        tall = 36 * share / most
        x = across(index / bins)
        about = tag("title", f"{number(100 * share, 1)} % of the examples")
        parts.append(
            tag("rect", about, x=x + 1, y=floor - tall, width=(right - left) / bins - 2, height=tall, class_="share")
        )
        sure, right_share = finite(one["confidence"][index]), finite(one["accuracy"][index])
        if share <= 0 or sure is None or right_share is None:
            continue
        x, y = across(sure), up(right_share)
        about = tag("title", f"says {number(100 * sure, 1)} %, is right {number(100 * right_share, 1)} %")
        parts.append(line(x, up(sure), x, y, f"{series} gap"))
        parts.append(tag("circle", about, cx=x, cy=y, r=2.2 + 7 * math.sqrt(share), class_=f"{series} mark"))
    parts.append(line(left, floor, right, floor, "zero"))
    return drawing(width, height, f"Reliability of {name}: confidence against share correct", *parts)


def matrix(figure: Mapping[str, Any], width: float, palette: Palette) -> Markup:
    """Draw a heat map: rows and columns by label, darker is more, numbers where they fit."""
    labels = [str(label) for label in figure["labels"]]
    across_labels = [str(label) for label in figure.get("columns") or labels]
    values = [[finite(value) for value in row] for row in figure["values"]]
    held = [value for row in values for value in row if value is not None]
    most, digits = max((abs(value) for value in held), default=0.0) or 1.0, digits_for(held)
    longest = max((len(label) for label in [*labels, *across_labels]), default=1)
    room = min(longest * 6.8 + 10, width * 0.28)
    count = max(len(across_labels), 1)
    cell = min((width - room - 4) / count, 46.0)
    side = min(cell, 34.0)
    widest = max((len(number(value, digits)) for value in held), default=1)
    letters = cell >= widest * 5.6 + 4
    parts: list[object] = []
    for index, label in enumerate(across_labels):
        x = room + cell * (index + 0.5) + 4
        parts.append(
            text(x, room - 4, clipped(label, room), transform=f"rotate(-90 {x:.1f} {room - 4:.1f})", class_="label")
        )
    for order, row in enumerate(values):
        y = room + side * order
        name = labels[order] if order < len(labels) else ""
        parts.append(text(room - 6, y + side / 2 + 4, clipped(name, room - 6), "end", class_="label"))
        for index, value in enumerate(row):
            if value is None:
                continue
            x, depth = room + cell * index, abs(value) / most
            about = tag("title", f"{name} → {across_labels[index]}: {number(value, digits)}")
            parts.append(
                tag(
                    "rect",
                    about,
                    x=x,
                    y=y,
                    width=cell - 1,
                    height=side - 1,
                    fill_opacity=round(0.04 + 0.92 * depth, 3),
                    class_="heat",
                )
            )
            if letters and value:
                class_ = "cell deep" if depth > 0.5 else "cell"
                parts.append(
                    text(x + cell / 2 - 0.5, y + side / 2 + 3.5, number(value, digits), "middle", class_=class_)
                )
    return drawing(width, room + side * len(values) + 6, str(figure.get("title") or "Heat map"), _joined(parts))
