"""Options of a derivative that mean something together, and those of a student in training."""

from __future__ import annotations

import math

from stillroom.contracts import Gradient, Tap
from stillroom.errors import TapError, say


def by_differences(one: Gradient) -> bool:
    """Whether ``one`` is read by finite differences, as far as its text says."""
    return one.mode == "finite_difference" or (one.mode == "auto" and one.directional)


def refuse_options(one: Tap) -> None:
    """Refuse a step or a seed that would go nowhere, or say nothing.

    Raises:
        TapError: a step that is not above 0; a step without differences, or a seed without random directions.
    """
    if not isinstance(one, Gradient):
        return
    if one.step is not None and not (one.step > 0 and math.isfinite(one.step)):
        do = "Leave it out, and the usual one is taken."
        raise TapError(say(f"The step of '{one}' goes nowhere", f"step={one.step:g}", "a number above 0", do))
    if one.step is not None and not by_differences(one):
        mode = "vjp" if one.mode == "auto" else one.mode
        do = "Leave it out, or write mode=finite_difference."
        allowed = "a step of finite differences"
        raise TapError(say(f"The step of '{one}' has no effect", f"step={one.step:g} by {mode}", allowed, do))
    if one.seed and one.along != "random":
        allowed = "a seed of random directions, such as 'logits@gradient(random=4,seed=1)'"
        do = "Leave it out, or write random=."
        raise TapError(say(f"The seed of '{one}' has no effect", f"seed={one.seed} along {one.along}", allowed, do))


__all__ = ["by_differences", "refuse_options"]
