"""Which classes a student takes for which others: every pair where they are few, the worst where they are many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stillroom.contracts import Finding
from stillroom.report.readings import quoted

MATRIX = 12  # classes up to which every pair is shown
PAIRS = 15  # pairs that are shown of more


def confused(
    classes: Sequence[str], rows: Sequence[int], right: Sequence[float], pairs: Sequence[tuple[int, int, float]]
) -> Finding:
    """Show which classes are taken for which others.

    ``rows``: test examples of each class; ``right``: how many of them are answered rightly; ``pairs``: (true class, the
    one answered, how many), the most frequent first; both as means over seeds.
    """
    title, control = "What it takes for what", "the true class of each test example."
    if not pairs:
        return Finding(title, "Nothing: it answers every test example with its true class.", 0.0, control)
    true, other, count = pairs[0]
    sentence = f"It takes {quoted(classes[true])} for {quoted(classes[other])} most often: in {count:.3g} of "
    sentence += f"{rows[true]:,} test examples of that class ({100 * count / rows[true]:.0f} %, mean of the seeds)."
    figure = _matrix(classes, rows, right, pairs) if len(classes) <= MATRIX else _table(classes, rows, pairs)
    return Finding(title, sentence, count / rows[true], control, figure)


def _matrix(
    classes: Sequence[str], rows: Sequence[int], right: Sequence[float], pairs: Sequence[tuple[int, int, float]]
) -> dict[str, Any]:
    values: list[list[float | None]] = [[0.0 if one else None for _ in classes] for one in rows]
    for place, count in enumerate(right):
        values[place][place] = 100 * count / rows[place] if rows[place] else None
    for true, other, count in pairs:
        values[true][other] = 100 * count / rows[true]
    note = "A row for each true class, a column for each answer: % of the class's test examples."
    names = list(map(str, classes))
    return {"kind": "matrix", "title": "Confusion matrix", "labels": names, "values": values, "note": note}


def _table(classes: Sequence[str], rows: Sequence[int], pairs: Sequence[tuple[int, int, float]]) -> dict[str, Any]:
    columns = [{"name": "true class"}, {"name": "taken for"}, {"name": "test examples", "digits": 1},
               {"name": "of the class", "unit": "%", "digits": 1}]  # fmt: skip
    shown = [[classes[true], classes[other], count, 100 * count / rows[true]] for true, other, count in pairs[:PAIRS]]
    note = f"The {len(shown)} most frequent of {len(pairs):,} confusions between {len(classes):,} classes."
    return {"kind": "table", "title": "Most frequent confusions", "columns": columns, "rows": shown, "note": note}
