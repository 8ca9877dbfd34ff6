"""What a person should know of a run's data before believing its numbers: what was left out, and what was cut."""

from __future__ import annotations

from typing import Any

import torch

from stillroom.contracts import Teacher
from stillroom.data.splits import labels_known
from stillroom.evaluate import plain_ids
from stillroom.models.text_encode import cut_share
from stillroom.pipeline.making import reads_texts
from stillroom.pipeline.plan import Experiment
from stillroom.tasks import probabilities, softened_twice
from stillroom.train import Rows

LOOKED_AT = 2000
FEW_SEEN, FEW_TESTED = 5, 20  # rows of a class
NAMED = 5


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
    alike: dict[str, list[str]] = {}
    for who, encode in readers.items():
        if hasattr(encode, "cut"):
            alike.setdefault(str(encode.describe()), []).append(who)
    rows = data.splits["train"][:LOOKED_AT]
    for same in alike.values():
        encode = readers[same[0]]
        share = cut_share(encode, data, rows)
        if share > 0:
            who, reads = (same[0], "reads") if len(same) == 1 else (_all_of(same), "read")
            notes.append(
                f"{who} {reads} the first {encode.longest} tokens of a text; {100 * share:.1f} % of the training "
                "texts are longer (encode: {longest: ...})"
            )
    return notes


def _all_of(names: list[str]) -> str:
    """Return several readers in few words."""
    return "the students" if all(name.startswith("the student") for name in names) else "the teacher and the students"


def few_rows(experiment: Experiment) -> list[str]:
    """Return which classes have so few rows that little can be learnt or said of them."""
    data, main = experiment.data, experiment.main
    if not data.classes:
        return []
    labels, notes = labels_known(data), list[str]()
    if labels is None:
        return []
    told = (
        ("the student sees few labels of", Rows.of(main.seen(data)).labelled if main.labels != 0 else None, FEW_SEEN),
        ("the test split has few rows of", data.splits["test"], FEW_TESTED),
    )
    for what, rows, enough in told:
        if rows is None:
            continue
        known = labels[rows]
        counts = torch.bincount(known[known >= 0], minlength=len(data.classes)).tolist()
        few = [f"'{name}' ({count})" for name, count in zip(data.classes, counts, strict=True) if count < enough]
        if few and sum(counts):
            more = f" and {len(few) - NAMED} more classes" if len(few) > NAMED else ""
            notes.append(f"{what} {', '.join(few[:NAMED])}{more}")
    return notes
