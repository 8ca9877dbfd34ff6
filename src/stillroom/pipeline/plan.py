"""What an experiment is made of, whether it came from a recipe or from objects in memory.

An *arm* is one way to train the student. The *control*, called ``alone``, is the same student from the same start
without the teacher. A *job* is one arm with one seed and one learning rate.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.contracts import Source, Teacher, place
from stillroom.data.splits import LabelledSubset, few_labels, labelled_rows, labels_of
from stillroom.errors import DataError, say
from stillroom.objectives import Objective
from stillroom.settings import Mixed, Resolved, Synthesis, Training
from stillroom.train import Rows

ALONE = "alone"
Told = Callable[[int, int, str], None]


@dataclass(frozen=True)
class TeacherPlan:
    """A teacher by one of three ways: a model to train, a model that answers already, or a store.

    ``make`` builds the module (before training, if ``training`` is set); ``described`` is what its result depends on.
    ``shared``: whether that tells it from every other, so that other runs may find what is kept of it.
    """

    described: Mapping[str, Any]
    make: Callable[[], nn.Module] | None = None
    encode: nn.Module | None = None
    training: Training | None = None
    store: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    shared: bool = True


@dataclass(frozen=True)
class SynthesisPlan:
    """Synthetic examples that an arm learns from: how they are made, on which networks, and how many there will be.

    ``made`` is a source that has them for its training rows, once there are any.
    """

    settings: Synthesis
    make_network: Callable[[int], nn.Module]
    encode: nn.Module | None
    examples: int
    described: Mapping[str, Any]
    made: Source | None = None

    def source(self, data: Source) -> Source:
        """Return the source to learn from; before it is made, as many real examples stand in for it."""
        if self.made is not None:
            return self.made
        stand_in = copy.copy(data)
        rows = few_labels(labels_of(data), data.splits["train"], self.examples, self.settings.seed)
        stand_in.splits = {**data.splits, "train": rows}  # type: ignore[misc]
        return stand_in


@dataclass(frozen=True)
class ArmPlan:
    """One way to train the student: fresh objectives each time, settings, and how many labels it sees (None: all).

    ``unlabelled``: whether it sees the examples whose labels it does not. ``before`` are the stages that come first,
    each an arm of its own; an ``assistant`` has another student, which then teaches. ``also`` are trainings whose steps
    are added to this one's: so the control has as many as all stages together. ``starts`` are fingerprints of its
    students by seed, where ``described`` does not tell them; ``shared`` whether both together tell what is trained from
    all else, so that other runs may find it.
    """

    name: str
    objectives: Callable[[], list[Objective]]
    training: Training
    labels: int | None
    make_student: Callable[[int], nn.Module]
    encode: nn.Module | None
    config: Mapping[str, Any]
    described: Mapping[str, Any]
    before: tuple[ArmPlan, ...] = ()
    assistant: bool = False
    also: tuple[Training, ...] = ()
    distilled: SynthesisPlan | None = None
    unlabelled: bool = True
    starts: Mapping[int, str] = field(default_factory=dict)
    shared: bool = True

    @property
    def distils(self) -> bool:
        """Whether any objective of its last part needs a teacher."""
        return any(one.role == "distil" and not one.own for one in self.objectives())

    @property
    def reads_teacher(self) -> bool:
        """Whether any of its objectives needs the teacher, in whichever part."""
        return self.distils or any(stage.reads_teacher for stage in self.before)

    @property
    def own_parts(self) -> tuple[ArmPlan, ...]:
        """Every part in which its own student is trained, the last one behind; assistants are others."""
        return (*(stage for stage in self.before if not stage.assistant), self)

    @property
    def reads_labels(self) -> bool:
        """Whether any objective of its own student needs labels, in whichever part."""
        return any(one.role == "task" for part in self.own_parts for one in part.objectives())

    @property
    def answers(self) -> bool:
        """Whether its logits are trained: some objective of some part reads them. Else it makes features alone."""
        trained = [objective for part in self.own_parts for objective in part.objectives()]
        shown = [str(one.tap) for objective in trained for one in objective.places("student")]
        return any(text in ("logits", "output") or text.startswith(("output[", "logits@")) for text in shown)

    def taps_after(self, number: int) -> list[str]:
        """Return what the parts behind stage ``number`` (from 1) read of an assistant that was trained in it."""
        later = [*self.before[number:], self]
        places = [one for plan in later for objective in plan.objectives() for one in objective.places("teacher")]
        return list(dict.fromkeys(["logits", *(str(one.tap) for one in places)]))

    @property
    def learns_from(self) -> int | None:
        """How many labelled examples its student learns from, be they synthetic; None: all."""
        return self.labels if self.distilled is None else self.distilled.examples

    def data(self, data: Source, seed: int = 0) -> Source:
        """Return the data that this arm's student learns from: what it may see, or the examples made from that."""
        return self.seen(data, seed) if self.distilled is None else self.distilled.source(data)

    def seen(self, data: Source, seed: int = 0) -> Source:
        """Return the data as this arm may see it: labels outside its share are hidden."""
        train = data.splits["train"]
        if self.labels is None:
            known = labelled_rows(data)
            return data if len(known) == len(train) else LabelledSubset(data, known)
        if self.labels == 0 or self.labels > len(train):
            if self.labels > len(train):
                raise DataError(
                    say(
                        "The student is to see more labels than there are training rows",
                        self.labels,
                        f"1 to {len(train)}",
                        "Lower data.labels or leave it out.",
                    )
                )
            return LabelledSubset(data, train[:0])
        return LabelledSubset(data, few_labels(labels_of(data), train, self.labels, seed))

    def rows(self, visible: Source) -> Rows:
        """Return what this arm's batches are drawn from: the labelled rows alone where nothing but labels teaches."""
        rows = Rows.of(visible)
        if not self.unlabelled or not (self.distils or any(one.own for one in self.objectives())):
            return Rows(rows.labelled)
        if isinstance(self.training.batch, Mixed):
            return rows
        return Rows(visible.splits["train"])

    def settings(self, visible: Source, factor: float = 1.0) -> Training:
        """Return its training with the length in steps and the learning rate times ``factor``."""
        rows = self.rows(visible)
        train = visible.splits["train"]
        labelled = len(getattr(visible, "labelled", train)) or len(train)  # without any label an epoch is all rows
        steps = sum(part.total_steps(labelled) for part in (self.training, *self.also))
        update: dict[str, Any] = {"steps": steps, "epochs": None, "lr": self.training.lr * factor}
        if isinstance(self.training.batch, Mixed) and rows.transfer is None:
            update["batch"] = self.training.batch.rows  # as many rows a step as the arms with a transfer set
        return self.training.model_copy(update=update)


def control_of(arm: ArmPlan, make_labels: Callable[[], Objective]) -> ArmPlan:
    """Return the control of an arm: labels at weight 1, penalties kept, everything that reads a teacher dropped.

    In the place of synthetic examples it has as many real ones, chosen at random.
    """

    def objectives() -> list[Objective]:
        kept = {one.name: one for part in arm.own_parts for one in part.objectives() if one.role == "penalty"}
        return [make_labels(), *kept.values()]

    # What the teacher's objectives are does not matter to it: a sweep over them pays for the control once.
    dropped = ("objectives", "stages", "record", "distilled_data")
    kept = {key: value for key, value in arm.described.items() if key not in dropped}
    described = {
        **kept,
        "control": [one.described() for one in objectives()],
        "stages": [stage.training.model_dump(mode="json") for stage in arm.before if not stage.assistant],
    }
    also = tuple(stage.training for stage in arm.before if not stage.assistant)
    return replace(
        arm,
        name=ALONE,
        objectives=objectives,
        labels=arm.learns_from,
        described=described,
        before=(),
        assistant=False,
        also=also,
        distilled=None,
        unlabelled=True,
    )


@dataclass(frozen=True)
class Experiment:
    """All that is compared with each other: one data set, its teachers, the arms, the seeds."""

    name: str
    data: Source
    teachers: Mapping[str, TeacherPlan]
    arms: Mapping[str, ArmPlan]
    seeds: Sequence[int]
    trials: Sequence[float] = (1.0,)
    views: int = 1
    also: Sequence[str] = ()
    onnx: bool = False
    int8: bool = False
    recipe: str = ""
    on: Sequence[tuple[str, Mapping[str, Any]]] = ()
    on_rows: int = 2000
    precision: Resolved = "float32"

    def rows_asked(self) -> Tensor | None:
        """Return the examples of which a teacher's answers are needed; None for all."""
        pupils = [arm for arm in self.arms.values() if arm.reads_teacher]
        if not pupils or any(arm.unlabelled for arm in pupils):
            return None
        splits = self.data.splits
        rest = [splits[name] for name in ("validation", "test") if name in splits]
        return torch.cat([*(Rows.of(arm.seen(self.data)).labelled for arm in pupils), *rest]).unique()

    @property
    def reads_logits(self) -> bool:
        """Whether some objective reads the logits of a teacher."""
        parts = [part for arm in self.arms.values() for part in (*arm.before, arm)]
        places = [one for part in parts for objective in part.objectives() for one in objective.places("teacher")]
        return any(str(one.tap) == "logits" for one in places)

    @property
    def main(self) -> ArmPlan:
        """The first arm that is not the control: what metrics call ``distilled``."""
        return next(arm for name, arm in self.arms.items() if name != ALONE)

    def taps(self, owner: str) -> list[str]:
        """Return what must be recorded of one teacher: its logits, and what the arms read."""
        wanted = ["logits"]
        for plan in [part for arm in self.arms.values() for part in (*arm.before, arm)]:
            for objective in plan.objectives():
                wanted += [str(one.tap) for one in objective.places("teacher") if one.owner == owner]
        wanted += [str(place(text).tap) for text in self.also if place(text).owner == owner]
        return list(dict.fromkeys(wanted))


def without_control(experiment: Experiment) -> str:
    """Say why a run with a teacher has no control."""
    main = experiment.main
    if not main.reads_teacher:
        why = f"no objective reads the teacher: '{main.name}' is itself the student alone"
    elif not experiment.data.classes:
        why = "the data has no labels to learn from alone"
    elif main.labels == 0:
        why = "the student sees no label"
    elif experiment.recipe and not main.reads_labels:
        why = "no objective reads labels"
    else:
        why = "control: false"
    return f"there is no control in this run ({why}), so the gap is not known"


def combined(stores: Mapping[str, Teacher]) -> Teacher | None:
    """Return one teacher for the arms: the store itself, or several with their names before their signals."""
    from stillroom.teachers import Average

    if not stores:
        return None
    if set(stores) == {""}:
        return stores[""]
    return Average(stores)
