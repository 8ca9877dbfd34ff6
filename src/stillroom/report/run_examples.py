"""Single examples that a run shows: where teacher and student differ, and where distilling changed the student's mind.

Plain data in, Findings out, as in :mod:`stillroom.report.run_findings`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stillroom.contracts import Finding
from stillroom.report.numbers import finite, number


def disagreements(
    items: Sequence[Mapping[str, Any]], disagreeing: int | None = None, examples: int | None = None
) -> Finding:
    """Show examples on which teacher and student differ.

    Each item: ``pixels`` (as the figure kind "pictures" takes them) or ``text``; ``true``, ``teacher``, ``student``
    (class names; ``true`` may be None); ``teacher_share``, ``student_share`` (their probability, 0..1).
    ``disagreeing`` of ``examples`` is how often it happens over the whole test set.
    """
    title = "Where teacher and student differ"
    if not items:
        return Finding(title, "Teacher and student gave the same first choice on every example that was looked at.")
    labelled = [item for item in items if item.get("true") is not None]
    sides = [sum(1 for item in labelled if item[who] == item["true"]) for who in ("teacher", "student")]
    sentence = ""
    if disagreeing is not None and examples:
        share = number(100 * disagreeing / examples, 1)
        sentence = f"They differ on {number(disagreeing, 0)} of {number(examples, 0)} test examples ({share} %). "
    if labelled:
        neither = len(labelled) - sum(sides)
        sentence += f"Of the {len(labelled)} shown the teacher is right in {sides[0]}, "
        sentence += f"the student in {sides[1]}, neither in {neither}."
    else:
        sentence += f"{len(items)} of them are shown."
    drawn = []
    for item in items:
        rows = [[who, f"{item[who]}{_share(item.get(f'{who}_share'))}"] for who in ("teacher", "student")]
        caption = f"true: {item['true']}" if item.get("true") is not None else "unlabelled"
        drawn.append({"pixels": item.get("pixels"), "text": item.get("text", ""), "caption": caption, "rows": rows})
    return Finding(title, sentence, finite(disagreeing), "", {"kind": "pictures", "items": drawn})


def _share(value: object) -> str:
    held = finite(value)
    return "" if held is None else f" {number(held, 2)}"


def changed(items: Sequence[Mapping[str, Any]], better: int, worse: int, examples: int) -> Finding:
    """Show the examples whose true class gained or lost most probability by distilling.

    Each item: ``pixels`` or ``text``; ``true`` (its class); ``alone``, ``distilled``, ``teacher`` (the probability of
    that class, 0..1, mean over seeds). ``better`` and ``worse`` of ``examples`` are how many moved by more than 0.1.
    """
    title = "What distilling changed"
    if not items:
        return Finding(title, "Distilling changed no answer on the test examples.", 0.0)
    sentence = (
        f"The probability of the true class rose by more than 0.1 in {number(better, 0)} of {number(examples, 0)} test "
        f"examples and fell by more than 0.1 in {number(worse, 0)}. Shown are those that changed most, each way: look "
        "for what they have in common."
    )
    drawn = []
    for item in items:
        moved = float(item["distilled"]) - float(item["alone"])
        rows = [[who, number(float(item[who]), 2)] for who in ("alone", "distilled", "teacher") if who in item]
        caption = f"{item['true']}: {'gained' if moved > 0 else 'lost'} {number(abs(moved), 2)}"
        drawn.append({"pixels": item.get("pixels"), "text": item.get("text", ""), "caption": caption, "rows": rows})
    control = "the same student trained alone, with the same seeds."
    return Finding(title, sentence, float(better - worse), control, {"kind": "pictures", "items": drawn})


__all__ = ["changed", "disagreements"]
