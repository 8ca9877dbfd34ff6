"""Two readers of one text: which of the teacher's steps stand for the bytes that a step of the student stands for.

Both sides say so in their ``spans``: [first, end) in bytes of the raw text, equal where a step stands for no text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stillroom.contracts import SPANS, Place, Segments, Signals, State
from stillroom.errors import LossError, say
from stillroom.objectives.signature import Signature
from stillroom.objectives.stretches import at_borders


def overlap(student_spans: Tensor, teacher_spans: Tensor) -> Tensor:
    """Return how many bytes each step of the student shares with each of the teacher's.

    Shapes: (B, Ts, 2) and (B, Tt, 2) -> (B, Ts, Tt), of whole numbers.
    """
    first = torch.maximum(student_spans[:, :, None, 0], teacher_spans[:, None, :, 0])
    shared: Tensor = torch.minimum(student_spans[:, :, None, 1], teacher_spans[:, None, :, 1]) - first
    return shared.clamp(min=0)


def mean_by_overlap(values: Tensor, shared: Tensor) -> Tensor:
    """Return, for each step of the student, the mean of the teacher's steps weighted by the bytes they share.

    Shapes: (B, Tt, ...) and (B, Ts, Tt) -> (B, Ts, ...), at least float32; 0 where nothing is shared.
    """
    values = values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
    weights: Tensor = shared.to(values.dtype) / shared.sum(2, keepdim=True).clamp(min=1)
    mixed: Tensor = torch.bmm(weights, values.flatten(2))
    return mixed.reshape(*mixed.shape[:2], *values.shape[2:])


def states_by_overlap(values: Tensor, shared: Tensor) -> Tensor:
    """Return, for each step of the student, the teacher's memory when it had just read the same bytes.

    Forward that is the last step that shares a byte, backward the first. A step that shares nothing gets some state,
    which its mask leaves out.

    Shapes: (B, Tt, layers, directions, D) and (B, Ts, Tt) -> (B, Ts, layers, directions, D).
    """
    steps = torch.arange(shared.shape[2], device=shared.device)
    rows = torch.arange(len(values), device=values.device)[:, None]
    last = torch.where(shared > 0, steps, torch.zeros_like(steps)).amax(2)
    first = torch.where(shared > 0, steps, torch.full_like(steps, len(steps) - 1)).amin(2)
    sides = [values[rows, place, :, side] for side, place in zip(range(values.shape[3]), (last, first), strict=False)]
    return torch.stack(sides, 3)


def align(
    title: str, reads: Signature, pair: Mapping[str, Place], values: dict[str, Any], student: Signals, teacher: Signals
) -> Tensor | None:
    """Bring what ``values`` holds of the teacher to the student's time axis, where both sides show their spans.

    The teacher's mask becomes: a step of the student that shares a byte with one of the teacher's. The same is returned
    (bool, B x Ts) for a loss that takes features and no masks: it is computed over those steps, each a row.

    Raises:
        LossError: states in the order of the text meet cells in the order of reading, in two directions; borders meet
            others, of another spacing or tokenizer; or stretches of a memory meet something else.
    """
    ours, theirs = reads.sides("student"), reads.sides("teacher")
    if not ours or not theirs:
        return None
    mine, place = pair[ours[0].name], pair[theirs[0].name]
    shown, target = values[ours[0].name], values[theirs[0].name]
    spans = _spans(student, mine), _spans(teacher, place)
    _one_spacing(title, mine, place)
    if _border(mine) or _border(place) or isinstance(mine.tap, Segments):
        _one_reading(title, mine, spans[0], place, spans[1])
    if isinstance(mine.tap, Segments):
        mask = values.get("teacher_mask")
        values[theirs[0].name], mask = at_borders(title, mine, place, target, mask)
        if "teacher_mask" in values:
            values["teacher_mask"] = mask
        return None
    _one_order(title, mine, shown, place, target)
    if spans[0] is None or spans[1] is None or _border(mine) or _border(place):
        return None
    kind = theirs[0].kind
    if kind is None or shown.shape[:2] != spans[0].shape[:2] or target.shape[:2] != spans[1].shape[:2]:
        return None
    stepwise = "..." in kind.axes and shown.dim() == target.dim() == 3
    if not stepwise and not ("time" in kind.axes and target.dim() == len(kind.axes)):
        return None
    shared = overlap(spans[0], spans[1])
    values[theirs[0].name] = (states_by_overlap if kind.name == "states" else mean_by_overlap)(target, shared)
    used = (shared > 0).any(2)
    mask = student.get(f"{mine.key}.mask")
    used = used if mask is None else used & mask
    if "teacher_mask" in values:
        values["teacher_mask"] = used
    return used if stepwise else None


def rows_of(values: Tensor, used: Tensor) -> Tensor:
    """Return the steps that count, each a row: (B, T, D) -> (N, D); where none counts, one row of zeros."""
    found = values[used]
    return found if len(found) else values[:1, 0] * 0


def _spans(signals: Signals, place: Place) -> Tensor | None:
    """Return the spans of the model a place belongs to; a step that is padding stands for nothing."""
    name = f"{place.owner}/{SPANS}" if place.owner else SPANS
    spans, mask = signals.get(name), signals.get(f"{name}.mask")
    return spans if spans is None or mask is None else spans * mask[..., None]


def _border(place: Place) -> bool:
    """Whether a place gives cells at borders, in the order of reading, which no spans describe."""
    return isinstance(place.tap, State) and place.key.endswith("@c")


def _one_reading(title: str, mine: Place, ours: Tensor | None, place: Place, theirs: Tensor | None) -> None:
    """Refuse borders of two readers of one text: after as many steps they stand at different words."""
    if ours is None or theirs is None:
        return
    steps = min(ours.shape[1], theirs.shape[1])
    apart = (ours[:, :steps] != theirs[:, :steps]).any() or ours[:, steps:].any() or theirs[:, steps:].any()
    if bool(apart):
        raise LossError(
            f"The objective '{title}' compares the student's '{mine.key}' with the teacher's '{place.key}' after as "
            "many steps each: got steps that stand for different bytes of the same texts. Allowed: the same tokens on "
            "both sides. Give both one encode, or compare the states at every step ('memory@h', the loss memory), "
            "which spans align."
        )


def _one_spacing(title: str, mine: Place, place: Place) -> None:
    """Refuse borders after other numbers of steps: there may be as many of them, as of 28 steps by 7 and by 8."""
    if not (isinstance(mine.tap, State) and isinstance(place.tap, State) and _border(mine) and _border(place)):
        return
    if mine.tap.every != place.tap.every:
        given = f"'{mine.tap}' of the student and '{place.tap}' of the teacher"
        raise LossError(say(f"'{title}' compares cells at other borders", given, "the same number behind '/'"))


def _one_order(title: str, mine: Place, shown: Tensor, place: Place, target: Tensor) -> None:
    both = all(isinstance(one.tap, State) for one in (mine, place)) and shown.dim() == target.dim() == 5
    if both and _border(mine) != _border(place) and min(shown.shape[3], target.shape[3]) > 1:
        raise LossError(
            f"The objective '{title}' compares the student's '{mine.key}' with the teacher's '{place.key}' in two "
            "directions: got states in the order of the text and cells in the order of reading, which differ backward. "
            "Allowed: the same entry on both sides, or one direction. Tap '@h' on both."
        )
