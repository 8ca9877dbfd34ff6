"""The two sides of a training's gradient: what the task asks for and what the teacher asks for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from stillroom.learner import Learner
from stillroom.objectives import Objective

STUDENT = "student."


class Sides(NamedTuple):
    """The gradients of the task's and of the teacher's weighted terms, by parameter name; absent where one has none.

    ``rests``: names of those that a plain backward pass of the loss gives a gradient of zero, because their objective
    (or every objective) is not computed at this step.
    """

    task: dict[str, Tensor]
    distil: dict[str, Tensor]
    rests: frozenset[str] = frozenset()


class Pull(NamedTuple):
    """How the teacher's gradient lies to the task's, over the student's parameters.

    ``cosine``: from -1 (they undo each other) to 1 (they say the same); None where one of them is nought.
    ``ratio``: the teacher's norm as a multiple of the task's, before any balancing; None where the task has none.
    """

    cosine: float | None
    ratio: float | None


@runtime_checkable
class Sided(Protocol):
    """A way to fill ``.grad`` that has both sides at hand, and so can tell at every step how they lie."""

    pull: Pull | None


def trained(learner: nn.Module) -> dict[str, nn.Parameter]:
    """Return every parameter that is trained, of the student and of connectors, by its name in the learner."""
    return {name: value for name, value in learner.named_parameters() if value.requires_grad}


def sides_of(learner: Learner, losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Sides:
    """Return the gradients of both sides over all that is trained, in two backward passes; penalties count as task.

    The graph is free afterwards.
    """
    named = trained(learner)
    task, distil = (_terms(learner, losses, weights, distil=side) for side in (False, True))
    rests = _rests(learner, losses, named)
    return Sides(_gradient(task, named, keep=bool(distil)), _gradient(distil, named, keep=False), rests)


def clipped(sides: Sides, bound: float) -> Sides:
    """Return both sides times the one factor by which ``clip_grad_norm_`` would bring their sum to a norm of ``bound``.

    The sum is over all that is trained, so that a clipped step means the same with two sides as with one loss.
    """
    task, distil = sides.task, sides.distil
    whole = [value + distil[name] if name in distil else value for name, value in task.items()]
    whole += [value for name, value in distil.items() if name not in task]
    if not whole:
        return sides
    factor = (bound / (nn.utils.get_total_norm(whole) + 1e-6)).clamp(max=1.0)
    ours, theirs = ({name: value * factor for name, value in side.items()} for side in (task, distil))
    return Sides(ours, theirs, sides.rests)


def _rests(learner: Learner, losses: Mapping[str, Tensor], named: Mapping[str, nn.Parameter]) -> frozenset[str]:
    """Name what the learner's loss holds times zero at this step."""
    every = [one for one in learner.objectives if isinstance(one, Objective) and not one.folded]
    resting = [one for one in every if one.name not in losses]
    if len(resting) == len(every):
        return frozenset(named)
    owned = {id(value) for one in resting for value in one.parameters()}
    return frozenset(name for name, value in named.items() if id(value) in owned)


def _terms(
    learner: Learner, losses: Mapping[str, Tensor], weights: Mapping[str, float], *, distil: bool
) -> list[Tensor]:
    return [
        weights[one.name] * losses[one.name]
        for one in learner.objectives
        if isinstance(one, Objective)
        and one.name in losses
        and losses[one.name].requires_grad
        and (one.role == "distil") == distil
    ]


def _gradient(terms: list[Tensor], named: Mapping[str, nn.Parameter], *, keep: bool) -> dict[str, Tensor]:
    if not terms:
        return {}
    total = torch.stack(terms).sum()
    found = torch.autograd.grad(total, list(named.values()), retain_graph=keep, allow_unused=True)
    return {name: value for name, value in zip(named, found, strict=True) if value is not None}


def norm(gradients: Iterable[Tensor]) -> float:
    """Return the Euclidean norm of all ``gradients`` together, in float32; 0 for none."""
    wide = [one.float() for one in gradients]
    return float(nn.utils.get_total_norm(wide)) if wide else 0.0


def pull_of(sides: Sides) -> Pull:
    """Return how the two sides lie to each other over the student's parameters (connectors have one side only)."""
    task, distil = (
        {name: one.float() for name, one in side.items() if name.startswith(STUDENT)}
        for side in (sides.task, sides.distil)
    )
    ours, theirs = norm(task.values()), norm(distil.values())
    ratio = theirs / ours if ours else None
    shared = [torch.dot(task[name].flatten(), distil[name].flatten()) for name in task if name in distil]
    if not shared or not ours or not theirs:
        return Pull(None, ratio)
    cosine = float(torch.stack(shared).sum()) / (ours * theirs)
    return Pull(min(1.0, max(-1.0, cosine)) if math.isfinite(cosine) else None, ratio)
