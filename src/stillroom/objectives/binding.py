"""Where each parameter of a loss is read: the places a person names, or those its kinds read by themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stillroom.contracts import Gradient, Place, Segments, Tap, place
from stillroom.errors import LossError, say
from stillroom.objectives.following import refuse_unlike, told_apart
from stillroom.objectives.signature import Signature, Slot, default_place
from stillroom.taps.options import refuse_options

ALIKE = ("gradients", "derivatives")
"""Kinds that are read alike on both sides: where one side alone is named, the other is read there too."""

Where = str | Tap | Sequence[str | Tap] | Mapping[str, str | Tap] | None


def pairs_of(title: str, reads: Signature, student: Where, teacher: Where) -> list[dict[str, Place]]:
    """Return, for each pair of taps, the place of every slot that reads a model.

    Raises:
        LossError: a place must be named, taps do not pair up, stretches of a teacher are asked for, or derivatives of
            different things are compared.
        TapError: a place is no tap, or options of a derivative say nothing together.
    """
    student, teacher = _alike(reads, student, teacher)
    sides: dict[str, list[dict[str, Place]]] = {}
    for side, where in (("student", student), ("teacher", teacher)):
        slots = reads.sides(side)  # type: ignore[arg-type]
        if not slots:
            if where is not None:
                raise LossError(f"The loss '{title}' reads nothing of the {side}: got '{where}'. Leave '{side}:' out.")
            sides[side] = [{}]
        elif isinstance(where, Mapping):
            sides[side] = [{slot.name: _place(title, slot, where.get(slot.name)) for slot in slots}]
        elif isinstance(where, Sequence) and not isinstance(where, str):
            sides[side] = [{slots[0].name: place(one)} for one in where]
            _points(title, slots, sides[side])
        else:
            sides[side] = [{slot.name: _place(title, slot, where) for slot in slots}]
            _points(title, slots, sides[side])
    ours, theirs = sides["student"], sides["teacher"]
    if len(ours) != len(theirs) and reads.sides("student") and reads.sides("teacher"):
        raise LossError(
            f"The objective '{title}' pairs taps one to one: got {len(ours)} of the student and {len(theirs)} of the "
            "teacher. "
            "Name as many on both sides."
        )
    if len(ours) != len(theirs):  # one side is not read at all
        ours, theirs = ours * len(theirs), theirs * len(ours)
    pairs = [{**a, **b} for a, b in zip(ours, theirs, strict=True)]
    for pair in pairs:
        _of_a_student(title, reads, pair)
        for one in pair.values():
            refuse_options(one.tap)
        refuse_unlike(title, reads, pair)
        told_apart(reads, pair)
        for slot in reads.sides("bank"):
            pair[slot.name] = pair[reads.sides("teacher")[0].name]
    return pairs


def _alike(reads: Signature, student: Where, teacher: Where) -> tuple[Where, Where]:
    """Return both sides' places: the side that is not named is read where the other is, for kinds that want that."""
    slots = reads.sides("student")
    alike = all(slot.kind is not None and slot.kind.name in ALIKE for slot in slots)
    if not slots or not reads.sides("teacher") or not alike:
        return student, teacher
    if teacher is None and isinstance(student, str):
        return student, student
    if student is None and isinstance(teacher, str):
        return str(place(teacher).tap), teacher
    return student, teacher


def _of_a_student(title: str, reads: Signature, pair: Mapping[str, Place]) -> None:
    """Refuse stretches of a teacher: nobody tells where they start, so each would begin without a memory."""
    sides = reads.sides("student"), reads.sides("teacher")
    mine, theirs = (pair[slots[0].name].tap if slots else None for slots in sides)
    if isinstance(theirs, Segments) and mine is not None and not isinstance(mine, Segments):
        allowed = f"'{theirs.path}@h' or '{theirs.path}@c/{theirs.every}'"
        do = "Stretches are read of a student, each from a state of the teacher's."
        raise LossError(say(f"The objective '{title}' reads stretches of the teacher", f"'{theirs}'", allowed, do))


def _place(title: str, slot: Slot, where: str | Tap | None) -> Place:
    named = where if where is not None else default_place(slot)
    if named is None:
        raise LossError(
            f"The loss '{title}' does not know where to read '{slot.name}'"
            + (f" ({slot.kind})" if slot.kind else "")
            + f". Name the place: {slot.side}: layer3, for example."
        )
    return place(named)


def _points(title: str, slots: Sequence[Slot], pairs: list[dict[str, Place]]) -> None:
    """Where one place stands for a gradient and the embeddings it is taken at, read those by themselves.

    Raises:
        LossError: the gradient is not taken at the output of a submodule.
    """
    for slot in slots:
        if slot.kind is None or slot.kind.name != "embeddings":
            continue
        for pair in pairs:
            found = pair[slots[0].name]
            if not isinstance(found.tap, Gradient) or found.tap.wrt == "inputs":
                allowed = "a gradient with respect to word embeddings, such as 'logits@gradient(wrt=embed)'"
                raise LossError(say(f"The loss '{title}' reads the {slot.side}'s gradient", f"'{found.key}'", allowed))
            owner = f"{found.owner}/" if found.owner else ""
            pair[slot.name] = place(f"{owner}{found.tap.wrt}")


def mask_keys(slot: Slot, pair: Mapping[str, Place]) -> list[str]:
    """Return the names a slot's mask may come under: of the place it is called after, else of each of its side."""
    name = slot.name.removesuffix("_mask")
    owners = [name] if name in pair else [other for other in pair if other.startswith(f"{name}_")]
    return [f"{pair[owner].key}.mask" for owner in owners]


def owner_slot(slot: Slot, pair: Mapping[str, Place]) -> str:
    """The slot whose place a mask or bank belongs to: of its own name, else the first of its side (student_logits)."""
    name = slot.name.removesuffix("_mask") if slot.mask else slot.name
    return name if name in pair else next(other for other in pair if other.startswith(f"{name}_"))
