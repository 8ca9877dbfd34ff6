"""Whether a teacher seems to be fed wrongly: it answers at chance, below the control, or with its classes mixed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillroom.contracts import UNLABELLED, Teacher
from stillroom.data.splits import labels_known
from stillroom.errors import StoreError
from stillroom.evaluate import BATCH, plain_ids
from stillroom.pipeline.plan import ALONE, Experiment
from stillroom.statistics import of_share, paired, points
from stillroom.tasks import class_counts

LEAST = 20  # labelled rows below which nothing is said
FEW = 100  # labelled validation rows below which a ready-made teacher is also judged on training rows
NEAR = 0.1  # accuracy above always one answer from which a teacher is not at chance, however few the rows
ABOVE_CHANCE = 0.25  # of the way from chance to always right: a balanced accuracy below that is no teacher's
FAR = 0.2  # accuracy that another order of the classes must add
MOST_CLASSES = 1000  # up to which another order is looked for
LOOK = (
    "Are its inputs prepared as it expects, and are its classes in the data's order? uint8 images are normalised "
    "before both networks; one that prepares its own inputs is handed over as Deployed(network, encode)."
)
TRAIN = "It has not learnt the task: look at its labels, its steps and its learning rate."


def ready_made(experiment: Experiment, name: str | None = None) -> bool:
    """Whether a teacher, or every one, was given as it is: what is wrong with it then is not its training."""
    plans = [experiment.teachers[name]] if name is not None else list(experiment.teachers.values())
    return bool(plans) and all(plan.training is None for plan in plans)


def checked(experiment: Experiment, teacher: Teacher, name: str | None = None) -> str | None:
    """Return what is suspicious in a teacher's answers on the validation split, in a sentence or two; None if nothing.

    ``teacher`` holds what it showed; one that holds nothing of that split is not judged. Where the split is short, a
    teacher that was given ready-made is judged on the training rows as well, which it was not trained on here.
    """
    data = experiment.data
    labels, rows = labels_known(data) if data.classes else None, data.splits["validation"]
    given, what = ready_made(experiment, name), "validation examples"
    if labels is None:
        return None
    if given and int((labels[rows] != UNLABELLED).sum()) < FEW:
        train = data.splits["train"]
        rows = torch.cat([rows, train[labels[train] != UNLABELLED][: 10 * FEW]])
        what = "validation and training examples"
    if not len(rows):
        return None
    try:
        told = torch.cat([teacher({"id": plain_ids(part)})["logits"].float() for part in rows.split(BATCH)])
    except StoreError:
        return None
    return doubt(told, labels[rows], [str(one) for one in data.classes or ()], given, what)


def doubt(logits: Tensor, labels: Tensor, names: Sequence[str], given: bool, rows: str) -> str | None:
    """Say that a teacher's classes look permuted, or that it answers at chance; None where neither is so."""
    known = labels != UNLABELLED
    logits, labels = logits[known], labels[known]
    if len(labels) < LEAST or int(labels.max()) >= logits.shape[1]:
        return None
    counts = class_counts(logits, labels)
    right, total, most = int(counts.right.sum()), len(labels), int(counts.rows.argmax())
    share = f"{100 * right / total:.1f} %"
    if (order := _order(logits.argmax(1), labels, logits.shape[1])) is not None:
        mapping, better = order
        moved = [(answer, meant) for answer, meant in enumerate(mapping) if answer != meant and counts.answered[answer]]
        moved.sort(key=lambda pair: -int(counts.answered[pair[0]]))
        pairs = ", ".join(f"'{_name(names, one)}' for '{_name(names, other)}'" for one, other in moved[:3])
        return (
            f"The teacher's classes look permuted: it is right on {share} of the {rows}, and would be on "
            f"{100 * better:.1f} % with its classes in another order (it answers {pairs}). {LOOK}"
        )
    present = int((counts.rows > 0).sum())
    above = (counts.balanced_accuracy - 1 / present) / (1 - 1 / present) if present > 1 else 1.0
    constant = int(counts.rows[most]) / total
    near = of_share(right, total)[0] <= constant and right / total < constant + NEAR
    if above < ABOVE_CHANCE and near:
        return (
            f"The teacher answers at chance: it is right on {share} of the {rows}, always '{_name(names, most)}' on "
            f"{100 * constant:.1f} %. {LOOK if given else TRAIN}"
        )
    return None


def _name(names: Sequence[str], place: int) -> str:
    return names[place] if place < len(names) else str(place)


def _order(guess: Tensor, labels: Tensor, classes: int) -> tuple[list[int], float] | None:
    """Return the class meant by each answer and the accuracy of that reading, where it is better by far.

    The order is found on every other row by the Hungarian method, and judged on those between.
    """
    if not 1 < classes <= MOST_CLASSES:
        return None
    from scipy.optimize import linear_sum_assignment

    table = torch.bincount(guess[0::2] * classes + labels[0::2], minlength=classes**2).view(classes, classes)
    mapping = torch.from_numpy(np.asarray(linear_sum_assignment(table.numpy(), maximize=True)[1], np.int64))
    total, (was, would) = (
        len(labels[1::2]),
        (int((read[1::2] == labels[1::2]).sum()) for read in (guess, mapping[guess])),
    )
    if would - was < FAR * total or of_share(would, total)[0] <= of_share(was, total)[1]:
        return None
    return mapping.tolist(), would / total


def add_teacher_check(
    experiment: Experiment,
    metrics: dict[str, Any],
    teacher: Teacher | None,
    right: Mapping[str, np.ndarray[Any, np.dtype[np.float64]]],
) -> None:
    """Put first in the verdict what is suspicious in the teacher, and keep it as ``teacher_check``.

    ``right``: which labelled test rows the ``teacher`` and ``alone`` answer rightly, (seeds x rows) each.
    """
    if teacher is None:
        return
    found = checked(experiment, teacher)
    if found is None and {ALONE, "teacher"} <= set(right):
        lead = paired(np.broadcast_to(right["teacher"], right[ALONE].shape), right[ALONE])
        if lead.high is not None and lead.high < 0:
            found = "The teacher is worse than the same student trained alone: "
            found += f"{points(lead.mean, lead.low, lead.high)}. "
            found += LOOK if ready_made(experiment) else "Train it longer, or take a larger one."
    if found is not None:
        metrics["teacher_check"] = found
        metrics["verdict"] = f"{found} {metrics['verdict']}"
