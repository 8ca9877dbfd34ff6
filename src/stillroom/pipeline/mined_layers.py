"""Which layer of a teacher goes with which layer of a student: those that represent the same examples alike."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stillroom.contracts import Hidden, place
from stillroom.errors import StillroomError
from stillroom.evaluate import BATCH, plain_ids
from stillroom.mining import Subject
from stillroom.mining.cka import as_rows, cka, layers_of
from stillroom.mining.reading import vectors
from stillroom.randomness import permutation
from stillroom.taps import read

ROWS, FEWEST = 300, 80  # training rows that both models read; of a slow model, a quarter of what it is asked about
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
    examples, most = teacher.examples("train"), min(ROWS, max(FEWEST, teacher.most // 4))
    rows = examples[torch.from_numpy(permutation(len(examples), teacher.seed, "layer pairs")[:most].copy())]
    if at is None or now is None:
        return _best(teacher, student, layers, rows)
    mine, current = _read(student, at, rows), _read(teacher, now, rows)
    if mine is None or current is None:
        return None
    close = {now: cka(current.values, mine.values)}
    for layer in layers:
        shown = _read(teacher, layer, rows)
        if shown is not None and shown.axes == current.axes:
            close[layer] = cka(shown.values, mine.values)
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
    told, ours, chance = _all(teacher, layers, rows), _all(student, inner, rows), _all(twin, inner, rows)
    found = []
    for layer, theirs in told.items():
        for path in ours.keys() & chance.keys():
            near, far = cka(theirs, ours[path]), cka(theirs, chance[path])
            found += [(near, far, layer, path)] * (near >= far + BETTER)
    if not found:
        return None
    near, far, layer, path = max(found)
    why = f"Worth a try: {{use: hint, student: {path}, teacher: {layer}}}. Of the layers looked at these two are most "
    return layer, f"{why}alike on training examples (CKA {near:.2f}; {far:.2f} for a student that knows nothing)."


def _all(subject: Subject, layers: list[str], examples: Tensor) -> dict[str, Tensor]:
    """What layers show, (N, width) each, by one pass where they can be read together; without those that cannot be."""
    try:
        return vectors(subject, layers, examples)
    except (StillroomError, RuntimeError):
        each = {layer: _read(subject, layer, examples) for layer in layers}
        return {layer: shown.values for layer, shown in each.items() if shown is not None}


class _Shown(NamedTuple):
    """What a layer shows: a row for each example, and how many axes its output has."""

    values: Tensor
    axes: int


def _read(subject: Subject, path: str, examples: Tensor) -> _Shown | None:
    """Read a layer; None where it runs several times in a pass, is not there, or has no width of its own."""
    parts, axes = [], 0
    try:
        reader = read(subject.opened.eval(), [path], subject.encode)
        with torch.no_grad():
            for part in examples.split(BATCH):
                signals = reader(subject.data.batch(plain_ids(part)))
                shown = signals[path].float()
                axes = shown.dim()
                if isinstance(subject.opened.get_submodule(path), nn.Conv1d):  # its steps come last
                    shown = shown.mean(2)
                parts.append(as_rows(shown, signals.get(f"{path}.mask")))
    except (StillroomError, AttributeError, KeyError):
        return None
    return _Shown(torch.cat(parts), axes) if len({part.shape[1] for part in parts}) == 1 else None
