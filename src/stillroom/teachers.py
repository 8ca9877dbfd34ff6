"""Teachers made of models: one live model, several at once, their average, and one with a past."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.contracts import Batch, Signals, Tap, Teacher
from stillroom.errors import ModelError
from stillroom.taps import Takes, read


class Live:
    """A model that answers while training runs: in eval mode, detached, never trained.

    Example:
        >>> teacher = Live(network, ["logits", "layer3"])
    """

    def __init__(
        self,
        module: nn.Module,
        taps: Iterable[str | Tap] = ("logits",),
        *,
        encode: Callable[..., Any] | None = None,
        takes: Takes = ("inputs",),
    ) -> None:
        self.module = module
        self.reader = read(module, taps, encode, takes=takes)

    def __call__(self, batch: Batch) -> Signals:
        """Return what the model shows on ``batch``, detached."""
        modes = [part for part in self.module.modules() if part.training]
        try:
            self.module.eval()
            with torch.no_grad():
                return {name: value.detach() for name, value in self.reader(batch).items()}
        finally:
            for part in modes:
                part.training = True


class Together:
    """Several teachers by name: their signals come prefixed, ``big/logits``."""

    def __init__(self, teachers: Mapping[str, Teacher]) -> None:
        self.teachers = dict(teachers)

    def __call__(self, batch: Batch) -> Signals:
        """Return every teacher's signals under ``<teacher>/<signal>``."""
        return {
            f"{name}/{signal}": value
            for name, teacher in self.teachers.items()
            for signal, value in teacher(batch).items()
        }


class Average:
    """Several teachers as one: the weighted mean of their logits' probabilities, given back as ``logits``.

    The logarithm of the mean probability is returned, so that every loss on logits sees the mixture.

    Raises:
        ModelError: no teacher, or weights that do not fit.
    """

    def __init__(self, teachers: Mapping[str, Teacher], weights: Mapping[str, float] | None = None) -> None:
        self.together = Together(teachers)
        self.weights = dict(weights) if weights is not None else dict.fromkeys(teachers, 1.0)
        if not teachers or set(self.weights) != set(teachers) or sum(self.weights.values()) <= 0:
            raise ModelError(
                f"An average needs a weight for each of its teachers: got weights for {sorted(self.weights)} and teachers "
                f"{sorted(teachers)}. Allowed: the same names, weights that sum to more than 0. Name them alike."
            )

    def __call__(self, batch: Batch) -> Signals:
        """Return every teacher's signals, prefixed, and their combination as ``logits``."""
        signals = self.together(batch)
        total = sum(self.weights.values())
        mixture = torch.stack(
            [weight / total * signals[f"{name}/logits"].float().softmax(1) for name, weight in self.weights.items()]
        ).sum(0)
        return signals | {"logits": mixture.clamp(min=torch.finfo(mixture.dtype).tiny).log()}


class MovingAverage:
    """A teacher with a past: the exponential moving average of a student's weights (mean teacher).

    Tarvainen and Valpola 2017 (https://arxiv.org/abs/1703.01780). Buffers are copied, not averaged. Its weights are
    part of the checkpoint, so that a resumed run goes on bit for bit.
    """

    def __init__(
        self,
        student: nn.Module,
        taps: Iterable[str | Tap] = ("logits",),
        *,
        decay: float = 0.99,
        encode: Callable[..., Any] | None = None,
        takes: Takes = ("inputs",),
    ) -> None:
        self.decay, self.student = decay, student
        self.average = copy.deepcopy(student).eval().requires_grad_(False)
        self.live = Live(self.average, taps, encode=encode, takes=takes)

    def __call__(self, batch: Batch) -> Signals:
        """Return what the averaged student shows."""
        return self.live(batch)

    @torch.no_grad()
    def advance(self, step: int) -> None:
        """Move the average towards the student, after the optimizer's step."""
        for mine, theirs in zip(self.average.parameters(), self.student.parameters(), strict=True):
            mine.lerp_(theirs, 1 - self.decay)
        for kept, moved in zip(self.average.buffers(), self.student.buffers(), strict=True):
            kept.copy_(moved)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averaged weights."""
        return dict(self.average.state_dict())

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take averaged weights back."""
        self.average.load_state_dict(dict(state))
