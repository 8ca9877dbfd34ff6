"""Synthetic examples in a report: each class's, above real ones, what they are worth, and how to use them.

Plain data in, Findings out, as in :mod:`stillroom.report.run_findings`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stillroom.contracts import Finding
from stillroom.report.numbers import number

SCALE = 8  # at least; a strip is enlarged here, since a page would blur it


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
    and the real ones below them.
    """
    each = "one" if facts["per_class"] == 1 else number(facts["per_class"], 0)
    sentence = (
        f"'{name}' learnt from {number(facts['examples'], 0)} examples that were made, {each} a class, to stand for "
        f"{number(facts['made_from'], 0)} real ones: networks get nearly the same gradient from both. "
    )
    sentence += _worth(scores)
    if strips:
        sentence += (
            " Above: made; below: real ones of the class. Grey and doubled strokes are where one picture speaks for "
            "several ways of writing or looking."
        )
    items = [{"pixels": _picture(one["pixels"]), "caption": str(one["class"])} for one in strips]
    first, last = facts["distance"]["first"], facts["distance"]["last"]
    note = (
        f"Distance of the gradients, from fresh networks: {number(first, 2)} at first, {number(last, 2)} at last. "
        f"To train anything on them: data: {{use: npz, path: {path}}}; its validation and test are the real ones."
    )
    figure: dict[str, Any] = {"kind": "pictures", "items": items, "note": note}
    if not items:
        figure = {"kind": "text", "text": note}
    control = "as many real examples, chosen at random, for the same student and steps." if "real" in scores else ""
    return Finding(f"What the data came down to: {name}", sentence, scores.get("made"), control, figure)


def _worth(scores: Mapping[str, float]) -> str:
    if "made" not in scores:
        return "What they are worth was not measured."
    text = f"With them the student is right on {_share(scores['made'])} of the test examples"
    if "real" in scores:
        text += f", with as many real ones on {_share(scores['real'])}"
    if "all" in scores:
        text += f"; the teacher, which saw all, on {_share(scores['all'])}"
    return text + "."


def _share(value: float) -> str:
    return f"{number(100 * value, 1)} %"


def _picture(rows: Sequence[Any]) -> Any:
    """Two strips of pixels, one above the other, enlarged, as an array for the figure."""
    import numpy as np

    strips = [np.asarray(row, np.uint8) for row in rows]
    scale = max(1, -(-SCALE * 8 // strips[0].shape[0]))
    gap = np.full((max(1, strips[0].shape[0] // 4), *strips[0].shape[1:]), 255, np.uint8)
    whole = np.concatenate([strips[0], gap, strips[1]])
    return whole.repeat(scale, 0).repeat(scale, 1).tolist()


__all__ = ["synthetic_examples"]
