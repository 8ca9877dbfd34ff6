"""What a loss function asks for, read from its signature: whose tensors, in which order, and which options."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from stillroom.contracts import Kind
from stillroom.errors import LossError, say

Side = Literal["student", "teacher", "bank", "parameters", "column"]


@dataclass(frozen=True)
class Slot:
    """One positional parameter of a loss: whose tensor goes there."""

    name: str
    side: Side
    kind: Kind | None
    several: bool = False
    mask: bool = False


@dataclass(frozen=True)
class Signature:
    """The tensors and the options of a loss."""

    slots: tuple[Slot, ...]
    options: tuple[str, ...]

    def sides(self, side: Side) -> list[Slot]:
        """Return the slots of one side that are readings, not masks."""
        return [slot for slot in self.slots if slot.side == side and not slot.mask]


def _side(name: str, kind: Kind | None) -> Side:
    if kind is not None and kind.name == "parameters":
        return "parameters"
    for side in ("student", "teacher", "bank"):
        if name == side or name.startswith(f"{side}_"):
            return side  # type: ignore[return-value]
    return "column"


def _kind(hint: Any) -> tuple[Kind | None, bool]:
    """Return the Kind in an annotation, and whether it is a list of such tensors."""
    several = typing.get_origin(hint) is list
    if several:
        hint = typing.get_args(hint)[0]
    for part in (hint, *typing.get_args(hint)):
        for note in getattr(part, "__metadata__", ()):
            if isinstance(note, Kind):
                return note, several
    return None, several


def signature(loss: Callable[..., Tensor]) -> Signature:
    """Read a loss's signature: positional parameters are tensors, keyword-only parameters are options.

    Raises:
        LossError: no positional parameter belongs to the student.
    """
    hints = typing.get_type_hints(loss, include_extras=True)
    slots, options = [], []
    for name, parameter in inspect.signature(loss).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            options.append(name)
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            kind, several = _kind(hints.get(name))
            slots.append(Slot(name, _side(name, kind), kind, several, name.endswith("_mask")))
    if not any(slot.side in ("student", "parameters") for slot in slots):
        raise LossError(
            say(
                f"The loss '{getattr(loss, '__name__', loss)}' reads nothing of the student",
                f"positional parameters {[slot.name for slot in slots]}",
                "names that begin with student, then teacher, bank, or a column of the batch such as labels",
                "Write tensors first and options after a bare *.",
            )
        )
    return Signature(tuple(slots), tuple(options))


def default_place(slot: Slot) -> str | None:
    """Return what a slot reads when the recipe names no tap: by its kind, else by its name's ending."""
    if slot.kind is not None:
        return slot.kind.default
    ending = slot.name.removeprefix("student_").removeprefix("teacher_").removeprefix("bank_")
    return ending if ending in ("logits", "features") else None
