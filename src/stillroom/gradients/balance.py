"""Balance: the teacher's gradient held at a multiple of the task's norm, through ``train(gradients=...)``."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from stillroom.errors import TrainError, say
from stillroom.gradients.sides import Pull, norm, pull_of, sides_of, trained
from stillroom.learner import Learner
from stillroom.objectives import Objective

SMOOTHING = 0.9  # about the last ten steps


class Balance:
    """Scales the teacher's side so that its gradient's norm is ``ratio`` times the task's, whatever the weights.

    ``.grad`` = g_task + s g_distil with s = ratio m(|g_task|) / m(|g_distil|), where m is an exponential moving average
    (``smoothing`` of the old, the rest of the new) over the steps at which both sides have a gradient; elsewhere s
    stays what it was, 1 at first. Norms are over all that is trained, the connectors (projectors) included: leaving
    them out of clipping once turned the outcome of a comparison (https://arxiv.org/abs/2605.31191). Weights of
    objectives still divide each side among its own terms. Penalties count as task. Where few labels are soon fitted,
    the task's gradient fades and takes the teacher's with it: a fixed weight serves better there.

    In the manner of GradNorm (Chen et al. 2018, https://arxiv.org/abs/1711.02257), which learns weights towards equal
    norms; here the weight is their ratio at once, as Esser et al. 2021 do for a discriminator
    (https://arxiv.org/abs/2012.09841), whose norms are of the last layer alone and not smoothed. The averages are part
    of the checkpoint.

    Raises:
        TrainError: the ratio is not above 0, or the smoothing not within 0 and 1.

    Example:
        >>> settings = Training(steps=500, balance=1.0)
    """

    def __init__(self, ratio: float = 1.0, *, smoothing: float = SMOOTHING) -> None:
        if not (ratio > 0 and math.isfinite(ratio)) or not 0 <= smoothing < 1:
            raise TrainError(
                say(
                    "Gradients cannot be balanced like this",
                    f"ratio {ratio}, smoothing {smoothing}",
                    "a ratio above 0, and 0 <= smoothing < 1",
                )
            )
        self.ratio, self.smoothing = ratio, smoothing
        self.norms: tuple[float, float] | None = None
        self.pull: Pull | None = None

    @property
    def scale(self) -> float:
        """What the teacher's side is multiplied by now."""
        return 1.0 if self.norms is None else self.ratio * self.norms[0] / self.norms[1]

    def __call__(self, learner: Learner, losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> None:
        """Fill ``.grad`` of every trained parameter with the sum of the task's side and the scaled teacher's."""
        sides = sides_of(learner, losses, weights)
        self.pull = pull_of(sides)
        self._smooth(norm(sides.task.values()), norm(sides.distil.values()))
        scale = self.scale
        with torch.no_grad():
            for name, parameter in trained(learner).items():
                task, distil = sides.task.get(name), sides.distil.get(name)
                if distil is not None:
                    parameter.grad = distil * scale if task is None else torch.add(task, distil, alpha=scale)
                elif task is None and name in sides.rests:
                    parameter.grad = torch.zeros_like(parameter)  # what the optimizer has of it goes on
                else:
                    parameter.grad = task

    def state_dict(self) -> dict[str, Tensor]:
        """Return the two averages: the task's and the teacher's; nothing before the first."""
        return {} if self.norms is None else {"norms": torch.tensor(self.norms, dtype=torch.float64)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the averages back."""
        kept = state.get("norms")
        self.norms = None if kept is None else (float(kept[0]), float(kept[1]))

    def _smooth(self, task: float, distil: float) -> None:
        if not (0 < task < math.inf and 0 < distil < math.inf):
            return
        old = self.norms or (task, distil)
        task, distil = (
            self.smoothing * before + (1 - self.smoothing) * now
            for before, now in zip(old, (task, distil), strict=True)
        )
        self.norms = (task, distil)


def one_sided(learner: Learner) -> str:
    """Say what a person should know where there is no task to balance the teacher against; else nothing.

    Without a teacher's term nothing is said: a control is trained with the same settings.
    """
    roles = {one.role for one in learner.objectives if isinstance(one, Objective)}
    if roles == {"distil"}:
        return "train.balance does nothing here: no objective is of the task, so there is no norm to balance against."
    return ""
