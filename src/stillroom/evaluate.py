"""evaluate(): what a model answers on a split, and what that is worth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.contracts import Progress, Source, Teacher
from stillroom.errors import DataError, say
from stillroom.taps import Takes, read
from stillroom.tasks import check_answers, check_labels, check_names, measure

BATCH = 500


def plain_ids(examples: Tensor) -> Tensor:
    """Return the ids (B, 2) of examples without any view."""
    return torch.stack([examples, torch.zeros_like(examples)], 1)


def answer(
    module: nn.Module,
    data: Source,
    examples: Tensor,
    *,
    encode: Callable[..., Any] | None = None,
    takes: Takes = ("inputs",),
    progress: Progress | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return the model's logits (rows, classes) on the plain examples and their labels; its mode comes back.

    Labels are None when the source has none.

    Raises:
        UserError: the answers are no logits of classes, or the labels no class numbers.
    """
    reader = read(module, ["logits"], encode, takes=takes)
    modes = [part for part in module.modules() if part.training]
    logits, labels = [], []
    try:
        module.eval()
        with torch.no_grad():
            for start in range(0, len(examples), BATCH):
                batch = data.batch(plain_ids(examples[start : start + BATCH]))
                shown = reader(batch)["logits"]
                logits.append(check_answers(shown, type(module).__name__, len(batch["id"])).float())
                if "labels" in batch:
                    check_labels(batch["labels"], len(batch["id"]))
                    labels.append(batch["labels"])
                if progress is not None:
                    progress(min(start + BATCH, len(examples)), len(examples), "evaluate")
    finally:
        for part in modes:
            part.training = True
    return torch.cat(logits), torch.cat(labels) if labels else None


def evaluate(
    module: nn.Module,
    data: Source,
    *,
    split: str = "test",
    teacher: Teacher | None = None,
    encode: Callable[..., Any] | None = None,
    takes: Takes = ("inputs",),
) -> dict[str, float]:
    """Return accuracy, calibration error and, with a teacher, agreement and KL(teacher || student) on a split.

    Raises:
        DataError: the split has no rows, the labels are no class numbers, or the model knows other classes by name.
        ModelError: the model or the teacher does not answer logits of the data's classes.
    """
    if split not in data.splits or not len(data.splits[split]):
        raise DataError(
            say(
                "The data has no rows of this split",
                f"'{split}'",
                [name for name, rows in data.splits.items() if len(rows)],
            )
        )
    examples, name = data.splits[split], type(module).__name__
    check_names(getattr(module, "classes", None), data.classes, name)
    logits, labels = answer(module, data, examples, encode=encode, takes=takes)
    check_answers(logits, name, len(examples), data.classes)
    told = None
    if teacher is not None:
        parts = [teacher(data.batch(plain_ids(part)))["logits"].float() for part in examples.split(BATCH)]
        told = check_answers(torch.cat(parts), "the teacher", len(examples), data.classes)
    return measure(logits, labels, told)
