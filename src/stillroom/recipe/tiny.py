"""``--tiny``: the same code path with little work: 256 rows, 20 steps, one seed."""

from __future__ import annotations

from typing import Any, TypeVar

from stillroom.recipe.models import Arm, Data, DistilledData, Recipe, Stage, Teacher
from stillroom.settings import Mixed, Training

ROWS = 256
LABELS = 128
STEPS = 20
TASK_ROWS = 80
PER_CLASS, MADE_IN, MADE_FROM = 2, 3, 16
Change = TypeVar("Change", Arm, Stage)


def tiny(recipe: Recipe) -> Recipe:
    """Return the recipe cut down; teachers and arms too."""
    return recipe.model_copy(
        update={
            "name": f"{recipe.name}-tiny",  # its folder must not take the real run's place
            "data": _data(recipe.data),
            "train": _training(recipe.train),
            "teacher": None if recipe.teacher is None else _teacher(recipe.teacher),
            "teachers": {name: _teacher(teacher) for name, teacher in recipe.teachers.items()},
            "arms": {name: _change(arm) for name, arm in recipe.arms.items()},
            "stages": tuple(_change(stage) for stage in recipe.stages),
            "seeds": recipe.seeds[:1],
            "distilled_data": _distilled(recipe.distilled_data),
            "evaluate": None if recipe.evaluate is None else recipe.evaluate.model_copy(update={"rows": TASK_ROWS}),
        }
    )


def _data(data: Data) -> Data:
    options = dict(data.options)
    if "train" in options:
        options["train"] = min(options["train"] or ROWS, ROWS)
    labels = None if data.labels is None else min(data.labels, LABELS)
    # The rows to leave out may not be among the few that are kept.
    return data.model_copy(update={"options": options, "labels": labels, "leave_out": None})


def _distilled(block: DistilledData | None) -> DistilledData | None:
    if block is None:
        return None
    making = block.making
    fewer = {
        "per_class": min(making.per_class, PER_CLASS),
        "steps": min(making.steps, MADE_IN),
        "batch": min(making.batch, MADE_FROM),
    }
    return block.model_copy(update={"making": making.model_copy(update=fewer)})


def _training(train: Training) -> Training:
    batch: int | Mixed = (
        min(train.batch, ROWS)
        if isinstance(train.batch, int)
        else Mixed(labelled=min(train.batch.labelled, LABELS), transfer=min(train.batch.transfer, LABELS))
    )
    steps = min(train.steps or STEPS, STEPS)
    return train.model_copy(update={"steps": steps, "epochs": None, "batch": batch})


def _teacher(teacher: Teacher) -> Teacher:
    return teacher.model_copy(update={"train": _training(teacher.train)})


def _change(change: Change) -> Change:
    update: dict[str, Any] = {"train": None if change.train is None else _training(change.train)}
    if isinstance(change, Arm) and change.data is not None:
        update["data"] = _data(change.data)
    if isinstance(change, Arm):
        update["distilled_data"] = _distilled(change.distilled_data)
    return change.model_copy(update=update)
