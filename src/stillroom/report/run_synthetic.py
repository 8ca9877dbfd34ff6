"""Synthetic examples in a report: each class's, beside real ones, what they are worth, and how to use them.

Plain data in, Findings out, as in :mod:`stillroom.report.run_findings`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stillroom.contracts import Finding
from stillroom.report.numbers import number

SIDE = 72  # pixels of a picture at least: it is enlarged here, since a page would blur it
PICTURE, NARROWEST, WIDEST = 56, 72, 350  # pixels of a column of the page


def synthetic_examples(
    name: str,
    facts: Mapping[str, Any],
    scores: Mapping[str, float],
    strips: Sequence[Mapping[str, Any]],
    path: str,
) -> Finding:
    """Show the examples that arm ``name`` learnt from.

    ``facts`` are those of metrics.json (``examples``, ``per_class``, ``made_from``, ``distance``). ``scores``, shares
    of right answers where known: ``made`` with these examples, ``real`` with as many real ones, ``all`` the teacher,
    which learnt from all. Each of ``strips``: ``class``, and ``pixels``, two lists of (H, W, channels): examples made,
    ``each`` side by side, and real ones.
    """
    each = "one" if facts["per_class"] == 1 else number(facts["per_class"], 0)
    sentence = (
        f"'{name}' learnt from {number(facts['examples'], 0)} synthetic examples, {each} a class, made so that "
        f"networks get nearly the same gradient from them as from {number(facts['made_from'], 0)} real ones. "
    )
    sentence += _worth(scores)
    if strips:
        sentence += (
            " A synthetic picture that is grey or doubled stands for several kinds of its class: compare it with the "
            "real ones beside it."
        )
    first, last = facts["distance"]["first"], facts["distance"]["last"]
    note = (
        f"Distance of the gradients, mean over the life of a network: {number(first, 2)} at the beginning, "
        f"{number(last, 2)} at the end. "
        f"To train on them: data: {{use: npz, path: {path}}}; its validation and test examples are the real ones."
    )
    classes = facts["examples"] // max(1, facts["per_class"])
    if strips and len(strips) < classes:
        note += f" {len(strips)} of {number(classes, 0)} classes are shown."
    figure: dict[str, Any] = _sheet(strips) | {"note": note} if strips else {"kind": "text", "text": note}
    control = "as many real examples, chosen at random, for the same student and steps." if "real" in scores else ""
    return Finding(f"The synthetic examples: {name}", sentence, scores.get("made"), control, figure)


def _worth(scores: Mapping[str, float]) -> str:
    if "made" not in scores:
        return "The accuracy of training on them was not measured."
    text = f"With them the student is right on {_share(scores['made'])} of the test examples"
    if "real" in scores:
        text += f", with as many real ones on {_share(scores['real'])}"
    if "all" in scores:
        text += f"; the teacher, which saw all, on {_share(scores['all'])}"
    return text + "."


def _share(value: float) -> str:
    return f"{number(100 * value, 1)} %"


def _sheet(strips: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A row for each class: what was made, and real examples beside it."""
    rows = []
    for one in strips:
        cells = [_strip(row) for row in one["pixels"]]
        rows.append(
            [
                {"pixels": cells[0], "text": str(one["class"]), "about": f"synthetic, class {one['class']}"},
                {"pixels": cells[1], "text": "", "about": f"real examples of class {one['class']}"},
            ]
        )
    return {
        "kind": "sheet",
        "columns": ["synthetic", "real"],
        "rows": rows,
        "width": min(WIDEST, max(NARROWEST, PICTURE * strips[0]["each"])),
    }


def _strip(row: Any) -> Any:
    """A strip of pictures side by side, enlarged, as an array for the figure."""
    import numpy as np

    strip = np.asarray(row, np.uint8)
    scale = max(1, -(-SIDE // strip.shape[0]))
    return strip.repeat(scale, 0).repeat(scale, 1).tolist()


__all__ = ["synthetic_examples"]
