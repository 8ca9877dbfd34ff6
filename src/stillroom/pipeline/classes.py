"""Which classes a student never answers, finds far more seldom than the others, or was not tested on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stillroom.report.readings import listed
from stillroom.statistics import LEVEL, of_share
from stillroom.tasks import class_counts

FAR = 0.5  # of the mean recall: a class at or below that, by more than chance, is named
KEPT = 50  # classes of a kind that metrics.json names


def classes_of(names: Sequence[str], answers: Sequence[Tensor], told: Tensor | None, labels: Tensor) -> dict[str, Any]:
    """Return what is to be known of single classes: ``never``, ``seldom`` and ``untested``, each with its ``count``.

    ``answers`` are those of every seed; a recall is the mean over seeds. ``seldom`` are the classes whose recall is at
    most half the mean and whose interval (exact, shared out over the classes) lies below the mean.
    """
    counts = [class_counts(part, labels, len(names)) for part in answers]
    rows = counts[0].rows
    answered = torch.stack([one.answered for one in counts]).sum(0)
    recall = torch.stack([one.recall for one in counts]).mean(0)
    mean, tested = float(recall[rows > 0].mean()), int((rows > 0).sum())
    taught = None if told is None else class_counts(told, labels, len(names)).recall
    sure = 1 - (1 - LEVEL) / tested

    def below(place: int) -> bool:
        found = of_share(round(float(recall[place] * rows[place])), int(rows[place]), sure)
        return found[1] < mean

    def one(place: int) -> dict[str, Any]:
        found: dict[str, Any] = {"name": names[place] if place < len(names) else str(place), "rows": int(rows[place])}
        if rows[place]:
            found["recall"] = float(recall[place])
            found |= {} if taught is None else {"teacher": float(taught[place])}
        return found

    def kind(which: Tensor) -> dict[str, Any]:
        places = which.nonzero()[:, 0].tolist()
        worst = sorted(places, key=lambda place: (float(recall[place].nan_to_num()), -int(rows[place]), place))
        return {"count": len(places), "classes": [one(place) for place in worst[:KEPT]]}

    never = (answered == 0) & (rows > 0)
    seldom = (rows > 0) & ~never & (recall <= FAR * mean)
    for place in seldom.nonzero()[:, 0].tolist():
        seldom[place] = below(place)
    untested = rows[: len(names)] == 0
    return {"mean_recall": mean, "never": kind(never), "seldom": kind(seldom), "untested": kind(untested)}


def class_notes(found: Mapping[str, Any] | None) -> list[str]:
    """Put what :func:`classes_of` found into a sentence each; nothing where all is well."""
    if found is None:
        return []
    notes, (never, seldom, untested) = [], (found[kind] for kind in ("never", "seldom", "untested"))
    if never["count"]:
        taught = [one["teacher"] for one in never["classes"] if "teacher" in one]
        neither = f"; the teacher does not find {_them(never)} either" if taught and not any(taught) else ""
        notes.append(f"The student never answers {_names(never)} (recall 0 %{neither}).")
    if seldom["count"]:
        worst = f"{100 * seldom['classes'][0]['recall']:.0f} %{' and more' if seldom['count'] > 1 else ''}"
        mean = f"the mean of the classes is {100 * found['mean_recall']:.0f} %"
        notes.append(f"It finds {_names(seldom)} far more seldom than other classes (recall {worst}; {mean}).")
    if untested["count"]:
        notes.append(f"No test example is of {_names(untested)}, so nothing is known of {_them(untested)}.")
    return notes


def _them(kind: Mapping[str, Any]) -> str:
    return "it" if kind["count"] == 1 else "them"


def _names(kind: Mapping[str, Any]) -> str:
    names = [one["name"] for one in kind["classes"]]
    return listed([*names, *[""] * (kind["count"] - len(names))])
