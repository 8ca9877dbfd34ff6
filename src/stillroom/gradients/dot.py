"""Dot: task and distillation gradients with a momentum of their own each, through ``train(gradients=...)``."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from stillroom.errors import TrainError, say
from stillroom.gradients.sides import Pull, pull_of, sides_of, trained
from stillroom.learner import Learner


class Dot:
    """Distillation-Oriented Trainer: the teacher's gradient is carried further than the task's.

    Zhao, Cui, Song and Liang 2023 (https://arxiv.org/abs/2307.08436). Each parameter has two momentum buffers,
    v_task <- (momentum - delta) v_task + g_task and v_distil <- (momentum + delta) v_distil + g_distil, and moves by
    the rate times their sum. As in mdistiller, weight decay goes with the task's gradient, and a parameter that only
    one of the two reaches (a connector) has the plain momentum. Penalties count as task. The optimizer must be SGD
    without momentum and decay of its own: the buffers here take their place, and are part of the checkpoint.

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

    def __call__(self, learner: Learner, losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> None:
        """Fill ``.grad`` of every trained parameter with the sum of its two buffers."""
        sides = sides_of(learner, losses, weights)
        self.pull = pull_of(sides)
        with torch.no_grad():
            for name, parameter in trained(learner).items():
                parameter.grad = self._moved(name, parameter, sides.task.get(name), sides.distil.get(name))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the momentum buffers."""
        return dict(self.buffers)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take momentum buffers back."""
        self.buffers = dict(state)

    def _moved(self, name: str, parameter: Tensor, task: Tensor | None, distil: Tensor | None) -> Tensor | None:
        if task is None and distil is None:
            return None
        both = task is not None and distil is not None
        if self.weight_decay:
            if task is not None:
                task = task + self.weight_decay * parameter
            elif distil is not None:
                distil = distil + self.weight_decay * parameter
        moved = [
            self._buffer(f"{side}/{name}", gradient, self.momentum + (sign * self.delta if both else 0.0))
            for side, gradient, sign in (("task", task, -1), ("distil", distil, 1))
            if gradient is not None
        ]
        return moved[0].clone() if len(moved) == 1 else moved[0] + moved[1]

    def _buffer(self, name: str, gradient: Tensor, momentum: float) -> Tensor:
        kept = self.buffers.get(name)
        self.buffers[name] = gradient.clone() if kept is None else kept.mul_(momentum).add_(gradient)
        return self.buffers[name]
