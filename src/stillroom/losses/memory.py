"""Losses on what a recurrent network remembers: its states, its cells, and what was written into them.

No published source was found that passes on cell states step by step; these formulas are our own. The nearest are
Bhardwaj et al. 2019, who match the final state of an encoder that sees all with one that sees little
(https://openaccess.thecvf.com/content_CVPR_2019/html/Bhardwaj_Efficient_Video_Classification_Using_Fewer_Frames_CVPR_2019_paper.html),
and MiniLM, which passes on relations between a transformer's tokens.

States are (B, T, layers, directions, D). Both sides may differ in layers and directions: the last layers that both
have are compared, and the directions that both have, forward first. Masks (B, T) are False where there is no step.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from stillroom.contracts import States, Tokens
from stillroom.errors import LossError
from stillroom.losses._shared import floor_of, wide

STATES, TOKENS = 5, 3  # axes: batch, time, layers, directions, width; batch, time, width
LEAST_SHARE, LEAST = 1e-3, 1e-6
DEEPEST = 60.0  # exp(-60) is still a number of float32, so that no prefix weighs nothing


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of (B, T, ...) over the steps that count; 0 where there is none."""
    if mask is None:
        return values.mean()
    counts = mask.reshape(*mask.shape, *[1] * (values.dim() - 2))
    total = torch.where(counts, values, torch.zeros_like(values)).sum()
    return total / (counts.sum() * values[0, 0].numel()).clamp(min=1)


def _both(student_mask: Tensor | None, teacher_mask: Tensor | None) -> Tensor | None:
    masks = [mask for mask in (student_mask, teacher_mask) if mask is not None]
    return torch.stack(masks).all(0) if masks else None


def _normal(values: Tensor) -> Tensor:
    return F.layer_norm(values, values.shape[-1:])


def _unlike(student: Tensor, teacher: Tensor, axes: str = "layers, directions, width") -> LossError:
    do = (
        "Cells are read at borders ('memory@c/8'), which must be as many on both sides: read the same inputs with the "
        "same number behind '/', or compare the states at every step with the loss memory at 'memory@h', which spans "
        "of text align."
    )
    if student.dim() != STATES:
        do = "The student shows no states here: name its recurrent part, such as 'memory@h'."
    elif axes == "width" and teacher.dim() != TOKENS:
        do = "memory_prefix reads a transformer's tokens, such as 'body.encoder.layer.5'; of a recurrent teacher take "
        do += "the loss memory at 'memory@h'."
    elif teacher.dim() != (TOKENS if axes == "width" else STATES):
        do = "The teacher shows no states here: of a transformer take the loss memory_prefix, of a recurrent teacher "
        do += "the tap 'memory@h'."
    return LossError(
        f"States are compared step by step: got the student's {tuple(student.shape)} and the teacher's "
        f"{tuple(teacher.shape)}. Allowed: (batch, time, layers, directions, width) and (batch, time, {axes}) with "
        f"equal batch, time and width. {do}"
    )


def _alike(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in a precision wide enough, with the last layers and the first directions that both have."""
    fits = student.dim() == teacher.dim() == 5 and student.shape[:2] == teacher.shape[:2]
    if not fits or student.shape[4] != teacher.shape[4]:
        raise _unlike(student, teacher)
    layers, directions = (min(student.shape[axis], teacher.shape[axis]) for axis in (2, 3))
    ours, theirs = (wide(one)[:, :, -layers:, :directions] for one in (student, teacher.detach()))
    return ours, theirs


def memory(
    student_states: States,
    teacher_states: States,
    student_mask: Tensor | None = None,
    teacher_mask: Tensor | None = None,
) -> Tensor:
    """Mean squared difference of the layer-normalised states, step by step: (LN(student) - LN(teacher))^2.

    Our own construction: no published source was found for every step; Bhardwaj et al. 2019
    (https://openaccess.thecvf.com/content_CVPR_2019/html/Bhardwaj_Efficient_Video_Classification_Using_Fewer_Frames_CVPR_2019_paper.html)
    match the final state. LN has no weights and normalises over the width, after the connector, so that every step
    counts alike however saturated it is. Mean over the steps both sides have, all rows together, and over the width.
    Meant for ``h`` (``student: memory@h``). The last layers and the directions (forward first) that both sides have are
    compared: a one-directional student follows the forward direction alone.

    Shapes: (B, T, layers, directions, D) twice, layers and directions free, masks (B, T); returns a scalar, 0 where
    the normalised states are equal.

    Raises:
        LossError: batch, time or width differ.
    """
    student, teacher = _alike(student_states, teacher_states)
    return _mean((_normal(student) - _normal(teacher)).square(), _both(student_mask, teacher_mask))


def _by_variance(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of (student - teacher)^2 / variance, the teacher's own for each layer, direction and feature."""
    if mask is None:
        variance, power = teacher.var((0, 1), correction=0), teacher.square().mean()
    else:
        weights = mask.to(teacher.dtype)[:, :, None, None, None]
        share = weights / weights.sum().clamp(min=1)
        variance = ((teacher - (teacher * share).sum((0, 1))).square() * share).sum((0, 1))
        power = (teacher.square() * share).sum((0, 1)).mean()
    return _mean((student - teacher).square() / variance.clamp(min=LEAST_SHARE * power + LEAST), mask)


def memory_cells(
    student_states: States,
    teacher_states: States,
    student_mask: Tensor | None = None,
    teacher_mask: Tensor | None = None,
) -> Tensor:
    """Mean squared difference of the cells, divided by the teacher's variance: (student - teacher)^2 / Var(teacher).

    Our own construction: no published source was found that passes on cells; Bhardwaj et al. 2019
    (https://openaccess.thecvf.com/content_CVPR_2019/html/Bhardwaj_Efficient_Video_Classification_Using_Fewer_Frames_CVPR_2019_paper.html)
    match the final state. Cells are not bounded, and some count far: the variance is that of each layer, direction and
    feature over the entries of the batch that count, at least 1/1000 of the mean square of all cells plus 1e-6. A value
    of 1 is that of a student that answers with the teacher's mean. Meant for ``c`` at borders (``memory@c/8`` on both
    sides, the same inputs); a GRU has no cell, and its ``h`` may be compared with an LSTM's ``c`` at every step
    (``student: memory@h, teacher: memory@c``). Layers and directions as for :func:`memory`.

    Shapes: (B, borders, layers, directions, D) twice, masks (B, borders); returns a scalar, 0 at equality.

    Raises:
        LossError: batch, number of borders or width differ.
    """
    student, teacher = _alike(student_states, teacher_states)
    return _by_variance(student, teacher, _both(student_mask, teacher_mask))


def _updates(states: Tensor) -> Tensor:
    """Return what changed since the entry before; before the first the memory is 0."""
    return torch.diff(states, dim=1, prepend=torch.zeros_like(states[:, :1]))


def memory_updates(
    student_states: States,
    teacher_states: States,
    student_mask: Tensor | None = None,
    teacher_mask: Tensor | None = None,
) -> Tensor:
    """Mean squared difference of what was written and forgotten between borders, c_j - c_(j-1), by the teacher's.

    :func:`memory_cells` for the changes of the cells from one border to the next (from 0 to the first), divided by the
    variance of the teacher's changes; our own construction, nearest to Bhardwaj et al. 2019
    (https://openaccess.thecvf.com/content_CVPR_2019/html/Bhardwaj_Efficient_Video_Classification_Using_Fewer_Frames_CVPR_2019_paper.html).
    A change counts where both of its borders do.

    Shapes: (B, borders, layers, directions, D) twice, masks (B, borders); returns a scalar, 0 at equality.

    Raises:
        LossError: batch, number of borders or width differ.
    """
    student, teacher = _alike(student_states, teacher_states)
    mask = _both(student_mask, teacher_mask)
    if mask is not None:
        mask = mask & torch.cat([torch.ones_like(mask[:, :1]), mask[:, :-1]], 1)
    return _by_variance(_updates(student), _updates(teacher), mask)


def _prefixes(tokens: Tensor, mask: Tensor | None = None, *, temperature: float = 1.0, directions: int = 1) -> Tensor:
    """Return what a reader of a transformer's tokens could remember at each step: attention-pooled prefixes.

    The state at t is the mean of tokens 0..t (in the second direction t..end) weighted by exp(x_i . q / (sqrt(D)
    temperature)), where q is the mean of all tokens of the text. A score more than 60 below the row's greatest counts
    as 60 below.

    Shapes: (B, T, D) with a mask (B, T) -> (B, T, 1, directions, D).
    """
    tokens = wide(tokens)
    used = torch.ones_like(tokens[..., 0], dtype=torch.bool) if mask is None else mask
    counted = torch.where(used[..., None], tokens, torch.zeros_like(tokens))
    query = counted.sum(1, keepdim=True) / used.sum(1).clamp(min=1)[:, None, None]
    scores = (counted * query).sum(2) / (tokens.shape[2] ** 0.5 * temperature)
    greatest = scores.masked_fill(~used, floor_of(scores)).amax(1, keepdim=True)
    weights = (scores - greatest).clamp(-DEEPEST, 0).exp() * used
    pooled = []
    for turned in (False, True)[:directions]:
        parts = [weights[..., None], weights[..., None] * counted]
        mass, total = (one.flip(1).cumsum(1).flip(1) if turned else one.cumsum(1) for one in parts)
        pooled.append(total / torch.where(mass > 0, mass, torch.ones_like(mass)))
    return torch.stack(pooled, 2)[:, :, None]


def memory_prefix(
    student_states: States,
    teacher_tokens: Tokens,
    student_mask: Tensor | None = None,
    teacher_mask: Tensor | None = None,
    *,
    temperature: Annotated[float, Field(gt=0)] = 1.0,
) -> Tensor:
    """From a transformer into a recurrent memory: states against attention-pooled prefixes of the teacher's tokens.

    The target at step t is what could be known there: the mean of the teacher's tokens 0..t (of t..end for the backward
    direction), weighted by softmax(x_i . q / (sqrt(D) temperature)) over that prefix, q being the mean of all tokens of
    the text. Compared after layer norm as in :func:`memory`, with the student's last layer. Our own construction: the
    nearest are MiniLM, which keeps the relations between tokens instead (Wang et al. 2020,
    https://arxiv.org/abs/2002.10957), and final states (Bhardwaj et al. 2019). The tokens have seen the whole text, so
    that the target at t knows a little of what comes after.

    Shapes: (B, T, layers, directions, D) and (B, T, D), masks (B, T); returns a scalar, 0 where the normalised states
    are equal.

    Raises:
        LossError: batch, time or width differ.
    """
    mask = _both(student_mask, teacher_mask)
    used = teacher_mask if teacher_mask is not None else student_mask
    fits = student_states.dim() == 5 and teacher_tokens.dim() == 3
    if not fits or student_states.shape[:2] != teacher_tokens.shape[:2]:
        raise _unlike(student_states, teacher_tokens, "width")
    targets = _prefixes(teacher_tokens.detach(), used, temperature=temperature, directions=student_states.shape[3])
    student, teacher = _alike(student_states, targets)
    return _mean((_normal(student) - _normal(teacher)).square(), mask)
