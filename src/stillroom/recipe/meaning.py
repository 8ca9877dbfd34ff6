"""What a recipe means: the second pass, over blocks that are well formed, still without weights or data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from stillroom.contracts import Attention, GradCam, Gradient, Hidden, Place, Segments, State, place
from stillroom.errors import ModelError, TapError, nearest
from stillroom.objectives.signature import Signature, default_place, signature
from stillroom.recipe.blocks import Reading
from stillroom.recipe.models import Data, DistilledData, Objective, Own, Record, Student, Teacher
from stillroom.recipe.schema import function_of
from stillroom.recipe.text import Node
from stillroom.settings import Mixed, Ramp, Training

Pairs = Sequence[tuple[Node, Objective]]
# A tap to name for an example, by kind.
SUCH_AS = {"states": "memory@h", "tokens": "body.encoder.layer.5", "explanations": "layer3@gradcam"}
SUCH_AS |= {"token gradients": "'logits@gradient(wrt=embed)'"}


class Meaning:
    """The second pass over what a :class:`~stillroom.recipe.blocks.Reading` holds; mistakes go to its list."""

    def __init__(self, reading: Reading, teachers: dict[str, Teacher] | None) -> None:
        """``teachers`` is None when the recipe names teachers that could not be read."""
        self.reading = reading
        self.teachers = teachers
        self._modules: dict[str, Any] = {}

    def note(self, node: Node, text: str) -> None:
        """Note a mistake."""
        self.reading.note(node, text)

    def reads(self, objective: Objective) -> Signature:
        """Return what a loss asks for."""
        return signature(function_of(self.reading.tables.losses[objective.use]))

    def distils(self, objective: Objective) -> bool:
        """Tell whether an objective reads a teacher rather than labels, weights or the student itself."""
        return bool(self.reads(objective).sides("teacher")) and not isinstance(objective.teacher, Own)

    # --- one objective -----------------------------------------------------------------------------

    def objective(self, node: Node, objective: Objective, student: Student | None) -> None:
        """Check where an objective reads, and whether it can."""
        reads = self.reads(objective)
        theirs = reads.sides("teacher")
        if self.teachers == {} and self.distils(objective):
            self.note(
                node,
                f"{objective.use} reads a teacher, and the recipe has none; add 'teacher:' or take this objective away",
            )
        if isinstance(objective.teacher, Own) and reads.sides("bank"):
            self.note(
                _part(node, "teacher"),
                f"{objective.use} reads other rows of the teacher's store; "
                "the student has none, so name a teacher's tap",
            )
        for side, slots in (("student", reads.sides("student")), ("teacher", theirs)):
            where = getattr(objective, side)
            if where is None and slots and any(default_place(slot) is None for slot in slots):
                known = next(
                    (SUCH_AS[slot.kind.name] for slot in slots if slot.kind and slot.kind.name in SUCH_AS), "layer3"
                )
                self.note(node, f"{objective.use} must be told where to read: add '{side}:' with a tap such as {known}")
            elif where is not None and not slots:
                self.note(_part(node, side), f"{objective.use} reads nothing of the {side}; take '{side}' away")
        if not theirs and objective.connector != "auto":
            self.note(_part(node, "connector"), f"{objective.use} compares with no teacher; take 'connector' away")
        self._taps(node, objective, student)
        if isinstance(objective.weight, Ramp) and objective.weight.begin == objective.weight.to == 0:
            self.note(_part(node, "weight"), "the weight is 0 from beginning to end")

    def _taps(self, node: Node, objective: Objective, student: Student | None) -> None:
        """Check that taps are taps, that lists pair, and that zoo models have such submodules."""
        mine, theirs = _taps_of(objective.student), _taps_of(objective.teacher)
        if len(mine) > 1 and len(theirs) > 1 and len(mine) != len(theirs):
            self.note(
                node,
                f"{len(mine)} taps of the student cannot be paired with {len(theirs)} of the teacher; "
                "give as many of each",
            )
        own = isinstance(objective.teacher, Own)
        for side, taps in (("student", mine), ("teacher", theirs)):
            for tap in taps:
                found = self.tap(_part(node, side), tap)
                if found is None:
                    continue
                if side == "student" or own:
                    if found.owner:
                        self.note(
                            _part(node, side),
                            f"'{tap}' names a teacher ('{found.owner}'), but the student is read here",
                        )
                    elif student is not None:
                        self._inside(_part(node, side), found, "student", student)
                else:
                    self._of_teacher(_part(node, side), found)

    def tap(self, node: Node, text: str) -> Place | None:
        """Read a tap, noting when it is none."""
        try:
            return place(text)
        except TapError as error:
            self.note(node, str(error))
            return None

    def _of_teacher(self, node: Node, found: Place) -> None:
        if not self.teachers:
            return
        if "" in self.teachers:
            if found.owner:
                self.note(
                    node, f"'{found.owner}/' names a teacher, but the recipe has a single one; write '{found.tap}'"
                )
            else:
                self._inside(node, found, "teacher", self.teachers[""])
        elif not found.owner:
            if str(found.tap) != "logits":
                self.note(
                    node,
                    f"say which teacher's '{found.tap}' is meant; allowed: "
                    + ", ".join(f"{name}/{found.tap}" for name in self.teachers),
                )
        elif found.owner not in self.teachers:
            close = nearest(found.owner, self.teachers)
            self.note(
                node,
                f"unknown teacher '{found.owner}'; "
                + (f"did you mean '{close}'?" if close else f"allowed: {', '.join(self.teachers)}"),
            )
        else:
            self._inside(node, found, found.owner, self.teachers[found.owner])

    def _inside(self, node: Node, found: Place, whose: str, model: Student | Teacher) -> None:
        """Check a path against the submodules of a zoo model; models from folders are checked when loaded."""
        path = found.tap.path if isinstance(found.tap, Hidden | Attention | State | Segments | GradCam) else None
        module = self.module(model)
        if module is None or path is None or isinstance(found.tap, Gradient):
            return
        paths = [name for name, _ in module.named_modules() if name]
        if path not in paths:
            close = nearest(path, paths)
            shown = ", ".join(["logits", "features", "output", *paths[:12]])
            hint = f"did you mean '{close}'?" if close else f"allowed: {shown}"
            self.note(node, f"the {whose} ({model.model}) has no submodule '{path}'; {hint}")

    def module(self, model: Student | Teacher) -> Any:
        """Return the zoo model built without memory, or None."""
        return self._modules.get(repr((model.model, sorted(model.options.items()))))

    def build(self, node: Node | None, model: Student | Teacher | None) -> None:
        """Build a zoo model without memory, so that options that do not go together are told with their line."""
        probe = self.reading.tables.probe
        if model is None or model.model is None or probe is None or node is None:
            return
        key = repr((model.model, sorted(model.options.items())))
        if key in self._modules:
            return
        try:
            self._modules[key] = probe(model.model, model.options)
        except ModelError as error:
            self.note(node, str(error))
        except (RuntimeError, ValueError, TypeError, OverflowError) as error:
            self.note(node, f"{model.model} cannot be built with these options: {str(error).splitlines()[0]}")

    # --- one arm -----------------------------------------------------------------------------------

    def arm(self, node: Node | None, pairs: Pairs, data: Data | None, train: Training | None) -> None:
        """Check what the objectives of an arm, its data and its training are to each other."""
        place_of = node or self.reading.root
        objectives = [objective for _, objective in pairs]
        if not objectives:
            self.note(place_of, "there are no objectives; add one, such as {use: labels} or {use: kd}")
            return
        if all(self.reads(objective).sides("parameters") for objective in objectives):
            self.note(
                place_of, "there are only penalties on weights, so nothing is learnt; add {use: labels} or {use: kd}"
            )
        elif not any(_counts(objective) for objective in objectives):
            self.note(place_of, "every weight is 0, so nothing is learnt; give one of the objectives a weight")
        self._names(pairs)
        if data is not None and data.labels == 0:
            for at, objective in pairs:
                if "labels" in [slot.name for slot in self.reads(objective).sides("column")]:
                    self.note(
                        at,
                        f"{objective.use} reads labels, and data.labels is 0; "
                        "raise data.labels or take this objective away",
                    )
        if data is not None and data.labels == 0 and not data.unlabelled:
            self.note(
                _part(self.reading.root, "data"), "labels: 0 and unlabelled: false leave no examples to learn from"
            )
        if train is not None and isinstance(train.batch, Mixed) and data is not None and data.labels == 0:
            batch = _part(_part(self.reading.root, "train"), "batch")
            self.note(
                _part(batch, "labelled"), "data.labels is 0, so there are no labelled rows; write batch as one number"
            )

    def distilled(self, node: Node | None, pairs: Pairs, made: DistilledData, data: Data | None) -> None:
        """Check what learns from synthetic examples: no answer of a teacher is known of them, only their labels."""
        at = node or self.reading.root
        self.build(at.items.get("network"), made.network)
        for place_of, objective in pairs:
            if self.distils(objective):
                self.note(
                    place_of,
                    f"{objective.use} reads a teacher, whose answers to synthetic examples are not recorded; take this "
                    "objective away, or distilled_data",
                )
        columns = {slot.name for _, objective in pairs for slot in self.reads(objective).sides("column")}
        if "labels" not in columns:
            self.note(at, "nothing reads the labels of the distilled data; add the objective {use: labels}")
        if data is not None and data.labels == 0:
            self.note(at, "data.labels is 0, and without labels no data can be distilled; raise data.labels")
        if "stages" in self.reading.root.items:
            self.note(at, "a training in several stages learns from real data; take stages away, or distilled_data")

    def _names(self, pairs: Pairs) -> None:
        seen: set[str] = set()
        for node, objective in pairs:
            if objective.name == "loss":
                self.note(_part(node, "name"), "'loss' is the name of the sum; choose another name")
            if objective.name is not None and objective.name in seen:
                self.note(_part(node, "name"), f"another objective is called '{objective.name}'; choose another name")
            seen.add(objective.name or objective.use)

    def transfer(self, objectives: Iterable[Objective], train: Training | None) -> None:
        """Check that rows without a label teach something in one arm at least; an arm without leaves them out."""
        if train is None or not isinstance(train.batch, Mixed) or self.teachers is None:
            return
        if not any(self.distils(objective) for objective in objectives):
            batch = _part(_part(self.reading.root, "train"), "batch")
            self.note(
                _part(batch, "transfer"),
                "no objective reads a teacher, so rows without a label would teach nothing; write batch as one number",
            )

    # --- the rest ----------------------------------------------------------------------------------

    def rest(self, record: Record | None, values: Any, data: Data | None) -> None:
        """Check what stands at the top of the recipe."""
        root = self.reading.root
        if record is not None:
            for tap in record.also:
                node = _part(_part(root, "record"), "also")
                found = self.tap(node, tap)
                if found is not None and self.teachers == {}:
                    self.note(node, f"'{tap}' would be read from a teacher, and the recipe has none")
                elif found is not None:
                    self._of_teacher(node, found)
        for key in ("seeds", "trials"):
            given = list(getattr(values, key, ()))
            twice = sorted({value for value in given if given.count(value) > 1})
            if twice:
                self.note(
                    _part(root, key),
                    f"{', '.join(f'{value:g}' for value in twice)} is given twice; each must differ from the others",
                )
        train = None if data is None else data.options.get("train")
        if data is not None and data.labels is not None and isinstance(train, int) and data.labels > train:
            self.note(
                _part(_part(root, "data"), "labels"), f"{data.labels} labels are more than the {train} rows of 'train'"
            )


def _part(node: Node, key: str) -> Node:
    return node.items.get(key, node)


def _taps_of(where: str | tuple[str, ...] | Own | None) -> tuple[str, ...]:
    if isinstance(where, Own):
        return where.taps
    return (where,) if isinstance(where, str) else where or ()


def _counts(objective: Objective) -> bool:
    weight = objective.weight
    return weight.begin > 0 or weight.to > 0 if isinstance(weight, Ramp) else weight > 0


def named(pairs: Pairs, used: Iterable[str] = ()) -> tuple[Objective, ...]:
    """Give every objective a name of its own: its ``use``, and a number where that is taken or ``used``."""
    taken = {*used, *(objective.name for _, objective in pairs if objective.name)}
    found = []
    for _, objective in pairs:
        name, number = objective.name or objective.use, 2
        while objective.name is None and name in taken:
            name, number = f"{objective.use}-{number}", number + 1
        taken.add(name)
        found.append(objective.model_copy(update={"name": name}))
    return tuple(found)
