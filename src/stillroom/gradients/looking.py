"""Looking at a training's terms: how strongly each pulls, and whether the teacher and the task pull the same way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from stillroom.gradients.sides import STUDENT, Pull, Sides, norm, pull_of, trained
from stillroom.learner import Learner
from stillroom.objectives import Objective

APART = 100.0  # gradient norms of two terms that differ by more than this factor are worth a warning


class Looked(NamedTuple):
    """What one look found: each weighted term's norm, how the two sides lie, and what is worth a warning."""

    norms: dict[str, float]
    pull: Pull
    notes: tuple[str, ...]


class Looking:
    """Looks at the gradients of a learner's weighted terms over the student's parameters, one backward pass a term.

    The graph stays, and nothing of the training is changed. A pair of terms is warned about once.
    """

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self.warned: set[tuple[str, str]] = set()

    def __call__(self, step: int, losses: dict[str, Tensor], weights: Mapping[str, float]) -> Looked:
        """Look at step ``step`` (from 0); the value of a penalty that is folded into the optimizer joins ``losses``."""
        named = {name: value for name, value in trained(self.learner).items() if name.startswith(STUDENT)}
        norms: dict[str, float] = {}
        sides = Sides({}, {})
        for objective in self.learner.objectives:
            assert isinstance(objective, Objective)
            if objective.folded:
                losses[objective.name] = objective({}, {}, {})
            value = losses.get(objective.name)
            if value is None or not value.requires_grad or not weights[objective.name]:
                continue
            weighted = value * weights[objective.name]
            found = torch.autograd.grad(weighted, list(named.values()), retain_graph=True, allow_unused=True)
            reached = {name: one for name, one in zip(named, found, strict=True) if one is not None}
            norms[objective.name] = norm(reached.values())
            side = sides.distil if objective.role == "distil" else sides.task
            for name, one in reached.items():
                side[name] = side[name] + one if name in side else one
        return Looked(norms, pull_of(sides), self._compare(step, norms))

    def _compare(self, step: int, norms: Mapping[str, float]) -> tuple[str, ...]:
        some = {name: norm for name, norm in norms.items() if norm > 0}
        if len(some) < 2:
            return ()
        large, small = max(some, key=some.__getitem__), min(some, key=some.__getitem__)
        if some[large] <= APART * some[small] or (large, small) in self.warned:
            return ()
        self.warned.add((large, small))
        times = f"{some[large] / some[small]:.0f} times that of '{small}' ({some[small]:.3g})"
        return (
            f"step {step + 1}: the gradient of '{large}' ({some[large]:.3g}) is {times}; '{small}' hardly takes part. "
            "Raise its weight or lower the other's.",
        )
