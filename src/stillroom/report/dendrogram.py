"""A chart of what belongs together: leaves at the left, joined the further right the less alike they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup, escape

from stillroom.report.numbers import finite, number
from stillroom.report.svg import Palette, clipped, domain, drawing, scale, tag, text, ticks, x_axis

PITCH = 24.0  # pixels a leaf


def dendrogram(figure: Mapping[str, Any], width: float, palette: Palette) -> Markup:
    """Draw ``merges`` [(one, other, value)] of ``labels``: node i is a leaf, node n + i what the i-th merge made.

    Values fall from merge to merge: 100 is as alike as can be. Leaves of one of ``groups`` [[place]] share a colour.
    """
    labels = [str(label) for label in figure["labels"]]
    merges = [(int(one), int(other), finite(value) or 0.0) for one, other, value in figure["merges"]]
    colour = {place: f"s{number % 6}" for number, group in enumerate(figure.get("groups", ())) for place in group}
    room = min(max((len(label) for label in labels), default=1) * 6.8 + 12, width * 0.4)
    top, right = 6.0, width - 12
    bottom = top + PITCH * len(labels)
    low, high = domain([value for *_, value in merges] or [0.0], zero=True)
    across = scale(high, low, room + 8, right)
    parts: list[object] = [
        x_axis(across, ticks(low, high, int(width / 90)), top, bottom, str(figure.get("x_label", "")), right)
    ]
    at: dict[int, tuple[float, float]] = {}
    for row, place in enumerate(_leaves(len(labels), merges)):
        at[place] = (room + 8, top + PITCH * (row + 0.5))
        parts.append(text(room, at[place][1] + 4, clipped(labels[place], room - 6), "end", class_="label"))
    for step, (one, other, value) in enumerate(merges):
        node, x = len(labels) + step, across(value)
        (x1, y1), (x2, y2) = at[one], at[other]
        shared = {colour.get(one), colour.get(other)}
        colour[node] = shared.pop() or "s-alone" if len(shared) == 1 else "s-alone"
        path = f"M{x1:.1f},{y1:.1f}H{x:.1f}V{y2:.1f}H{x2:.1f}"
        parts.append(tag("path", tag("title", number(value, 1)), d=path, class_=f"{colour[node]} branch"))
        at[node] = (x, (y1 + y2) / 2)
    return drawing(width, bottom + 40, str(figure.get("title") or "What belongs together"), *map(escape, parts))


def _leaves(count: int, merges: list[tuple[int, int, float]]) -> list[int]:
    """The leaves from top to bottom, so that no two branches cross."""
    waiting, found = [count + len(merges) - 1] if merges else [], []
    while waiting:
        node = waiting.pop()
        if node < count:
            found.append(node)
        else:
            waiting += [merges[node - count][1], merges[node - count][0]]
    return found or list(range(count))
