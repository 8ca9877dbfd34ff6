"""Dot: task and distillation gradients with a momentum of their own each, through ``train(gradients=...)``."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from stillroom.errors import TrainError, say
from stillroom.gradients.sides import Pull, Sides, clipped, pull_of, sides_of, trained
from stillroom.learner import Learner


class Dot:
    """Distillation-Oriented Trainer: the teacher's gradient is carried further than the task's.

    Zhao, Cui, Song and Liang 2023 (https://arxiv.org/abs/2307.08436). Each parameter has two momentum buffers,
    v_task <- (momentum - delta) v_task + g_task and v_distil <- (momentum + delta) v_distil + g_distil, and moves by
    the rate times their sum. As in mdistiller, weight decay goes with the task's gradient, and a parameter that only
    one of the two ever reaches (a connector) has the plain momentum. At a step where one side is not computed
    (``every``) its buffer goes on with a gradient of zero. Penalties count as task. The optimizer must be SGD without
    momentum and decay of its own: the buffers here take their place, and are part of the checkpoint. With ``delta`` 0
    this is SGD with momentum, clipping included.

    Example:
        >>> settings = Training(steps=500, optimizer="dot", lr=0.05)
    """

    def __init__(self, *, momentum: float = 0.9, delta: float = 0.075, weight_decay: float = 0.0) -> None:
        if not 0 <= momentum - delta <= momentum + delta < 1:
            raise TrainError(
                say(
                    "DOT's two momenta must lie between 0 and 1",
                    f"momentum {momentum} -+ delta {delta}",
                    "0 <= momentum - delta and momentum + delta < 1",
                    "Lower delta.",
                )
            )
        self.momentum, self.delta, self.weight_decay = momentum, delta, weight_decay
        self.buffers: dict[str, Tensor] = {}
        self.pull: Pull | None = None

    def __call__(
        self,
        learner: Learner,
        losses: Mapping[str, Tensor],
        weights: Mapping[str, float],
        *,
        clip: float | None = None,
    ) -> None:
        """Fill ``.grad`` of every trained parameter with the sum of its two buffers.

        ``clip`` bounds the norm of both sides' summed gradient before it enters the buffers; both get one factor.
        """
        sides = sides_of(learner, losses, weights)
        self.pull = pull_of(sides)
        with torch.no_grad():
            if clip is not None:
                sides = clipped(sides, clip)
            for name, parameter in trained(learner).items():
                parameter.grad = self._moved(name, parameter, sides)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the momentum buffers."""
        return dict(self.buffers)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take momentum buffers back."""
        self.buffers = dict(state)

    def _moved(self, name: str, parameter: Tensor, sides: Sides) -> Tensor | None:
        found = {"task": sides.task.get(name), "distil": sides.distil.get(name)}
        # A buffer tells that its side has reached this parameter before, also after a resumed training.
        reached = [side for side, one in found.items() if one is not None or f"{side}/{name}" in self.buffers]
        computed = name in sides.task or name in sides.distil
        if not reached or not (computed or name in sides.rests):  # as SGD leaves what has no gradient where it is
            return None
        if self.weight_decay:
            decay, now = self.weight_decay * parameter, found[reached[0]]
            found[reached[0]] = decay if now is None else now + decay
        apart = self.delta if len(reached) == 2 else 0.0
        momenta = {"task": self.momentum - apart, "distil": self.momentum + apart}
        moved = [self._buffer(f"{side}/{name}", found[side], momenta[side]) for side in reached]
        return moved[0].clone() if len(moved) == 1 else moved[0] + moved[1]

    def _buffer(self, name: str, gradient: Tensor | None, momentum: float) -> Tensor:
        kept = self.buffers.get(name)
        if kept is not None:
            kept.mul_(momentum)
            if gradient is not None:
                kept.add_(gradient)
        else:
            assert gradient is not None
            self.buffers[name] = gradient.clone()
        return self.buffers[name]
