"""Did the teacher and the labels pull the student the same way? Plain data in, a Finding out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from stillroom.contracts import Finding
from stillroom.report.numbers import finite, number
from stillroom.report.readings import quoted

SAME, UNRELATED = 0.5, 0.1  # mean cosines from which two gradients are said to agree, or to have little in common
STRONG = 10.0  # one side this many times the other leaves the other hardly any say
FEW, POINTS = 5, 3  # steps, below which more are advised; that make a curve


def pull(arm: str, held: Mapping[str, Any]) -> Finding | None:
    """Show cosine and ratio of the teacher's and the task's gradients over the steps; None where no step has both.

    ``held``: ``step``, ``cosine`` (-1 to 1) and ``ratio`` (the teacher's norm by the task's, with the objectives'
    weights and before balancing), as long as each other; ``looked`` and ``against`` count all steps that were looked
    at, and those of a negative cosine.
    """
    cosines = [value for one in held.get("cosine", ()) if (value := finite(one)) is not None]
    looked, against = held.get("looked", 0), held.get("against", 0)
    if not cosines or not looked:
        return None
    steps = list(held["step"])
    ends = [steps[0], steps[-1]]
    figures = [
        {
            "kind": "lines",
            "title": "Cosine between the two gradients",
            "x_label": "step",
            "y_label": "cosine",
            "series": [
                {"name": arm, "x": steps, "y": list(held["cosine"])},
                {"name": "at right angles", "x": ends, "y": [0.0, 0.0]},
            ],
        },
        {
            "kind": "lines",
            "title": "The teacher's gradient as a multiple of the labels'",
            "x_label": "step",
            "y_label": "times",
            "log_y": True,
            "series": [
                {"name": arm, "x": steps, "y": list(held["ratio"])},
                {"name": "equally strong", "x": ends, "y": [1.0, 1.0]},
            ],
        },
    ]
    note = "Of the first seed, over the student's weights, each term times its weight; penalties count with the labels."
    note += " Cosine 1: the same direction; 0: at right angles; -1: opposite directions."
    return Finding(
        "Do the gradients of teacher and labels agree?",
        _sentence(arm, cosines, held["ratio"], looked, against),
        fmean(cosines),
        "a cosine of 0, where neither gradient helps or hinders the other.",
        {"kind": "panels", "figures": figures, "note": note} if len(cosines) >= POINTS else {},
    )


def _sentence(arm: str, cosines: Sequence[float], ratios: Sequence[Any], looked: int, against: int) -> str:
    mean = number(fmean(cosines), 2)
    if looked > 1:
        share = f"{number(100 * against / looked, 0)} %" if against else "none"
        said = f"The two gradients were opposed in {share} of the {looked:,} measured steps of {quoted(arm)}"
        said += f" (mean cosine {mean}). {_meaning(fmean(cosines))}"
    else:
        said = f"They were measured at one step of {quoted(arm)} only (cosine {mean}). {_meaning(fmean(cosines))}"
    sizes = [value for one in ratios if (value := finite(one)) is not None]
    if sizes:
        late = median(sizes[-max(1, len(sizes) // 4) :])
        said += f" The teacher's gradient was {number(median(sizes))} times as large as the labels'{_late(late)}."
    if looked < FEW:
        said += " For a curve, measure more often: train.gradient_norms_every."
    return said


def _meaning(cosine: float) -> str:
    if cosine >= SAME:
        return "Mostly in the same direction: the teacher's answers acted like further labels."
    if cosine >= UNRELATED:
        return "Partly in the same direction: the teacher taught what the labels teach, and more."
    if cosine > -UNRELATED:
        return "Mostly at right angles: what the teacher taught neither helped nor hindered the labels."
    return "Mostly in opposite directions: what one gained, the other lost; try another weight for the teacher."


def _late(ratio: float) -> str:
    if ratio >= STRONG:
        return f", and {number(ratio)} times towards the end, where the labels had hardly any influence left"
    if ratio <= 1 / STRONG:
        late = f", and {number(ratio)} times towards the end, where the teacher had hardly any influence"
        return f"{late}: raise its weight, or set train.balance"
    return ""
