"""The points at which a student's gradients are taken: word embeddings, which must stay where they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from stillroom.contracts import Hidden, Place
from stillroom.errors import LossError, say
from stillroom.objectives.signature import Signature


class Points:
    """Where a student's embeddings are read, and what would move them."""

    def __init__(self, title: str, reads: Signature, pairs: Sequence[Mapping[str, Place]]) -> None:
        slots = [slot.name for slot in reads.sides("student") if slot.kind and slot.kind.name == "embeddings"]
        self.title, self.slots = title, slots
        taps = [pair[name].tap for pair in pairs for name in slots]
        self.paths = [one.path for one in taps if isinstance(one, Hidden)]
        self.parts: dict[str, list[nn.Parameter]] = {}
        self.all: list[nn.Parameter] = []
        self.stays = not slots

    def bind(self, student: nn.Module) -> None:
        """Take note of the student's weights."""
        if self.slots:
            student = getattr(student, "_orig_mod", student)
            inside = dict(student.named_modules(remove_duplicate=False))
            self.parts = {path: list(inside[path].parameters()) for path in self.paths if path in inside}
            self.all = list(student.parameters())

    def frozen(self) -> None:
        """Refuse embeddings that are trained, before anything is read.

        Raises:
            LossError: they are.
        """
        for path, parameters in self.parts.items():
            if any(one.requires_grad for one in parameters):
                raise self._moving(path)

    def check(self, values: Mapping[str, Tensor]) -> None:
        """Refuse embeddings that training would move away from the teacher's; looked at in the first pass.

        Raises:
            LossError: they, or something before them, are trained.
        """
        self.frozen()
        if self.stays or not torch.is_grad_enabled():
            return
        trained = [one for one in self.all if one.requires_grad]
        for name in self.slots:
            value = values[name]
            if value.requires_grad and trained:  # it does, also where inputs alone are differentiated
                found = torch.autograd.grad(value.sum(), trained, allow_unused=True, retain_graph=True)
                if any(one is not None for one in found):
                    raise self._moving(", ".join(self.paths) or name)
        self.stays = True

    def _moving(self, where: str) -> LossError:
        what = f"The objective '{self.title}' compares gradients at word embeddings, at one and the same point"
        given = f"embeddings at '{where}' that the student trains, which takes them apart from the teacher's"
        do = "Copy the teacher's word embeddings into the student and freeze them, for example with "
        do += f"student.get_submodule('{where}').requires_grad_(False)."
        return LossError(say(what, given, "embeddings that stay the same on both sides", do))
