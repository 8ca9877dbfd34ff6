"""Derivatives of two models: that both are of one thing, and whose class the student's follow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from stillroom.contracts import Batch, GradCam, Gradient, Place, Signals, place
from stillroom.errors import LossError, say
from stillroom.objectives.signature import Signature, Slot
from stillroom.taps.following import OWN, TOP
from stillroom.taps.options import by_differences

Pair = Mapping[str, Place]
UNLIKE = "compares derivatives of different things"


@dataclass(frozen=True)
class Follow:
    """A student's derivative along the top class, the teacher's it is compared with, and where its class is read.

    Without a teacher, or with the student for one, it is the student's own class.
    """

    key: str
    theirs: Place | None
    logits: Place | None


def compared(reads: Signature, pair: Pair) -> Iterator[tuple[Slot, Place, Place | None]]:
    """Yield each derivative of the student: its slot, its place, and the teacher's place it is compared with.

    That is the place of the parameter with the same ending (``student_maps``, ``teacher_maps``), or its first one.
    """
    theirs = [slot.name for slot in reads.sides("teacher")]
    for slot in reads.sides("student"):
        if isinstance(pair[slot.name].tap, Gradient | GradCam):
            same = f"teacher{slot.name.removeprefix('student')}"
            found = same if same in theirs else theirs[0] if theirs else None
            yield slot, pair[slot.name], None if found is None else pair[found]


def told_apart(reads: Signature, pair: dict[str, Place]) -> None:
    """Name the student's derivatives along the top class after the teacher they follow: ``big/logits@gradient``.

    So a student that is compared with several teachers is differentiated once for each.
    """
    for slot, ours, theirs in list(compared(reads, pair)):
        if _along(ours) == "top" and theirs is not None and theirs.owner:
            pair[slot.name] = ours._replace(key=f"{theirs.owner}/{ours.tap}")


def follows(reads: Signature, pair: Pair, *, own: bool) -> list[Follow]:
    """Return whose class each of the student's derivatives along the top class is of."""
    found = []
    for _, ours, theirs in compared(reads, pair):
        if _along(ours) == "top":
            logits = None
            if theirs is not None and not own:
                logits = place(f"{theirs.owner}/logits" if theirs.owner else "logits")
            found.append(Follow(ours.key, theirs, logits))
    if own:
        shown = [pair[slot.name] for slot in reads.sides("teacher")]
        found += [Follow(one.key, None, None) for one in shown if _along(one) == "top"]
    return found


def classes_of(title: str, wanted: Sequence[Follow], teacher: Signals) -> Signals:
    """Return the classes that the student's derivatives are of, as its reader wants them given.

    Raises:
        LossError: the teacher showed no logits.
    """
    given: Signals = {}
    for one in wanted:
        if one.logits is None or one.theirs is None:
            given[f"{one.key}{TOP}"] = OWN
            continue
        if one.logits.key not in teacher:
            what = f"The student's derivative in '{title}' follows the top class of the teacher it is compared with"
            shown = f"'{one.theirs.key}' without '{one.logits.key}' (shown: {', '.join(teacher) or 'nothing'})"
            do = "Let that teacher show or record 'logits' too, or write 'label' on both sides."
            raise LossError(say(what, shown, f"'{one.logits.key}' beside it", do))
        given[f"{one.key}{TOP}"] = teacher[one.logits.key].detach().argmax(1)
    return given


def refuse_unlike(title: str, reads: Signature, pair: Pair) -> None:
    """Refuse derivatives that are not of one thing: their numbers mean different things.

    How each is read (``mode``) may differ. So may the paths of submodules, which :func:`refuse_columns` tells from
    columns. A function of one's own, whose tensors have no kind, compares what it likes.

    Raises:
        LossError: they differ; says in what.
    """
    for slot, ours, theirs in compared(reads, pair):
        if slot.kind is None or theirs is None:
            continue
        parts = _unlike(ours.tap, theirs.tap)
        if parts:
            given = f"the student's '{ours.tap}' and the teacher's '{theirs.tap}', which differ in {', '.join(parts)}"
            allowed = "one along, count, seed, wrt and step on both sides; mode may differ"
            do = f"Write '{theirs.tap}' on both sides, or '{ours.tap}'."
            raise LossError(say(f"The objective '{title}' {UNLIKE}", given, allowed, do))


def _unlike(ours: object, theirs: object) -> list[str]:
    if isinstance(ours, GradCam) and isinstance(theirs, GradCam):
        return [] if ours.along == theirs.along else [f"along ({ours.along} and {theirs.along})"]
    if not isinstance(ours, Gradient) or not isinstance(theirs, Gradient):
        return []
    values = {
        "along": (ours.along, theirs.along),
        "count": (ours.count, theirs.count) if ours.along == theirs.along else (0, 0),
        "seed": (ours.seed, theirs.seed),
        "wrt": (ours.wrt, theirs.wrt) if "inputs" in (ours.wrt, theirs.wrt) else ("", ""),
        "step": (ours.step, theirs.step) if _steps_matter(ours, theirs) else (None, None),
    }
    return [f"{name} ({_word(one)} and {_word(other)})" for name, (one, other) in values.items() if one != other]


def _steps_matter(ours: Gradient, theirs: Gradient) -> bool:
    """Along a column the step is a part of what is asked; else only where both sides are differences."""
    along_column = ours.directional and ours.along != "random"
    return along_column or (by_differences(ours) and by_differences(theirs))


def _word(value: object) -> str:
    return "the usual" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def refuse_columns(title: str, reads: Signature, pair: Pair, batch: Batch) -> None:
    """Refuse derivatives by different columns of the Batch: only the paths of submodules are each model's own.

    Raises:
        LossError: they are by different columns, or one by a column and one by a submodule.
    """
    for slot, ours, theirs in compared(reads, pair):
        if slot.kind is None or theirs is None or not isinstance(ours.tap, Gradient):
            continue
        mine, other = ours.tap.wrt, theirs.tap.wrt if isinstance(theirs.tap, Gradient) else ours.tap.wrt
        if mine != other and (mine in batch or other in batch):
            allowed = f"one column of the Batch on both sides ({', '.join(batch)}), or the path of a submodule in each"
            given = f"wrt={mine} of the student and wrt={other} of the teacher"
            raise LossError(say(f"The objective '{title}' {UNLIKE}", given, allowed, "Write one."))


def _along(one: Place) -> str:
    return one.tap.along if isinstance(one.tap, Gradient | GradCam) else ""
