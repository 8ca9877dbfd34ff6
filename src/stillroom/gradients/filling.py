"""Filling ``.grad``: by a plain backward pass, or by what a person or the settings put in its place; then clipping."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from stillroom.errors import TrainError, say
from stillroom.gradients.balance import Balance
from stillroom.gradients.dot import Dot
from stillroom.learner import Learner
from stillroom.settings import Training

Gradients = Callable[[Learner, Mapping[str, Tensor], Mapping[str, float]], None]


def filler(settings: Training, given: Gradients | None) -> Gradients | None:
    """Return what fills ``.grad`` in place of a plain backward pass, if anything.

    Raises:
        TrainError: something is given, and the settings balance.
    """
    if given is not None and settings.balance is not None:
        raise TrainError(
            say(
                "Only one can fill .grad",
                f"gradients= and balance: {settings.balance:g}",
                "one of the two",
                "Leave train.balance out.",
            )
        )
    if given is None and settings.balance is not None:
        return Balance(settings.balance)
    if given is None and settings.optimizer == "dot":
        return Dot(momentum=settings.momentum, delta=settings.delta, weight_decay=settings.weight_decay)
    return given


def fill(
    gradients: Gradients | None,
    learner: Learner,
    losses: Mapping[str, Tensor],
    weights: Mapping[str, float],
    clip: float | None,
) -> None:
    """Fill ``.grad`` of all that is trained, from gradients of at most the norm ``clip``, connectors included."""
    if isinstance(gradients, Dot):  # fills in what its momentum made of the gradients, so it clips before
        return gradients(learner, losses, weights, clip=clip)
    if gradients is None:
        losses["loss"].backward()
    else:
        gradients(learner, losses, weights)
    if clip is not None:
        nn.utils.clip_grad_norm_(learner.parameters(), clip)
    return None
