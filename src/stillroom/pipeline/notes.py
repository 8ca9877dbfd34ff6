"""What a person should know of a run's data before believing its numbers: what was left out, and what was cut."""

from __future__ import annotations

from typing import Any

from stillroom.contracts import Teacher
from stillroom.evaluate import plain_ids
from stillroom.models.text_encode import cut_share
from stillroom.pipeline.making import reads_texts
from stillroom.pipeline.plan import Experiment
from stillroom.tasks import probabilities, softened_twice

LOOKED_AT = 2000


def notes_of(experiment: Experiment, teacher: Teacher | None = None) -> list[str]:
    """Return what the source says of its rows, which teachers' answers are no logits, and what is read only in part."""
    data = experiment.data
    notes = [f"data: {note}" for note in getattr(data, "notes", ())]
    if teacher is not None and experiment.reads_logits:
        shown = teacher({"id": plain_ids(data.splits["test"][:LOOKED_AT])})
        for name in experiment.teachers:
            if probabilities(shown[f"{name}/logits" if name else "logits"]):
                notes.append(softened_twice(f"the teacher {name}".strip()))
    if not reads_texts(data):
        return notes
    readers: dict[str, Any] = {
        f"the teacher {name}".strip(): plan.encode
        for name, plan in experiment.teachers.items()
        if plan.make is not None
    }
    readers |= {f"the student of '{name}'": arm.encode for name, arm in experiment.arms.items()}
    rows, seen = data.splits["train"][:LOOKED_AT], set[int]()
    for who, encode in readers.items():
        if hasattr(encode, "cut") and id(encode) not in seen:
            seen.add(id(encode))
            share = cut_share(encode, data, rows)
            if share > 0:
                notes.append(
                    f"{who} reads the first {encode.longest} tokens of a text; {100 * share:.1f} % of the training "
                    "texts are longer (encode: {longest: ...})"
                )
    return notes
