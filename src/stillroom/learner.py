"""The learner: a student and its objectives in one module, for our loop or anybody else's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stillroom.contracts import Batch, Place, Signals
from stillroom.errors import LossError
from stillroom.objectives import Given, Objective, objectives_of
from stillroom.settings import Precision, Resolved, resolved_precision
from stillroom.taps import Reader, Takes, read, sizing
from stillroom.taps.derivatives import refuse_for_training
from stillroom.tensors import check_precision


class Learner(nn.Module):
    """A student and what it is asked to do: ``losses = learner(batch, teacher(batch))``.

    The answer holds each objective's unweighted value by name and their weighted sum as ``loss``; one forward, one
    backward. All that is trained (student and connectors) is in here, so it can be wrapped for several processes.

    Example:
        >>> learner = Learner(student, [match("labels", weight=0.1), match("kd", weight=0.9)])
        >>> learner.size(batch, teacher(batch))      # once, before the optimizer
        >>> learner(batch, teacher(batch))["loss"].backward()
    """

    def __init__(
        self,
        student: nn.Module,
        objectives: Sequence[Given],
        *,
        encode: Callable[..., Any] | None = None,
        takes: Takes = ("inputs",),
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        if not objectives:
            raise LossError("A learner needs at least one objective: got none. Add one, for example 'labels' or 'kd'.")
        self.student = student
        self.objectives = nn.ModuleList(
            one if isinstance(one, Objective) else objectives_of(one)[0] for one in objectives
        )
        names = [objective.name for objective in self._each()]
        doubled = {name for name in names if names.count(name) > 1}
        if doubled or "loss" in names:
            wrong = sorted(doubled) or ["loss"]
            raise LossError(
                f"Objectives need names of their own: got {wrong} {'twice' if doubled else '(it is the sum)'}. "
                "Give one of them another with name=."
            )
        for objective in self._each():
            objective.bind(student)
        for one in self._places("student"):
            refuse_for_training(one.tap)
        self.precision: Resolved = resolved_precision(precision)
        check_precision(student, self.precision)
        self.reader: Reader = read(student, [one.tap for one in self._places("student")], encode, takes=takes)

    def _each(self) -> list[Objective]:
        return list(self.objectives)  # type: ignore[arg-type]

    def _places(self, side: Literal["student", "teacher"]) -> list[Place]:
        return [one for objective in self._each() for one in objective.places(side)]

    @property
    def teacher_places(self) -> list[Place]:
        """Return what the teacher must show."""
        return list(dict.fromkeys(self._places("teacher")))

    @property
    def banks(self) -> list[str]:
        """Return the names of the teacher's signals of which other rows are read."""
        return list(dict.fromkeys(name for objective in self._each() for name in objective.banks))

    def weights(self, step: int = 0, steps: int = 1) -> dict[str, float]:
        """Return each objective's weight at a step; 0 where it is not computed."""
        progress = step / max(1, steps)
        return {one.name: one.weight_at(progress) if one.active(step) else 0.0 for one in self._each()}

    def size(self, batch: Batch, teacher: Signals, *, seed: int = 0) -> None:
        """Look at one real batch: make the connectors that are needed. Statistics and generators stay as they were.

        Raises:
            LossError: shapes do not fit; names both.
        """
        with sizing(self.student, seed=seed):
            student = self._read(batch, teacher, self._each())
        for objective in self._each():
            objective.size(student, teacher, batch, seed=seed)

    def forward(
        self, batch: Batch, teacher: Signals | None = None, *, step: int = 0, steps: int = 1
    ) -> dict[str, Tensor]:
        """Return the losses at ``step`` of ``steps`` (both only matter to ramps and to ``every``)."""
        shown = self._shown(batch, teacher or {}, step)
        losses: dict[str, Tensor] = {}
        total: Tensor | None = None
        progress = step / max(1, steps)
        for objective in self._each():
            if objective.folded:
                continue
            if objective.active(step):
                value = objective(*shown[objective.part])
                losses[objective.name] = value
                total = _plus(total, value, objective.weight_at(progress))
            elif (resting := _touch(objective)) is not None:
                total = _plus(total, resting, 1.0)
        if not losses and (idle := _touch(self)) is not None:
            total = idle
        losses["loss"] = total if total is not None else torch.zeros(())
        return losses

    def _shown(self, batch: Batch, teacher: Signals, step: int) -> dict[float, tuple[Signals, Signals, Batch]]:
        """Return what the active objectives compare, for each part of the batch that some of them read."""
        active = [one for one in self._each() if one.active(step) and not one.folded]
        shown = {}
        for part in dict.fromkeys(one.part for one in active):
            rows = _rows(len(batch["id"]), part)
            some, told = (batch, teacher) if rows is None else (taken(batch, rows), taken(teacher, rows))
            shown[part] = (self._read(some, told, [one for one in active if one.part == part]), told, some)
        return shown

    def _read(self, batch: Batch, teacher: Signals, objectives: Sequence[Objective]) -> Signals:
        """Return what the student shows of what ``objectives`` read."""
        wanted = {where.tap for one in objectives for where in one.places("student")}
        skip = tuple(one for one in self.reader.taps if one not in wanted)
        for one in objectives:
            if one.gives:
                teacher = teacher | one.give(teacher)
        if self.precision == "float32":
            return self.reader(batch, teacher, skip=skip)
        with torch.autocast(batch["id"].device.type, dtype=torch.bfloat16):
            return self.reader(batch, teacher, skip=skip)


def frozen(student: nn.Module) -> list[nn.Module]:
    """Return the parts in evaluation mode whose parameters, there are some, all want no gradient; and those within."""
    found = []
    for part in student.modules():
        parameters = list(part.parameters())
        if not part.training and parameters and not any(one.requires_grad for one in parameters):
            found += [inner for inner in part.modules() if not inner.training]
    return found


def set_to_rest(student: nn.Module) -> list[nn.Module]:
    """Return the parts without parameters that were put into evaluation mode, if it was not the whole student."""
    alone = [part for part in student.modules() if not part.training and next(part.parameters(), None) is None]
    return alone if student.training else []


def _rows(count: int, part: float) -> Tensor | None:
    """Return which rows make a part of a batch, spread over all of it; None for the whole."""
    if part == 1.0:
        return None
    chosen = max(1, round(part * count))
    return torch.arange(chosen) * count // chosen


def taken(values: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """Return some rows of a batch or of signals, as long as the longest of them; a bank belongs to no row."""
    some = {name: value if name.endswith(".bank") else value[rows.to(value.device)] for name, value in values.items()}
    for name in [name for name in some if f"{name}.mask" in some and not name.endswith(".bank")]:
        mask, value = some[f"{name}.mask"], some[name]
        longest = int(mask.any(0).nonzero().max()) + 1 if bool(mask.any()) else 1
        axes = (2, 3) if name.endswith("@attention") else (1,)
        for axis in axes:
            if value.dim() > axis and value.shape[axis] == mask.shape[1]:
                value = value.narrow(axis, 0, longest)
        some |= {name: value, f"{name}.mask": mask[:, :longest]}
    return some


def _plus(total: Tensor | None, value: Tensor, weight: float) -> Tensor:
    """Return ``total + weight * value`` in as few calls as it takes."""
    if total is None:
        return value if weight == 1.0 else value * weight
    return torch.add(total, value, alpha=weight)


def _touch(resting: nn.Module) -> Tensor | None:
    """Zero times what a resting part would train: several processes wait for every gradient, and backward for one."""
    owned = [parameter.sum() for parameter in resting.parameters() if parameter.requires_grad]
    return torch.stack(owned).sum() * 0 if owned else None
