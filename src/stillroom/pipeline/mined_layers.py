"""Which layer of a teacher goes with which layer of a student: those that represent the same examples alike."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stillroom.contracts import Hidden, place
from stillroom.errors import StillroomError
from stillroom.mining import Subject
from stillroom.mining.cka import as_rows, cka, layers_of
from stillroom.randomness import permutation

ROWS = 300  # training rows that both models read
BETTER = 0.05  # of alignment: less is no reason to change a layer


def read_at(text: str) -> bool:
    """Tell whether a tap is what leaves a layer of the single teacher, or of the student."""
    found = place(text)
    return isinstance(found.tap, Hidden) and not found.owner


def alike(
    teacher: Subject, student: Subject, layers: list[str], at: str | None = None, now: str | None = None
) -> tuple[str, str] | None:
    """Return the one of a teacher's ``layers`` that is most alike to a student's, and why; None without a reason.

    Alike is debiased linear CKA (Kornblith et al. 2019, https://arxiv.org/abs/1905.00414) on training rows. To pair
    layers by what they mean, not by their depth, is from SemCKD (Chen et al. 2021, https://arxiv.org/abs/2012.03236),
    which learns soft weights of all pairs; taking the best one, with a trained student's layers, is our own. Given the
    student's tap ``at`` and the teacher's ``now``, only a layer of the same kind of output and by 0.05 more alike is a
    reason. Given neither, the student's layer is chosen too, and only if it is by 0.05 more alike than with random
    weights: there are layers that any network has.
    """
    examples = teacher.examples("train")
    rows = examples[torch.from_numpy(permutation(len(examples), teacher.seed, "layer pairs")[:ROWS].copy())]
    try:
        if at is None or now is None:
            return _best(teacher, student, layers, rows)
        mine, current = (as_rows(shown) for shown in (student.show(at, rows), teacher.show(now, rows)))
        kind = teacher.show(now, rows[:2]).dim()
        close = {now: cka(current, mine)}
        for layer in layers:
            shown = teacher.show(layer, rows)
            if shown.dim() == kind:
                close[layer] = cka(as_rows(shown), mine)
    except StillroomError:  # a layer that runs several times in a pass, or that is not in this student
        return None
    layer = max(close, key=lambda one: -math.inf if math.isnan(close[one]) else close[one])
    if not close[layer] >= close[now] + BETTER:
        return None
    why = (
        f"On training examples the student's '{at}' is more alike to the teacher's '{layer}' (CKA {close[layer]:.2f}) "
    )
    return layer, f"{why}than to '{now}' ({close[now]:.2f})."


def _best(teacher: Subject, student: Subject, layers: list[str], rows: Tensor) -> tuple[str, str] | None:
    inner = layers_of(student.opened)[:-1]  # the last one makes the answers, which kd compares
    twin = student.randomised(student.seed)
    found = []
    for layer in layers:
        told = as_rows(teacher.show(layer, rows))
        for path in inner:
            near, chance = (cka(told, as_rows(one.show(path, rows))) for one in (student, twin))
            if near >= chance + BETTER:
                found.append((near, chance, layer, path))
    if not found:
        return None
    near, chance, layer, path = max(found)
    why = f"Worth a try: {{use: hint, student: {path}, teacher: {layer}}}. Of the layers looked at these two are most "
    return layer, f"{why}alike on training examples (CKA {near:.2f}; {chance:.2f} for a student that knows nothing)."
