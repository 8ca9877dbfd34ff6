"""What is said of a derivative that a model does not have: it was cut off, rounded away, or there never was one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from stillroom.contracts import GradCam, Gradient
from stillroom.errors import TapError, say
from stillroom.taps.directions import directions, steps

SCALES = (1e-3, 1e-2, 1e-1)  # of the example's length
LADDER = (1e-3, 4e-3, 1.6e-2, 6.4e-2, 2.56e-1)
ALIKE = 0.9  # cosine of two gradients over neighbouring steps, the mean of the rows
NOTICED = 1e-5  # of the largest answer: more than what is rounded off, if a pass is done in another way
CUTS = "by detach(), no_grad or an operation without a derivative"
Wanted = Gradient | GradCam


def moves(values: Tensor, ids: Tensor, answers: Tensor, answer: Callable[[Tensor], Tensor]) -> float | None:
    """Return the first of ``SCALES`` at which some row's answers change along a random direction; None at none."""
    with torch.no_grad():
        way, answers = directions(ids, values.shape[1:], 1, 0).to(values)[:, 0], answers.detach()
        least = NOTICED * float(answers.abs().max()) if answers.numel() else 0.0
        for scale in SCALES:
            there = answer(values.detach() + steps(values, scale, relative=True) * way)
            if float((there - answers).abs().max()) > least:
                return scale
    return None


def wide_enough(gradient: Callable[[float], Tensor]) -> float | None:
    """Return the first step of ``LADDER`` over which differences say what those over the one before said, or None.

    A model that rounds gives nothing over less than a jump, and next to anything over just one.
    """
    before: Tensor | None = None
    for step in LADDER:
        found = gradient(step).flatten(1)
        if before is not None and float(torch.cosine_similarity(before, found, 1).mean()) >= ALIKE:
            return step
        before = found
    return None


def no_gradient(one: Wanted, of: str, model: str, *, column: bool, training: bool) -> TapError:
    """The answers change with what is wanted, but no derivative says so."""
    given, what = f"'{one}' of a {model} that cuts it off ({CUTS})", f"The model gives no gradient by its '{of}'"
    if not column or isinstance(one, GradCam):
        allowed = "a place from which all can be differentiated up to the logits, without detach() or no_grad"
        return TapError(say(what, given, allowed, "Name a later one."))
    if training and not one.directional:
        wanted = replace(one, along="random", count=4, mode="finite_difference")
        allowed = "directions by mode=finite_difference, which need no derivative"
        return TapError(say(what, given, allowed, f"Write '{wanted}' on both sides."))
    passes = "one pass a direction" if one.directional else "two passes for each number of it"
    allowed, do = f"mode=finite_difference, which needs none ({passes})", f"Write '{by_differences(one)}'."
    if not one.directional:
        do += " Of many numbers, read directions on both sides: 'logits@gradient(random=4)'."
    return TapError(say(what, given, allowed, do))


def no_dependence(one: Wanted, of: str) -> TapError:
    """Whatever is done to the column, the answers stay what they are."""
    do = f"Name what they are made of: wrt= is now '{of}'."
    return TapError(say(f"The logits do not depend on '{of}'", f"'{one}'", "what they depend on", do))


def stepwise(one: Gradient, model: str, step: float) -> TapError:
    """The derivative is zero for every row, but the answers change ``step`` away: something is rounded."""
    what = f"'{one}' of a {model} whose answers change in jumps, as one that rounds (quantised) does"
    wide = by_differences(one, min(0.25, 10 * step))
    allowed = "finite differences over more than one jump"
    do = f"Write '{wide}'." if one.directional else f"Write '{wide}', or directions: 'logits@gradient(random=4)'."
    return TapError(say("The derivative is exactly zero for every row, though the answers change", what, allowed, do))


def by_differences(one: Gradient, step: float | None = None) -> Gradient:
    """Return the same derivative, by differences over ``step``."""
    return replace(one, mode="finite_difference", step=step)


__all__ = ["by_differences", "moves", "no_dependence", "no_gradient", "stepwise", "wide_enough"]
